"""How well pictures match their captions, according to a judge of the user's choice. Knows no commands or tables.

"synthetic" reads the pictures of the synthetic world exactly; transformers:NAME is an image-text model such as
CLIP, whose score is a cosine.
"""

# n pictures, D width of the common space of images and texts

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.captions.judging import judge, summarize
from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.representations.weight_files import missing_package

__all__ = ["SYNTHETIC", "Agreement", "bench_agreement"]

SYNTHETIC: Final = "synthetic"
_MODELS: Final = "transformers:"
_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well pictures match their captions. `scores`: fractions or cosines by name; `scorer`: their source.

    For "synthetic": those of `bigr_repr.captions.summarize`. For a model: `cosine`, the mean over the pictures, and
    `found`, the fraction of pictures whose own caption is the nearest of all distinct captions.
    """

    scores: dict[str, float | int | None]
    scorer: str
    pictures: int
    protocol: str


def bench_agreement(
    generated: ImageSet,
    prompts: Sequence[str],
    scorer: str = SYNTHETIC,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Agreement of pictures with captions, which are assigned cyclically, as in `generate`.

    scorer: "synthetic", or transformers:NAME, an image-text model in the user's cache or a folder.
    Raises ValueError for no prompts, captions that the judge cannot read, or another scorer.
    """
    if not prompts:
        raise ValueError("prompts is empty; pass the captions from which the pictures were drawn")
    texts = [prompts[i % len(prompts)] for i in range(len(generated))]
    if scorer == SYNTHETIC:
        verdicts = []
        for i, text in enumerate(texts):
            verdicts.append(judge(generated.load(i), text))
            if on_progress is not None:
                on_progress(i + 1, len(texts))
        scores, what = summarize(verdicts), "an exact reader of the synthetic world's pictures"
    elif scorer.startswith(_MODELS):
        scores, what = _by_model(generated, texts, scorer.removeprefix(_MODELS), on_progress), scorer
    else:
        raise ValueError(f"scorer={scorer!r} is unknown; choose {SYNTHETIC} or {_MODELS}NAME")
    return Agreement(
        scores=scores, scorer=scorer, pictures=len(texts),
        protocol=f"{len(texts)} pictures of {len(set(texts))} captions, judged by {what}",
    )  # fmt: skip


def _by_model(
    generated: ImageSet, texts: Sequence[str], name: str, on_progress: Callable[[int, int], None] | None
) -> dict[str, float | int | None]:
    """Scores by an image-text model."""
    import torch

    model, processor = _open(name)
    different = list(dict.fromkeys(texts))
    captions, pictures = [], []
    with torch.inference_mode():
        for start in range(0, len(different), _BATCH):
            part = different[start : start + _BATCH]
            given = processor(text=part, return_tensors="pt", padding="max_length", truncation=True)
            captions.append(_unit(model.get_text_features(**given)))
        for start in range(0, len(texts), _BATCH):
            images = [generated.load(i) for i in range(start, min(start + _BATCH, len(texts)))]
            pictures.append(_unit(model.get_image_features(**processor(images=images, return_tensors="pt"))))
            if on_progress is not None:
                on_progress(start + len(images), len(texts))
    cosines = np.concatenate(pictures) @ np.concatenate(captions).T
    own = np.array([different.index(text) for text in texts])
    return {
        "pictures": len(texts),
        "cosine": float(cosines[np.arange(len(texts)), own].mean()),
        "found": float((cosines.argmax(axis=1) == own).mean()),
    }


def _unit(features: Any) -> NDArray[np.float32]:
    """Rows (n, D) of length 1."""
    rows = getattr(features, "pooler_output", features).float().numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _open(name: str) -> tuple[Any, Any]:
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise missing_package("transformers", f"{_MODELS}{name}") from error
    try:
        processor = library.AutoProcessor.from_pretrained(name, local_files_only=True)  # first: it needs no network
        model = library.AutoModel.from_pretrained(name, local_files_only=True).eval()
    except OSError as error:
        raise FileNotFoundError(
            f"{_MODELS}{name} is neither a folder of a model with its processor nor in this machine's cache; fetch it "
            f"once, with a connection: hf download {name}"
        ) from error
    if not (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
        raise ValueError(f"{_MODELS}{name} is not an image-text model; choose one such as CLIP")
    return model, processor
