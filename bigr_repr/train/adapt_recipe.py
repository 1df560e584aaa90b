"""The options of an adaptation. Light to import; knows nothing of tensors or data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bigr_repr.config import require
from bigr_repr.sampling.fields import check_options, documented, option

METHODS: Final = ("lora", "full", "classes")
CLASS_WAYS: Final = ("replace", "add")
TARGETS: Final = {"attention": ("wqkv", "wo"), "feed_forward": ("w1", "w2", "w3")}
MATRICES: Final = tuple(name for names in TARGETS.values() for name in names)
_RATES: Final = {"lora": 1e-3, "full": 2e-4, "classes": 1e-2}
_EPOCHS, _FEWEST, _MOST = 60, 300, 4000


@documented
@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """How a model is adapted. What you leave out follows from the number of pictures.

    Raises ValueError when made with a value that is not allowed.
    """

    method: str = option(
        "lora",
        "What is trained: low-rank changes of attention and feed-forward and the new classes (lora, a small adapter), "
        "all weights of the generator (full), or nothing but the new classes (classes).",
        choices=METHODS,
    )
    classes: str = option(
        "replace", "The classes of the pictures replace those of the model, or are added to them.", choices=CLASS_WAYS
    )
    minutes: float = option(10.0, "Training ends after this many minutes at the latest.", least=0.01)
    steps: int | None = option(
        None, "Most training steps.", usual="60 passes over the pictures, but 300 to 4000 steps", least=1
    )
    batch_size: int | None = option(None, "Pictures per step.", usual="an eighth of the pictures, but 8 to 64", least=1)
    learning_rate: float | None = option(None, "Learning rate.", usual="lora 1e-3, full 2e-4, classes 1e-2", least=0)
    held_out: float = option(
        0.2,
        "Share of each class's pictures held out, to decide when to stop and to measure.",
        least=0.01,
        most=0.9,
    )
    patience: int = option(
        3,
        "Training ends when this many looks at the held-out pictures, of ten in a run, show no gain.",
        least=1,
    )
    anchor: float = option(
        5.0,
        "Weight of a loss that keeps the features near the old model's, so that they still tell apart what they did; "
        "0: only drawing counts.",
        least=0,
    )
    rank: int = option(8, "Rank of the low-rank changes.", least=1)
    targets: str = option(
        "attention,feed_forward",
        "Matrices that lora changes, separated by commas: attention (wqkv, wo), feed_forward (w1, w2, w3), or single "
        "ones.",
    )
    mirror: bool = option(True, "Also learn from mirror images; turn it off for writing and the like.")
    tokenizer_too: bool = option(
        False, "Train the tokenizer first, for half of the time: for drawings, X-rays and whatever is not a photograph."
    )
    seed: int = option(0, "Random seed of new weights, held-out pictures, order and noise.", least=0)

    def __post_init__(self) -> None:
        check_options(self)
        require(self.learning_rate is None or self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _ = self.matrices

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices of each block that lora changes. Raises ValueError for an unknown name."""
        found: list[str] = []
        for name in (part.strip() for part in self.targets.split(",")):
            known = TARGETS.get(name, (name,) if name in MATRICES else ())
            rule = f"choose from {', '.join((*TARGETS, *MATRICES))}, separated by commas"
            require(bool(known), "targets", self.targets, rule)
            found += [each for each in known if each not in found]
        return tuple(found)

    def rate(self) -> float:
        """The learning rate, or the method's usual one."""
        return _RATES[self.method] if self.learning_rate is None else self.learning_rate

    def batch(self, images: int) -> int:
        """Pictures per step, for so many in all."""
        return self.batch_size or max(1, min(64, max(8, images // 8)))

    def length(self, images: int) -> int:
        """Most steps, for so many pictures."""
        return self.steps or min(_MOST, max(_FEWEST, _EPOCHS * images // self.batch(images)))
