"""The options of an adaptation. Light to import; knows nothing of tensors or data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from bigr_repr.config import require
from bigr_repr.options import check_options, documented, option

METHODS: Final = ("lora", "full", "classes")
CLASS_WAYS: Final = ("replace", "add")
TARGETS: Final = {"attention": ("wqkv", "wo"), "feed_forward": ("w1", "w2", "w3")}
MATRICES: Final = tuple(name for names in TARGETS.values() for name in names)
_RATES: Final = {"lora": 1e-3, "full": 2e-4, "classes": 1e-2}
_EPOCHS, _FEWEST, _MOST = 60, 300, 4000


@documented
@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """How a model is adapted. Unset options depend on the number of pictures.

    Raises ValueError on construction for an invalid value.
    """

    method: str = option(
        "lora",
        "What is trained: low-rank updates of the attention and feed-forward layers and the new classes (lora, a small "
        "adapter), all weights of the generator (full), or only the new classes (classes).",
        choices=METHODS,
    )
    classes: str = option(
        "replace", "Whether the pictures' classes replace the model's or are added to them.", choices=CLASS_WAYS
    )
    minutes: float = option(10.0, "Maximum training time in minutes.", least=0.01)
    steps: int | None = option(
        None,
        "Maximum number of training steps.",
        usual="60 passes over the pictures, within 300 to 4000 steps",
        least=1,
    )
    batch_size: int | None = option(
        None, "Pictures per step.", usual="an eighth of the pictures, within 8 to 64", least=1
    )
    learning_rate: float | None = option(None, "Learning rate.", usual="lora 1e-3, full 2e-4, classes 1e-2", least=0)
    held_out: float = option(
        0.2,
        "Share of each class's pictures held out, for early stopping and evaluation.",
        least=0.01,
        most=0.9,
    )
    patience: int = option(
        3,
        "Stop after this many evaluations on the held-out pictures, of ten per run, without improvement.",
        least=1,
    )
    anchor: float = option(
        5.0,
        "Weight of a loss that keeps the features near the old model's, to preserve their quality; 0: train only for "
        "drawing.",
        least=0,
    )
    rank: int = option(8, "Rank of the low-rank updates.", least=1)
    targets: str = option(
        "attention,feed_forward",
        "Matrices that lora updates, separated by commas: attention (wqkv, wo), feed_forward (w1, w2, w3), or single "
        "ones.",
    )
    mirror: bool = option(True, "Also learn from mirror images; turn this off for text and the like.")
    tokenizer_too: bool = option(
        False,
        "Train the tokenizer first, for half of the time: for drawings, X-rays and anything else that is not "
        "a photograph.",
    )
    seed: int = option(0, "Random seed for new weights, held-out pictures, order and noise.", least=0)

    def __post_init__(self) -> None:
        check_options(self)
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "it must be above 0 and finite")
        require(self.anchor < math.inf, "anchor", self.anchor, "it must be finite")
        require(self.seed < 2**32, "seed", self.seed, f"it must be a whole number in 0..{2**32 - 1}")
        _ = self.matrices

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices of each block that lora updates. Raises ValueError for an unknown name."""
        found: list[str] = []
        for name in (part.strip() for part in self.targets.split(",")):
            known = TARGETS.get(name, (name,) if name in MATRICES else ())
            rule = f"choose from {', '.join((*TARGETS, *MATRICES))}, separated by commas"
            require(bool(known), "targets", self.targets, rule)
            found += [each for each in known if each not in found]
        return tuple(found)

    def rate(self) -> float:
        """The learning rate, or the method's default."""
        return _RATES[self.method] if self.learning_rate is None else self.learning_rate

    def batch(self, images: int) -> int:
        """Pictures per step, given the total number."""
        return self.batch_size or max(1, min(64, max(8, images // 8)))

    def length(self, images: int) -> int:
        """The maximum number of steps, given the number of pictures."""
        return self.steps or min(_MOST, max(_FEWEST, _EPOCHS * images // self.batch(images)))
