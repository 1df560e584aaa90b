"""Drawing codes and images: one sampler, and the applications that are arguments to it."""

from bigr_repr.sampling.applications import edit, enrich, generate, inpaint, interpolate, outpaint
from bigr_repr.sampling.sampler import Callback, Iteration, sample_codes
from bigr_repr.sampling.settings import SamplingSettings

__all__ = [
    "Callback",
    "Iteration",
    "SamplingSettings",
    "edit",
    "enrich",
    "generate",
    "inpaint",
    "interpolate",
    "outpaint",
    "sample_codes",
]
