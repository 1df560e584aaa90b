"""Training of the generator, from packed codes or from images. Knows nothing of how checkpoints are written.

Source: BiGR sections 3.2 and 4.1 and its appendix: AdamW(0.9, 0.95), weight decay 0.02 on matrices of the transformer,
clipping at 1, EMA, class dropout 0.1, residual dropout 0.1.
"""

# B batch, N tokens, K bits per token

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
from bigr_repr.codes import grid_to_tokens
from bigr_repr.config import ModelConfig
from bigr_repr.datasets import ImageSet
from bigr_repr.models.bigr import BiGR, Given, drop_labels
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.models.transformer import Captions
from bigr_repr.train.alignment import AlignmentFeatures, AlignmentHeads, FeatureHeader
from bigr_repr.train.batches import Batch, batches
from bigr_repr.train.caption_set import CaptionStore
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.loop import Run, TrainSettings, identify, train
from bigr_repr.train.masking import draw_masks, read_positions
from bigr_repr.train.muon import Muon
from bigr_repr.train.pace import compiling_pays, decided
from bigr_repr.train.recipe import GeneratorRecipe

log = logging.getLogger(__name__)
_TRIED = {"cpu": 4, "cuda": 16}  # images, to find what is fastest


def captions_of(data: ImageSet | CodeSet) -> CaptionStore | None:
    """The encoded captions of the data; None where there are none."""
    return data.captions if isinstance(data, CodeSet) else None


def for_data(recipe: GeneratorRecipe, data: ImageSet | CodeSet) -> GeneratorRecipe:
    """The recipe, with `conditional` decided."""
    if recipe.conditional is not None:
        return recipe
    return replace(recipe, conditional=data.labels is not None or captions_of(data) is not None)


