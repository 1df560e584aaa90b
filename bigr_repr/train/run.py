"""Complete training runs by name and path, as started by the command line. Knows nothing of losses."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bigr_repr.checkpoints.pretrained import Pretrained, load, load_tokenizer, save, save_tokenizer
from bigr_repr.config import ModelConfig
from bigr_repr.config import preset as architecture
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns
from bigr_repr.train.caption_set import CaptionStore, StoredTexts
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.distributed import on_main_process
from bigr_repr.train.generator import captions_of, for_data, train_generator, trial_step
from bigr_repr.train.generator_task import Sampler
from bigr_repr.train.initial import begun_from, widened
from bigr_repr.train.mixture import CodeMixture, split_weight
from bigr_repr.train.pace import decided
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.settings import TrainSettings
from bigr_repr.train.tokenizer import TokenizerRecipe, train_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.checkpoints.text_encoders import TextEncoder
    from bigr_repr.models.bigr import BiGR
    from bigr_repr.models.tokenizer import BinaryAutoencoder


_UNRECORDED = ("out", "cpu", "resume", "max_time")  # settings of this machine and start; the record is published


def open_training_data(sources: Sequence[str], columns: Columns = USUAL_COLUMNS) -> ImageSet | CodeSet:
    """A packed code data set if the source is such a folder, several as a mixture, otherwise an image set.

    Each of several code sets may have a weight, as in "FOLDER:3". columns: of Parquet files.
    """
    if len(sources) == 1 and (Path(sources[0]) / "codes.json").exists():
        return CodeSet(sources[0])
    parts = [split_weight(source) for source in sources]
    packed = [(Path(folder) / "codes.json").exists() for folder, _ in parts]
    if all(packed):
        return CodeMixture([CodeSet(folder) for folder, _ in parts], [weight for _, weight in parts])
    if any(packed):
        raise ValueError(
            f"{', '.join(sources)}: code sets and images cannot be mixed; encode all of them with: train codes"
        )
    return open_images(sources, columns=columns)


def sample_grid(
    config: ModelConfig,
    tokenizer: BinaryAutoencoder,
    labels: Sequence[int] | None,
    prompts: Sequence[str] | None = None,
    reader: TextEncoder | None = None,
) -> Sampler:
    """A function that draws 16 images with a generator as one picture, cycling through the labels or prompts.

    reader: encodes the prompts; None: the model's own text encoder.
    """
    from torchvision.utils import make_grid

    from bigr_repr.sampling.applications import generate
    from bigr_repr.sampling.settings import SamplingSettings, usual_settings

    def draw(generator: BiGR) -> Tensor:
        # Training from images may have moved the tokenizer to a different device.
        own = copy.deepcopy(tokenizer).to(next(generator.parameters()).device)
        model = Pretrained(config=config, tokenizer=own, generator=generator)
        if reader is not None:
            vars(model)["text_encoder"] = reader  # in place of the one that it would load on first use
        chosen = None if labels is None else [labels[i % len(labels)] for i in range(16)]
        # Few and short iterations: a quick preview, not the model's best.
        usual = usual_settings(config.generator, SamplingSettings(steps=8))
        short = min(16, config.generator.sample_timesteps)
        images = generate(model, labels=chosen, prompt=prompts, count=16, settings=usual, diffusion_steps=short, seed=0)
        grid: Tensor = make_grid(images.clamp(0, 1).cpu(), nrow=8, padding=2)
        return (grid * 255).round().to(torch.uint8)

    return draw


def run_tokenizer_training(
    data: Sequence[str],
    settings: TrainSettings,
    recipe: TokenizerRecipe,
    *,
    preset: str,
    code_bits: int | None = None,
    initial: str | None = None,
    columns: Columns = USUAL_COLUMNS,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train a tokenizer on `data`; returns its folder, `settings.out`/tokenizer.

    `initial`: a tokenizer's folder or a model's name, whose weights and architecture replace the preset's. `code_bits`:
    bits per token, if different; a trained tokenizer can only gain bits. columns: of Parquet files.
    """
    start = None if initial is None else load_tokenizer(initial)
    if start is None:
        config = architecture(preset, code_bits=code_bits).tokenizer
    else:
        start = start if code_bits is None else widened(start, code_bits, seed=settings.seed)
        config = start.config
    images = open_images(data, columns=columns)
    model = train_tokenizer(images, config, settings, recipe, initial=start, on_step=on_step)
    folder = Path(settings.out) / "tokenizer"
    on_main_process(lambda: save_tokenizer(model, folder))
    return folder


