"""How paintings are put into a photograph: the options. Light to import; knows nothing of pixels or models."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from bigr_repr.sampling.fields import check_options, documented, option

BLENDS = ("none", "feather", "poisson")
FITS = ("surroundings", "none")


@documented
@dataclass(frozen=True, kw_only=True)
class Pasting:
    """How a photograph is cut into windows, and how paintings are fitted to it and put into it.

    Raises ValueError when made with a value that is not allowed, ImportError for "poisson" without OpenCV.
    """

    window: int | None = option(
        None,
        "Side, in pixels, of the square windows the model sees, at most the photograph's shorter side; smaller: finer "
        "detail, less context.",
        usual="twice what is marked, where the photograph is as large; outpaint: its shorter side; enrich: the model's "
        "image size",
        least=1,
    )
    blend: str = option(
        "none",
        "How the painting meets the photograph. none: hard edges, all else unchanged bit for bit; feather: fades out "
        "around the marked part; poisson: colors fitted to the surroundings (needs OpenCV).",
        choices=BLENDS,
    )
    band: int | None = option(
        None,
        "Width in pixels over which feather fades out, and over which windows fade into each other.",
        usual="half a token",
        least=1,
    )
    fit: str = option(
        "surroundings",
        "What the painting is fitted to. surroundings: the colors around the marked part are continued into it, the "
        "model draws what is likely beside them, and the painting's tones go over into theirs; none: whatever the "
        "model draws, as in the paper.",
        usual="surroundings",
        choices=FITS,
    )
    follow: float | None = option(
        None,
        "How far, in tokens, the colors that are continued into the marked part are followed: more is smoother and "
        "closer to what is around, less is freer. No effect with fit none.",
        usual="2; with a class 0.5",
        least=0,
        most=1000,
    )
    best_of: int = option(
        1,
        "Draw so many paintings of each window and keep the one that goes over into the photograph most smoothly.",
        usual="1",
        least=1,
        most=1000,
    )
    max_windows: int = option(
        1000,
        "Refuse work of more windows than this before it begins; each takes as long as a picture of the model.",
        least=1,
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_blend(self.blend, self.band)


def check_blend(blend: str, band: int | None) -> None:
    """Refuse what `paste` cannot do, before any work is done.

    Raises ValueError for an unknown blend or a band that is not a whole number of at least 1, ImportError for a blend
    whose library is not installed.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend={blend!r} is unknown; choose one of {', '.join(BLENDS)}")
    if band is not None and (not isinstance(band, int) or isinstance(band, bool) or band < 1):
        raise ValueError(f"band={band!r} is not allowed: it must be a whole number of pixels, at least 1")
    if blend == "poisson":
        opencv()


def opencv() -> ModuleType:
    """The library, or ImportError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        remedy = 'pip install "bigr-repr[poisson]", or choose feather'
        raise ImportError(f'blend="poisson" needs OpenCV: {remedy}') from error
    return cv2