def parameter_groups(model: BiGR, weight_decay: float) -> list[dict[str, Any]]:
    """Of what is trained, matrices of the transformer with weight decay; vectors and the whole transcoder without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = name.startswith("transformer.") and sum(size > 1 for size in parameter.shape) > 1
        (decayed if matrix and "ada_gss" not in name else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizers(model: BiGR, recipe: GeneratorRecipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the others.

    Source of Muon's rate: arXiv 2502.16982.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(groups, betas=(0.9, 0.95))]
    matrices = [p for p in model.transformer.layers.parameters() if p.ndim == 2]
    theirs = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95)), Muon(matrices, weight_decay=recipe.weight_decay)]


class GeneratorTask:
    """See `bigr_repr.train.loop.Task`."""

    def __init__(
        self,
        model: BiGR,
        recipe: GeneratorRecipe,
        tokenizer: BinaryAutoencoder | None,
        sampler: Sampler | None,
        features: FeatureHeader | None = None,
    ) -> None:
        model.transformer.dropout = recipe.dropout
        self.modules: list[nn.Module] = [model]
        self.optimizers = make_optimizers(model, recipe)
        self._blocks: tuple[int, ...] = ()
        if features is not None:
            self._blocks = recipe.aligned_blocks(model.config)
            self.modules.append(AlignmentHeads(model.config.dim, features))
            self.optimizers.append(torch.optim.AdamW(self.modules[1].parameters(), betas=(0.9, 0.95), weight_decay=0))
        self._config, self._recipe, self._sampler = model.config, recipe, sampler
        self._tokenizer = None if tokenizer is None else tokenizer.eval().requires_grad_(False)

    def _codes(self, batch: Batch) -> Tensor:
        if batch.codes is not None:
            return batch.codes.float()
        assert batch.images is not None
        assert self._tokenizer is not None
        tokenizer = self._tokenizer.to(batch.images.device)
        with torch.no_grad():
            bits = tokenizer.encode(batch.images.float() / 255, sample=self._recipe.sample_bits)
        return grid_to_tokens(bits)

    def _given(self, batch: Batch) -> Given | None:
        """The labels or captions that are learned."""
        if not self._recipe.conditional:
            return None
        if self._config.condition == "class":
            return batch.labels
        assert batch.captions is not None
        assert batch.caption_lengths is not None
        return Captions(batch.captions, batch.caption_lengths)

    def update(self, batch: Batch, step: int, run: Run) -> dict[str, Tensor]:
        recipe, accelerator, model = self._recipe, run.accelerator, self.modules[0].train()
        codes = self._codes(batch)
        labels = self._given(batch)
        if labels is not None:
            labels = drop_labels(labels, recipe.class_dropout, self._config.classes)
        read = read_positions(codes.shape[1], recipe.read_share, step / run.settings.steps, codes.device)
        masked = draw_masks(
            *codes.shape[:2], masking=recipe.masking, light_share=recipe.light_share, read=read, device=codes.device
        )
        parts: list[Given | None] = [codes, masked, labels, batch.features, batch.pooled]
        pieces: Any = list(zip(*(_chunks(part, recipe.accumulate, len(codes)) for part in parts), strict=True))
        total, aligned = torch.zeros((), device=codes.device), torch.zeros(2, device=codes.device)
        for index, (c, m, y, *features) in enumerate(pieces):
            last = index == len(pieces) - 1
            with accelerator.autocast():
                found = model(c, y, m, diffusion_draws=recipe.diffusion_draws, read=read, layers=self._blocks)
                loss = found.loss / len(pieces)
                total = total + loss.detach()
                if self._blocks:
                    terms = self._aligned(found.states, features, read) / len(pieces)
                    aligned = aligned + terms.detach()
                    loss = loss + recipe.align_weight * terms[0] + recipe.pool_weight * terms[1]
            if last:
                mean = run.check(total, step)
                norm = run.descend(loss, self.optimizers, nn.ModuleList(self.modules), step)
            else:
                with accelerator.no_sync(model):
                    accelerator.backward(loss)
        scalars = {"loss": mean, "gradient_norm": norm, "masked_share": masked.float().mean()}
        return scalars | ({"align": aligned[0], "align_pooled": aligned[1]} if self._blocks else {})

    def _aligned(self, states: dict[int, Tensor], features: list[Tensor | None], read: Tensor | None) -> Tensor:
        """How far the heads' predictions are from the other network's features, by token and pooled: (2,)."""
        tokens, pooled = features
        assert tokens is not None
        tokens = tokens if read is None else tokens[:, read]
        by_token, by_mean = (states[block] for block in self._blocks)
        return self.modules[1](by_token, by_mean, tokens, pooled)  # type: ignore[no-any-return]

    def samples(self, weights: dict[str, Tensor]) -> Tensor | None:
        """A grid of generated images, when there is a tokenizer to decode them."""
        if self._sampler is None:
            return None
        model = BiGR(self._config)
        model.load_state_dict(weights)
        return self._sampler(model.eval())


def _chunks(part: Given | None, count: int, rows: int) -> Sequence[Given | None]:
    """What a batch holds of one kind, split into passes as its `rows` are."""
    if isinstance(part, Captions):
        return [Captions(*pair) for pair in zip(*(each.chunk(count) for each in part), strict=True)]
    return [None] * len(range(0, rows, -(-rows // count))) if part is None else part.chunk(count)


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
    compile_blocks: bool | None = None,
    recompute: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> BiGR:
    """Train a generator and return it with averaged weights, in eval mode.

    `data`: a packed code data set, or images, which then need the `tokenizer`; with codes it is checked to be the one
    that made them. A recipe with alignment takes codes with features beside them. `initial` starts from other weights,
    which `initial_name` names in the run's record. `compile_blocks` None: where it pays. `recompute`: run blocks again
    for the backward pass, for less memory. Raises ValueError when labels, code widths or the tokenizer misfit.
    """
    recipe = for_data(recipe or GeneratorRecipe(), data)
    _check(data, config, settings, recipe, tokenizer)
    tokenizer_sha256, features = _tokenizer_of(data, tokenizer), _features_of(data, config, recipe)
    header = None if features is None else features.header
    model = _new_model(config, settings.seed, initial, recompute)
    settings = decided(settings, partial(trial_step, model))
    _compile(model, compiling_pays(settings) if compile_blocks is None else compile_blocks)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed + 1)
        task = GeneratorTask(model, recipe, tokenizer, sampler, header)
    record = identify(
        settings, task="generator", config=config.generator.to_dict(), objective=asdict(recipe), items=len(data),
        features=None if header is None else [header.network, header.weights_sha256], initial=initial_name,
        tokenizer_sha256=tokenizer_sha256, **_caption_facts(data, config),
    )  # fmt: skip
    stream = partial(batches, data, image_size=config.image_size, features=features)
    model = BiGR(config.generator)
    model.load_state_dict(train(task, stream, settings, record=record, on_step=on_step))
    return model.eval()


def _caption_facts(data: ImageSet | CodeSet, config: ModelConfig) -> dict[str, Any]:
    """What the run's record says of captions; nothing of a model of classes."""
    store = captions_of(data)
    if store is None or config.generator.condition == "class":
        return {}
    return {"captions": dict(store.header.sha256), "text_encoder_sha256": store.header.encoder_sha256}


