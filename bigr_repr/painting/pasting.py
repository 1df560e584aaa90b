"""Options for pasting paintings into a photograph. Light to import; knows nothing of pixels or models."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from types import ModuleType

from bigr_repr.options import check_options, documented, option

BLENDS = ("none", "feather", "poisson")
FITS = ("surroundings", "none")


@documented
@dataclass(frozen=True, kw_only=True)
class Pasting:
    """How a photograph is cut into windows, and how paintings are fitted to it and pasted into it.

    Raises ValueError on construction for an invalid value, ImportError for "poisson" without OpenCV.
    """

    window: int | None = option(
        None,
        "Side, in pixels, of the square windows that the model sees, at most the photograph's shorter side; smaller "
        "gives finer detail but less context.",
        usual="twice the marked area, if the photograph is that large; outpaint: its shorter side; enrich: the model's "
        "image size",
        least=1,
    )
    blend: str = option(
        "none",
        "How to blend the painting into the photograph. none: hard edges, everything else bit-identical; feather: "
        "fade out around the marked part; poisson: fit colors to the surroundings (needs OpenCV).",
        choices=BLENDS,
    )
    band: int | None = option(
        None,
        "Width in pixels over which feather fades out and windows fade into each other.",
        usual="half a token",
        least=1,
    )
    fit: str = option(
        "surroundings",
        "What to fit the painting to. surroundings: extend the surrounding colors into the marked part, let the "
        "model draw what is likely next to them, and match the tones; none: whatever the model draws, as in the "
        "paper.",
        usual="surroundings; enrich: always none",
        choices=FITS,
    )
    follow: float | None = option(
        None,
        "How far, in tokens, to follow the colors extended into the marked part: more is smoother and closer to the "
        "surroundings, less is freer. No effect with fit none; enrich refuses it.",
        usual="2; with a class 0.5",
        least=0,
        most=1000,
    )
    best_of: int = option(
        1,
        "Draw this many versions of each window and keep the one that joins the photograph most smoothly.",
        usual="1",
        least=1,
        most=1000,
    )
    max_windows: int = option(
        1000,
        "Refuse, before any work, jobs with more windows than this; each takes as long as one picture.",
        least=1,
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_blend(self.blend, self.band)


def check_blend(blend: str, band: int | None) -> None:
    """Check, before any work, that `paste` supports these options.

    Raises ValueError for an unknown blend or a band that is not a positive integer, ImportError for a blend whose
    library is not installed.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend={blend!r} is unknown; choose one of {', '.join(BLENDS)}")
    if band is not None and (not isinstance(band, Integral) or isinstance(band, bool) or band < 1):
        raise ValueError(f"band={band!r} is not allowed: it must be an integer number of pixels, at least 1")
    if blend == "poisson":
        opencv()


def opencv() -> ModuleType:
    """The library, or ImportError that says how to install it."""
    try:
        import cv2
    except ImportError as error:
        remedy = 'pip install "bigr-repr[poisson]", or choose feather'
        raise ImportError(f'blend="poisson" needs OpenCV: {remedy}') from error
    return cv2
