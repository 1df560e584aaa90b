"""Training of the generator, from packed codes or from images. Knows nothing of how checkpoints are written.

Source: BiGR sections 3.2 and 4.1 and its appendix: AdamW(0.9, 0.95), weight decay 0.02 on matrices of the transformer,
clipping at 1, EMA, class dropout 0.1, residual dropout 0.1.
"""

# B batch, N tokens, K bits per token

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
from bigr_repr.codes import grid_to_tokens
from bigr_repr.config import ModelConfig
from bigr_repr.datasets import ImageSet
from bigr_repr.models.bigr import BiGR, draw_mask
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.batches import Batch, batches
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.loop import Run, TrainSettings, identify, train

log = logging.getLogger(__name__)
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained. Defaults are the paper's, but for `diffusion_draws` (1 there as well).

    `conditional`: learn classes; None: if the data have labels. `class_dropout` is the chance that a label becomes "no
    class". `diffusion_draws` noisy versions of every masked token share one pass of the transformer: a steadier loss
    for little work. `accumulate` splits a batch into that many passes. `sample_bits` draws the bits of images from the
    tokenizer's probabilities, for a tokenizer that was trained so; packed codes are what they are. `optimizer` is
    "adamw" for all weights, or "muon" (orthogonalized momentum, at the same rate) for the matrices of the blocks.
    """

    conditional: bool | None = None
    class_dropout: float = 0.1
    dropout: float = 0.1
    weight_decay: float = 0.02
    diffusion_draws: int = 1
    accumulate: int = 1
    sample_bits: bool = True
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        for name in ("class_dropout", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside 0..1")
        if not self.weight_decay >= 0:  # so worded that NaN fails
            raise ValueError(f"weight_decay={self.weight_decay} must be at least 0")
        for name in ("diffusion_draws", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def for_data(recipe: GeneratorRecipe, data: ImageSet | CodeSet) -> GeneratorRecipe:
    """The recipe, with `conditional` decided."""
    if recipe.conditional is not None:
        return recipe
    return replace(recipe, conditional=data.labels is not None)


def parameter_groups(model: BiGR, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of the transformer with weight decay; vectors and the whole transcoder without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = name.startswith("transformer.") and sum(size > 1 for size in parameter.shape) > 1
        (decayed if matrix and "ada_gss" not in name else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizers(model: BiGR, recipe: GeneratorRecipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the others.

    Raises ValueError when this PyTorch has no Muon (2.9 brought it). Source of Muon's rate: arXiv 2502.16982.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(groups, betas=(0.9, 0.95))]
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer='muon' needs PyTorch 2.9 or newer, this is {torch.__version__}; choose adamw")
    matrices = [p for p in model.transformer.layers.parameters() if p.ndim == 2]
    theirs = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    muon = torch.optim.Muon(matrices, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95)), muon]


class GeneratorTask:
    """See `bigr_repr.train.loop.Task`."""

    def __init__(
        self, model: BiGR, recipe: GeneratorRecipe, tokenizer: BinaryAutoencoder | None, sampler: Sampler | None
    ) -> None:
        model.transformer.dropout = recipe.dropout
        self.modules: list[nn.Module] = [model]
        self.optimizers = make_optimizers(model, recipe)
        self._config, self._recipe, self._tokenizer, self._sampler = model.config, recipe, tokenizer, sampler

    def _codes(self, batch: Batch) -> Tensor:
        if batch.codes is not None:
            return batch.codes.float()
        assert batch.images is not None
        assert self._tokenizer is not None
        tokenizer = self._tokenizer.to(batch.images.device)
        with torch.no_grad():
            bits = tokenizer.encode(batch.images.float() / 255, sample=self._recipe.sample_bits)
        return grid_to_tokens(bits)

    def update(self, batch: Batch, step: int, run: Run) -> dict[str, Tensor]:
        recipe, accelerator, model = self._recipe, run.accelerator, self.modules[0].train()
        codes = self._codes(batch)
        labels = batch.labels if recipe.conditional else None
        if labels is not None:
            dropped = torch.rand(labels.shape, device=labels.device) < recipe.class_dropout
            labels = torch.where(dropped, self._config.classes, labels)
        masked = draw_mask(*codes.shape[:2], generator=None, device=codes.device)
        pieces = list(zip(codes.chunk(recipe.accumulate), masked.chunk(recipe.accumulate), strict=True))
        label_pieces = [None] * len(pieces) if labels is None else list(labels.chunk(recipe.accumulate))
        total = torch.zeros((), device=codes.device)
        for index, ((c, m), y) in enumerate(zip(pieces, label_pieces, strict=True)):
            last = index == len(pieces) - 1
            with accelerator.autocast():
                loss = model(c, y, m, diffusion_draws=recipe.diffusion_draws) / len(pieces)
            total = total + loss.detach()
            if last:
                mean = run.check(total, step)
                norm = run.descend(loss, self.optimizers, model, step)
            else:
                with accelerator.no_sync(model):
                    accelerator.backward(loss)
        return {"loss": mean, "gradient_norm": norm, "masked_share": masked.float().mean()}

    def samples(self, weights: dict[str, Tensor]) -> Tensor | None:
        """A grid of generated images, when there is a tokenizer to decode them."""
        if self._sampler is None:
            return None
        model = BiGR(self._config)
        model.load_state_dict(weights)
        return self._sampler(model.eval())


# Draws a picture of what the averaged generator makes.
Sampler = Callable[[BiGR], Tensor]


def train_generator(
    data: ImageSet | CodeSet,
    config: ModelConfig,
    settings: TrainSettings,
    recipe: GeneratorRecipe | None = None,
    *,
    tokenizer: BinaryAutoencoder | None = None,
    initial: BiGR | None = None,
    initial_name: str = "",
    sampler: Sampler | None = None,
    compile_blocks: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> BiGR:
    """Train a generator and return it with averaged weights, in eval mode.

    `data`: a packed code data set, or images, which then need the `tokenizer`; with codes it is checked to be the one
    that made them. `initial` starts from other weights, which `initial_name` names in the run's record.
    Raises ValueError when labels, code widths or the tokenizer do not fit.
    """
    recipe = for_data(recipe or GeneratorRecipe(), data)
    _check(data, config, recipe, tokenizer)
    tokenizer_sha256 = _tokenizer_of(data, tokenizer)
    if recipe.optimizer == "muon" and settings.precision == "fp16":
        raise ValueError(
            "precision='fp16' scales the loss for one optimizer only; with muon choose bfloat16 or float32"
        )

    def stream(first_step: int, rank: int, ranks: int) -> Iterator[Batch]:
        return batches(
            data,
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            image_size=config.image_size,
            workers=settings.workers,
            rank=rank,
            ranks=ranks,
        )

    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = BiGR(config.generator)
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    if compile_blocks:
        for block in model.transformer.layers:
            block.compile()
    if tokenizer is not None:
        tokenizer = tokenizer.eval().requires_grad_(False)
    task = GeneratorTask(model, recipe, tokenizer, sampler)
    record = identify(
        settings,
        task="generator",
        config=asdict(config.generator),
        objective=asdict(recipe),
        items=len(data),
        initial=initial_name,
        tokenizer_sha256=tokenizer_sha256,
    )
    weights = train(task, stream, settings, record=record, on_step=on_step)
    trained = BiGR(config.generator)
    trained.load_state_dict(weights)
    return trained.eval()


def _check(
    data: ImageSet | CodeSet, config: ModelConfig, recipe: GeneratorRecipe, tokenizer: BinaryAutoencoder | None
) -> None:
    if isinstance(data, CodeSet):
        ours = (config.generator.tokens, config.generator.code_bits)
        theirs = (data.header.tokens, data.header.code_bits)
        if ours != theirs:
            raise ValueError(f"codes have (tokens, code_bits)={theirs}; the generator needs {ours}")
    elif tokenizer is None:
        raise ValueError("tokenizer is missing: training from images needs the tokenizer that encodes them")
    if recipe.conditional:
        if data.labels is None:
            raise ValueError(
                "the data have no labels to learn classes from; leave conditional out, or give class folders"
            )
        if int(data.labels.max()) >= config.generator.classes:
            found = int(data.labels.max())
            raise ValueError(f"label {found} is outside 0..{config.generator.classes - 1}; set classes={found + 1}")


def _tokenizer_of(data: ImageSet | CodeSet, tokenizer: BinaryAutoencoder | None) -> str | None:
    """Fingerprint of the tokenizer whose codes are learned. Raises ValueError if another one is given."""
    given = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    if not isinstance(data, CodeSet):
        return given
    made = data.header.tokenizer_sha256
    if made is None:
        log.warning(
            "%s does not say which weights made its codes; if they are not those of the tokenizer given, the model "
            "draws noise; to be sure, make them again with: bigr-repr train codes",
            data.folder,
        )
    elif given is not None and given != made:
        theirs = f"{data.header.tokenizer} (SHA-256 {made[:12]}…)"
        raise ValueError(
            f"the codes in {data.folder} were made by the tokenizer {theirs}, the one given is another "
            f"(SHA-256 {given[:12]}…); give that tokenizer, or make the codes again with: bigr-repr train codes"
        )
    return made or given
