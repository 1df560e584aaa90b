"""A training step of the generator: masks, losses, optimizers. Knows nothing of data or files.

Source: BiGR sections 3.2 and 4.1 and its appendix: AdamW(0.9, 0.95), weight decay 0.02 on matrices of the transformer,
clipping at 1, EMA, class dropout 0.1, residual dropout 0.1.
"""

# B batch, N tokens, K bits per token

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigr_repr.codes import grid_to_tokens
from bigr_repr.models.bigr import BiGR, Given, TrainingPass, drop_labels
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.models.transformer import Captions
from bigr_repr.train.alignment import AlignmentHeads, FeatureHeader
from bigr_repr.train.anchor import Anchor
from bigr_repr.train.batches import Batch
from bigr_repr.train.loop import Run
from bigr_repr.train.masking import draw_masks, read_positions
from bigr_repr.train.muon import Muon
from bigr_repr.train.recipe import GeneratorRecipe

log = logging.getLogger(__name__)

# Draws sample images with the averaged generator.
Sampler = Callable[[BiGR], Tensor]


def parameter_groups(model: BiGR, weight_decay: float) -> list[dict[str, Any]]:
    """The trained weights: the transformer's matrices with weight decay; vectors and the whole transcoder without."""
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
        anchor: Anchor | None = None,
    ) -> None:
        model.transformer.dropout = recipe.dropout
        if model.config.attention == "causal":
            model.transformer.mask_tok.requires_grad_(False)  # never used: processes would wait for its gradient
        self.modules: list[nn.Module] = [model]
        self.optimizers = make_optimizers(model, recipe)
        self._blocks: tuple[int, ...] = ()
        if features is not None:
            self._blocks = recipe.aligned_blocks(model.config)
            self.modules.append(AlignmentHeads(model.config.dim, features))
            self.optimizers.append(torch.optim.AdamW(self.modules[1].parameters(), betas=(0.9, 0.95), weight_decay=0))
        self._config, self._recipe, self._sampler, self._anchor = model.config, recipe, sampler, anchor
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
        """The labels or captions to learn; images without a label have "no class"."""
        if not self._recipe.conditional:
            return None
        if self._config.condition == "class":
            labels, no_class = batch.labels, self._config.classes
            return None if labels is None else torch.where(labels < 0, no_class, labels)
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
        total, extra = torch.zeros((), device=codes.device), dict[str, Tensor]()
        for index, (c, m, y, *features) in enumerate(pieces):
            last = index == len(pieces) - 1
            with accelerator.autocast():
                found, terms = self._pass(c, y, m, features, read)
                whole = len(codes) / len(c)  # the last piece may have fewer images
                loss = found.loss / whole
                total = total + loss.detach()
                for name, (weight, term) in terms.items():
                    extra[name] = extra.get(name, 0) + term.detach() / whole
                    loss = loss + weight * term / whole
            if last:
                mean = run.check(total, step)
                norm = run.descend(loss, self.optimizers, nn.ModuleList(self.modules), step)
            else:
                with accelerator.no_sync(model):
                    accelerator.backward(loss)
        return {"loss": mean, "gradient_norm": norm, "masked_share": masked.float().mean(), **extra}

    def _pass(
        self, codes: Tensor, given: Given | None, masked: Tensor, features: list[Tensor | None], read: Tensor | None
    ) -> tuple[TrainingPass, dict[str, tuple[float, Tensor]]]:
        """A pass of the generator, and additional loss terms, {name: (weight, value)}."""
        recipe, model, anchor = self._recipe, self.modules[0], self._anchor
        if anchor is not None:
            assert not isinstance(given, Captions)
            batch = anchor.beside(codes, given, masked, self._config.classes)
            found = model(batch[0], batch[1], batch[2], diffusion_draws=recipe.diffusion_draws, layers=(anchor.block,))
            return found, {"anchor": (anchor.weight, anchor.term(found.states, codes))}
        found = model(codes, given, masked, diffusion_draws=recipe.diffusion_draws, read=read, layers=self._blocks)
        if not self._blocks:
            return found, {}
        by_token, by_image = self._aligned(found.states, features, read)
        return found, {"align": (recipe.align_weight, by_token), "align_pooled": (recipe.pool_weight, by_image)}

    def _aligned(self, states: dict[int, Tensor], features: list[Tensor | None], read: Tensor | None) -> Tensor:
        """Distance of the heads' predictions from the other network's features, by token and pooled: (2,)."""
        tokens, pooled = features
        assert tokens is not None
        tokens = tokens if read is None else tokens[:, read]
        by_token, by_mean = (states[block] for block in self._blocks)
        return self.modules[1](by_token, by_mean, tokens, pooled)  # type: ignore[no-any-return]

    def samples(self, weights: dict[str, Tensor]) -> Tensor | None:
        """A grid of generated images, if there is a tokenizer to decode them; None once drawing one has failed."""
        if self._sampler is None:
            return None
        model = BiGR(self._config)
        model.load_state_dict(weights)
        try:
            return self._sampler(model.eval())
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            log.warning("sample images cannot be drawn (%s); training continues without them", error)
            self._sampler = None
            return None


def _chunks(part: Given | None, count: int, rows: int) -> Sequence[Given | None]:
    """One part of a batch, split into passes like its `rows`."""
    if isinstance(part, Captions):
        return [Captions(*pair) for pair in zip(*(each.chunk(count) for each in part), strict=True)]
    return [None] * len(range(0, rows, -(-rows // count))) if part is None else part.chunk(count)
