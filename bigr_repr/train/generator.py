"""Trains the generator, from packed codes or images. Knows nothing of how checkpoints are written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
from bigr_repr.config import ModelConfig
from bigr_repr.datasets import ImageSet
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.alignment import AlignmentFeatures
from bigr_repr.train.batches import batches, views_of
from bigr_repr.train.caption_set import CaptionStore
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.generator_task import GeneratorTask, Sampler
from bigr_repr.train.loop import train
from bigr_repr.train.mixture import CodeMixture
from bigr_repr.train.pace import compiling_pays, decided
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.settings import TrainSettings, identify, objective_of

log = logging.getLogger(__name__)
_TRIED = {"cpu": 4, "cuda": 16}  # images in the speed trial


def captions_of(data: ImageSet | CodeSet) -> CaptionStore | None:
    """The encoded captions of the data; None if there are none."""
    return data.captions if isinstance(data, CodeSet) else None


def for_data(recipe: GeneratorRecipe, data: ImageSet | CodeSet) -> GeneratorRecipe:
    """The recipe with `conditional` resolved."""
    if recipe.conditional is not None:
        return recipe
    return replace(recipe, conditional=_labels_of(data) is not None or captions_of(data) is not None)


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

    `data`: a packed code data set, or images, which need the `tokenizer`; with codes, it must be the one that made
    them. A recipe with alignment needs codes with stored features. `initial`: weights to start from, named
    `initial_name` in the run's record. `compile_blocks`: None: if worthwhile. `recompute`: rerun blocks in the backward
    pass, to save memory. Raises ValueError if labels, code widths or the tokenizer do not match.
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
        settings, task="generator", config=config.generator.to_dict(), objective=objective_of(recipe), items=len(data),
        features=None if header is None else [header.network, header.weights_sha256], initial=initial_name,
        tokenizer_sha256=tokenizer_sha256, **_code_facts(data), **_caption_facts(data, config),
    )  # fmt: skip
    stream = partial(batches, data, image_size=config.image_size, features=features, **views_of(recipe))
    model = BiGR(config.generator)
    model.load_state_dict(train(task, stream, settings, record=record, on_step=on_step))
    return model.eval()


def _code_facts(data: ImageSet | CodeSet) -> dict[str, Any]:
    """The run record's entries for images or packed codes; code sets of older versions have no checksums."""
    if not isinstance(data, CodeSet):
        return {"images_fingerprint": data.fingerprint()}
    drawn = {"draws": data.draws} if isinstance(data, CodeMixture) else {}
    return {"codes": dict(data.header.sha256), **drawn} if data.header.sha256 else drawn


def _caption_facts(data: ImageSet | CodeSet, config: ModelConfig) -> dict[str, Any]:
    """The run record's entries for captions; empty for a class model."""
    store = captions_of(data)
    if store is None or config.generator.condition == "class":
        return {}
    return {"captions": dict(store.header.sha256), "text_encoder_sha256": store.header.encoder_sha256}


def _check_captions(data: ImageSet | CodeSet, config: ModelConfig) -> None:
    """Raise ValueError unless the data have captions that the model can learn."""
    store, ours = captions_of(data), config.generator
    if store is None:
        raise ValueError("the data have no encoded captions; make some with: bigr-repr train captions")
    theirs = store.header
    if theirs.encoder_sha256 != config.text_encoder_sha256:
        raise ValueError(
            f"the captions were encoded by {theirs.encoder} ({theirs.encoder_sha256[:12]}…), the model needs those of "
            f"{config.text_encoder} ({config.text_encoder_sha256[:12]}…); encode them again: bigr-repr train captions"
        )
    if theirs.width != ours.caption_dim or theirs.longest > ours.caption_tokens:
        raise ValueError(
            f"captions have up to {theirs.longest} tokens of width {theirs.width}; the generator reads "
            f"caption_tokens={ours.caption_tokens} of caption_dim={ours.caption_dim}"
        )


def _features_of(data: ImageSet | CodeSet, config: ModelConfig, recipe: GeneratorRecipe) -> AlignmentFeatures | None:
    """The other network's features for a recipe with alignment; None without alignment."""
    if not recipe.aligned:
        return None
    recipe.aligned_blocks(config.generator)  # raises ValueError for an unknown block
    if not isinstance(data, CodeSet):
        raise ValueError("align_weight needs stored features; encode first: bigr-repr train codes --align")
    if isinstance(data, CodeMixture):
        raise ValueError(
            "align_weight needs a single code set, because features of several cannot be mixed; encode them together"
        )
    return AlignmentFeatures(data)


def _new_model(config: ModelConfig, seed: int, initial: BiGR | None, recompute: bool) -> BiGR:
    """A generator with random weights from a seed, or with those of another model."""
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
        raise ValueError("precision='fp16' supports only one optimizer; with muon choose bfloat16 or float32")
    if config.generator.attention == "causal" and recipe.read_share < 1:
        raise ValueError(f"read_share={recipe.read_share} is for attention='full'; a causal model reads all tokens: 1")
    if isinstance(data, CodeSet):
        ours = (config.generator.tokens, config.generator.code_bits)
        theirs = (data.header.tokens, data.header.code_bits)
        if ours != theirs:
            raise ValueError(f"codes have (tokens, code_bits)={theirs}; the generator needs {ours}")
        if recipe.least_area < 1 or not recipe.mirror:
            views = "codes have their views: train codes --crops, --no-mirror"
            raise ValueError(f"least_area={recipe.least_area:g} and mirror are for training on images; {views}")
    elif tokenizer is None:
        raise ValueError("tokenizer is missing: training from images needs the tokenizer that encodes them")
    if config.generator.condition == "text":
        _check_captions(data, config)
    elif recipe.conditional:
        labels = _labels_of(data)
        if labels is None:
            raise ValueError(
                "the data have no labels to learn classes from; leave conditional out, or give class folders"
            )
        if int(labels.max()) >= config.generator.classes:
            found = int(labels.max())
            raise ValueError(f"label {found} is outside 0..{config.generator.classes - 1}; set classes={found + 1}")
        if bare := int((labels < 0).sum()):
            log.warning("%d of %d images have no label and are learned without a class", bare, len(labels))


def _labels_of(data: ImageSet | CodeSet) -> NDArray[np.int64] | None:
    """The labels, int64 (n,), negative where an image has none; None if no image has one."""
    return None if data.labels is None or int(data.labels.max()) < 0 else data.labels


def _tokenizer_of(data: ImageSet | CodeSet, tokenizer: BinaryAutoencoder | None) -> str | None:
    """The fingerprint of the tokenizer whose codes are learned. Raises ValueError if another one is given."""
    given = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    if not isinstance(data, CodeSet):
        return given
    made = data.header.tokenizer_sha256
    if made is None:
        log.warning(
            "%s does not record which weights made its codes; if they are not those of the given tokenizer, the model "
            "will draw noise; to be sure, make them again with: bigr-repr train codes",
            data.folder,
        )
    elif given is not None and given != made:
        theirs = f"{data.header.tokenizer} (SHA-256 {made[:12]}…)"
        raise ValueError(
            f"the codes in {data.folder} were made by the tokenizer {theirs}, but the given one is different "
            f"(SHA-256 {given[:12]}…); use that tokenizer, or make the codes again with: bigr-repr train codes"
        )
    return made or given