def _check_captions(data: ImageSet | CodeSet, config: ModelConfig) -> None:
    """Raises ValueError unless the data have captions that the model can learn."""
    store, ours = captions_of(data), config.generator
    if store is None:
        raise ValueError("the data have no encoded captions; make some with: bigr-repr train captions")
    theirs = store.header
    if theirs.encoder_sha256 != config.text_encoder_sha256:
        raise ValueError(
            f"the captions were encoded by {theirs.encoder} ({theirs.encoder_sha256[:12]}…), the model reads those of "
            f"{config.text_encoder} ({config.text_encoder_sha256[:12]}…); make them anew: bigr-repr train captions"
        )
    if theirs.width != ours.caption_dim or theirs.longest > ours.caption_tokens:
        raise ValueError(
            f"captions have up to {theirs.longest} tokens of width {theirs.width}; the generator reads "
            f"caption_tokens={ours.caption_tokens} of caption_dim={ours.caption_dim}"
        )


def _features_of(data: ImageSet | CodeSet, config: ModelConfig, recipe: GeneratorRecipe) -> AlignmentFeatures | None:
    """The other network's features that a recipe with alignment learns; None for one without."""
    if not recipe.aligned:
        return None
    recipe.aligned_blocks(config.generator)  # raises ValueError for a block that is not there
    if not isinstance(data, CodeSet):
        raise ValueError("align_weight needs features made beforehand; encode first: bigr-repr train codes --align")
    return AlignmentFeatures(data)


def _new_model(config: ModelConfig, seed: int, initial: BiGR | None, recompute: bool) -> BiGR:
    """A generator with weights of a seed, or those of another model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BiGR(config.generator)
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    model.transformer.recompute = recompute
    return model


def _compile(model: BiGR, wanted: bool) -> None:
    for block in model.transformer.layers if wanted else ():
        block.compile()


def trial_step(model: BiGR, device: torch.device) -> Callable[[], None]:
    """Forward and backward on random codes."""
    config = model.to(device).train().config
    images = _TRIED.get(device.type, 4)
    codes = (torch.rand(images, config.tokens, config.code_bits, device=device) > 0.5).float()
    masked = torch.rand(images, config.tokens, device=device) > 0.5

    def step() -> None:
        model(codes, None, masked).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def _check(
    data: ImageSet | CodeSet,
    config: ModelConfig,
    settings: TrainSettings,
    recipe: GeneratorRecipe,
    tokenizer: BinaryAutoencoder | None,
) -> None:
    if recipe.optimizer == "muon" and settings.precision == "fp16":
        raise ValueError(
            "precision='fp16' scales the loss for one optimizer only; with muon choose bfloat16 or float32"
        )
    if config.generator.attention == "causal" and recipe.read_share < 1:
        raise ValueError(f"read_share={recipe.read_share} is for attention='full'; a causal model reads all tokens: 1")
    if isinstance(data, CodeSet):
        ours = (config.generator.tokens, config.generator.code_bits)
        theirs = (data.header.tokens, data.header.code_bits)
        if ours != theirs:
            raise ValueError(f"codes have (tokens, code_bits)={theirs}; the generator needs {ours}")
    elif tokenizer is None:
        raise ValueError("tokenizer is missing: training from images needs the tokenizer that encodes them")
    if config.generator.condition == "text":
        _check_captions(data, config)
    elif recipe.conditional:
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
