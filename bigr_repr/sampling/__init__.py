"""Drawing codes and images: one sampler, and the applications that are arguments to it."""

from bigr_repr.sampling.applications import edit, enrich, generate, inpaint, interpolate, outpaint
from bigr_repr.sampling.photos import Pasting, edit_photo, enrich_photo, inpaint_photo, outpaint_photo
from bigr_repr.sampling.sampler import Callback, Iteration, sample_codes
from bigr_repr.sampling.settings import FAST, SamplingSettings

__all__ = [
    "FAST",
    "Callback",
    "Iteration",
    "Pasting",
    "SamplingSettings",
    "edit",
    "edit_photo",
    "enrich",
    "enrich_photo",
    "generate",
    "inpaint",
    "inpaint_photo",
    "interpolate",
    "outpaint",
    "outpaint_photo",
    "sample_codes",
]
