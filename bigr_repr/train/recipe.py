"""How a generator is trained: the options. Light to import; knows nothing of tensors, models or data."""

from __future__ import annotations

from dataclasses import dataclass

from bigr_repr.config import GeneratorConfig, require
from bigr_repr.options import check_options, documented, option

OPTIMIZERS = ("adamw", "muon")
MASKINGS = ("cosine", "half", "mixed")


@documented
@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained. Defaults are the paper's.

    Raises ValueError on construction for an invalid value.
    """

    conditional: bool | None = option(
        None, "Learn classes, so that the model can draw them.", usual="if the data have labels"
    )
    class_dropout: float = option(
        0.1, "Probability of training on an image without its label, which guidance needs.", least=0, most=1
    )
    dropout: float = option(0.1, "Dropout in the branches of each block.", least=0, most=1)
    weight_decay: float = option(0.02, "Weight decay of the transformer's matrices.", least=0)
    diffusion_draws: int = option(
        1, "Noisy versions of every masked token per pass; more gives a steadier loss at little cost.", least=1
    )
    accumulate: int = option(1, "Passes to split a batch into, to save memory.", least=1)
    sample_bits: bool = option(
        True, "When training on images, draw the tokenizer's bits at random instead of thresholding them."
    )
    mirror: bool = option(True, "When training on images, mirror every other one; turn this off for text and the like.")
    least_area: float = option(
        1.0,
        "When training on images, use random crops of at least this share of the area; 1: whole images.",
        least=0.01,
        most=1,
    )
    optimizer: str = option(
        "adamw",
        "AdamW for all weights (adamw), or Muon, at the same rate, for the blocks' matrices (muon).",
        choices=OPTIMIZERS,
    )
    masking: str = option(
        "cosine",
        "How many tokens are masked: as many as in a random iteration of the sampler (cosine), about half (half), or "
        "either, drawn for each image (mixed).",
        choices=MASKINGS,
    )
    light_share: float = option(
        0.0, "Share of the images in which at most a tenth of the tokens are masked.", least=0, most=1
    )
    read_share: float = option(
        1.0,
        "Share of the tokens that the transformer processes per step, above 0; fewer is faster. The last fifth of a "
        "run "
        "uses all.",
        least=0,
        most=1,
        remedy="1 reads all tokens",
    )
    align_weight: float = option(
        0.0,
        "Weight of a loss that aligns hidden states, token by token, with the features stored by train codes --align.",
        least=0,
    )
    align_block: int | None = option(
        None, "Block whose hidden states are aligned.", usual="a third of the way from the first to the last"
    )
    pool_weight: float = option(
        0.0, "Weight of a loss that aligns their mean over the tokens with the features of the whole image.", least=0
    )
    pool_block: int | None = option(
        None, "Block whose mean is aligned.", usual="three fifths of the way from the first to the last"
    )

    def __post_init__(self) -> None:
        check_options(self)
        require(self.read_share > 0, "read_share", self.read_share, "it must be above 0; 1 reads all tokens")

    @property
    def aligned(self) -> bool:
        """Whether training uses another network's features."""
        return self.align_weight > 0 or self.pool_weight > 0

    def aligned_blocks(self, config: GeneratorConfig) -> tuple[int, int]:
        """The blocks whose states are aligned, by token and pooled. Raises ValueError for blocks out of range."""
        given = (self.align_block, config.layers // 3), (self.pool_block, 3 * config.layers // 5)
        token, pooled = (config.layer_index(usual if block is None else block) for block, usual in given)
        return token, pooled