def _config_for(
    source: ImageSet | CodeSet,
    tokenizer: BinaryAutoencoder,
    preset: str,
    network: Mapping[str, Any],
    *,
    by_text: bool,
) -> ModelConfig:
    """A preset's architecture for the classes or captions of the data and the codes of the tokenizer.

    network: other fields of the generator.
    """
    names = source.header.class_names if isinstance(source, CodeSet) else source.class_names
    store: CaptionStore | None = captions_of(source) if by_text else None
    of_text: dict[str, Any] = {}
    if store is not None:
        names = ()
        header = store.header
        of_text = {"text_encoder": header.encoder, "text_encoder_sha256": header.encoder_sha256}
    classes = len(names) or (1 if source.labels is None else max(1, int(source.labels.max()) + 1))
    base = architecture(preset, code_bits=tokenizer.config.code_bits, classes=classes)
    generator = dataclasses.replace(base.generator, grid=tokenizer.config.grid, **network)
    if store is not None:
        generator = dataclasses.replace(
            generator, condition="text", classes=1, caption_dim=header.width, caption_tokens=header.longest
        )
    return ModelConfig(name=base.name, tokenizer=tokenizer.config, generator=generator, class_names=names, **of_text)


def _sampler(
    source: ImageSet | CodeSet, config: ModelConfig, tokenizer: BinaryAutoencoder, recipe: GeneratorRecipe
) -> Sampler:
    """The sample function, for classes or the first captions, if the model learns them."""
    if not recipe.conditional:
        return sample_grid(config, tokenizer, None)
    store, classes = captions_of(source), config.generator.classes
    if store is not None:
        return sample_grid(config, tokenizer, None, store.texts(16), StoredTexts(store, 16))
    return sample_grid(config, tokenizer, list(range(0, classes, max(1, classes // 16))))


def _settings_record(settings: TrainSettings, recipe: GeneratorRecipe) -> dict[str, Any]:
    """What describes the model, for its record."""
    both = {**dataclasses.asdict(settings), **dataclasses.asdict(recipe)}
    return {name: value for name, value in both.items() if name not in _UNRECORDED}


def run_generator_training(
    data: Sequence[str],
    tokenizer: str,
    settings: TrainSettings,
    recipe: GeneratorRecipe,
    *,
    preset: str,
    objective: str = "flip",
    attention: str = "full",
    output_head: str = "bernoulli",
    name: str | None = None,
    initial: str | None = None,
    compile_blocks: bool | None = None,
    recompute: bool = False,
    columns: Columns = USUAL_COLUMNS,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train a generator on `data` for the tokenizer at `tokenizer`; returns the model folder, `settings.out`/model."""
    started = time.time()
    source, encoder = open_training_data(data, columns), load_tokenizer(tokenizer)
    recipe = for_data(recipe, source)
    training: dict[str, Any] = {"data": [Path(item).name for item in data], "images": len(source)}
    training |= {"settings": _settings_record(settings, recipe)}
    network = {"objective": objective, "attention": attention, "output_head": output_head}
    config = _config_for(source, encoder, preset, network, by_text=bool(recipe.conditional))
    config = dataclasses.replace(config, name=name or config.name, training=training)
    start = None if initial is None else load(initial)
    model = train_generator(
        source, config, settings, recipe, tokenizer=encoder, sampler=_sampler(source, config, encoder, recipe),
        recompute=recompute,
        initial=None if start is None else begun_from(start, config, seed=settings.seed),
        initial_name="" if start is None else start.fingerprint, compile_blocks=compile_blocks, on_step=on_step,
    )  # fmt: skip
    settings = decided(dataclasses.replace(settings, resume="newest"), partial(trial_step, model))  # by the checkpoint
    folder = Path(settings.out) / "model"
    hours = (time.time() - started) / 3600
    training |= {"settings": _settings_record(settings, recipe), "hours_of_last_start": round(hours, 2)}
    config = dataclasses.replace(config, training=training)
    on_main_process(lambda: save(Pretrained(config=config, tokenizer=encoder, generator=model), folder))
    return folder
