"""One adaptation from pictures to a model folder, resumable. Knows no pages.

A model keeps its architecture except for its classes; the recipe determines what is trained.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.adapters import split_name, with_classes
from bigr_repr.checkpoints.catalog import bundled_folders
from bigr_repr.checkpoints.pretrained import Pretrained, load, save, with_adapter
from bigr_repr.config import ModelConfig, require
from bigr_repr.datasets import ImageSet
from bigr_repr.datasets.subset import Subset
from bigr_repr.system.records import as_object, reading_record
from bigr_repr.train.adapt_folder import RUN, AdaptFolder, write_json
from bigr_repr.train.adapt_recipe import AdaptRecipe
from bigr_repr.train.adapt_tokenizer import adapted_tokenizer
from bigr_repr.train.anchor import Anchor
from bigr_repr.train.batches import batches
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.distributed import divisible_batch, on_main_process, processes
from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.generator import trial_step
from bigr_repr.train.generator_task import GeneratorTask
from bigr_repr.train.held_out import BestWeights
from bigr_repr.train.loop import train
from bigr_repr.train.pace import decided
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.reconstruction import reconstruction_db
from bigr_repr.train.settings import TrainSettings, identify, objective_of
from bigr_repr.train.trained_part import TrainedPart, begun_with_classes

log = logging.getLogger(__name__)
OnProgress = Callable[[str, int, int], None]
ADAPTER = "adapter"  # the folder in that of the model
_LOOKS = 10
_EMA = 0.99
_FAR_BELOW = 3.0  # dB
_PARTS = 1000  # steps of a progress bar
_PATIENCE = timedelta(hours=6)  # how long processes wait while one encodes
_CURVES = ("held_out_losses", "held_out_neighbors")  # shown on the page, but not in the model's record


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing: the main process reports progress."""


def _classes(
    start: Pretrained, images: ImageSet, recipe: AdaptRecipe
) -> tuple[ModelConfig, torch.Tensor, NDArray[np.int64] | None]:
    """The configuration with the pictures' classes, the rows that are reused, and the renumbered labels (n,)."""
    if images.labels is None:
        config, taken = with_classes(start.config, (), "add")
        return dataclasses.replace(config, class_names=start.config.class_names), taken, None
    names = images.class_names or tuple(str(number) for number in range(int(images.labels.max()) + 1))
    config, taken = with_classes(start.config, names, recipe.classes)
    numbers = np.array([config.class_names.index(each) for each in names])
    return config, taken, np.where(images.labels < 0, -1, numbers[images.labels])


def _public_name(model: str, config: ModelConfig) -> str:
    """A model's name for the record, which is published with the adapted model: no path on this machine."""
    local = split_name(model) is not None or not (model.startswith("hf:") or model in bundled_folders())
    return config.name if local else model


def _reconstruction(
    start: Pretrained, images: ImageSet, rows: NDArray[np.int64], *, warn: bool
) -> dict[str, float | None]:
    """How well the tokenizer reconstructs the pictures, in dB, and the figure in the model's record."""
    found = reconstruction_db(start.tokenizer, images, rows)
    recorded = dict(start.config.quality.get("reconstruction", {})).get("psnr_mean_of_images_db")
    if warn and recorded is not None and found < recorded - _FAR_BELOW:
        log.warning(
            "the tokenizer reconstructs these pictures at %.1f dB PSNR, compared with %.1f dB in its record: it "
            "loses more "
            "detail; train it too (--tokenizer-too)", found, recorded,
        )  # fmt: skip
    return {"reconstruction_db": found, "recorded_db": recorded}


class AdaptJob:
    """One adaptation, with its files in a hidden folder next to the resulting model, from which the same job resumes.

    The model is written there too, to `folder`, so that a report can be added to it before it is published. Used with
    `with`: until then, no other job can use the hidden folder. All processes train; the main one encodes, evaluates,
    writes and reports progress.
    """

    def __init__(
        self, out: Path, model: str, images: ImageSet, recipe: AdaptRecipe, on_progress: OnProgress, *, cpu: bool
    ) -> None:
        together = processes(cpu=cpu, patience=_PATIENCE)
        if (recipe.batch_size or 0) % together.num_processes:
            count = f"the number of processes ({together.num_processes})"
            raise ValueError(f"batch_size={recipe.batch_size} must be a multiple of {count}")
        self._began, self._place, self._model, self._images = time.monotonic(), AdaptFolder(out), model, images
        self._recipe, self._cpu, self.start = recipe, cpu, load(model)
        self._on_progress = on_progress if together.is_main_process else _silent
        if self.start.config.generator.condition != "class":
            raise ValueError(f"{model} takes captions, not classes; adapt a model with classes: bigr-repr models list")
        width = self.start.config.generator.dim
        rule = f"choose at most {width}, the width of {self.start.config.name}"
        require(recipe.method != "lora" or recipe.rank <= width, "rank", recipe.rank, rule)
        self._base = _public_name(model, self.start.config)
        self._tokenizer = self.start.tokenizer
        self._folder, self.folder = self._place.path, self._place.model
        on_main_process(lambda: self._place.claim(self._request()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._place.release()

    def _request(self) -> dict[str, Any]:
        """What a run that resumes must have in common with the first one."""
        count = processes().num_processes  # random draws depend on it
        return {
            "images": self._images.fingerprint(),
            "model": self.start.fingerprint,
            **dataclasses.asdict(self._recipe),
            **{"minutes": None, "patience": None},
            **({"processes": count} if count > 1 else {}),
        }

    def run(
        self, kept: NDArray[np.int64], held_out: NDArray[np.int64], name: str, *, precision: str
    ) -> tuple[Pretrained, dict[str, Any]]:
        """Encode, train and write to `folder`; returns the adapted model and the record."""
        settings = self._settings(len(kept), precision)  # refuses what cannot be trained before anything is encoded
        config, taken, labels = _classes(self.start, self._images, self._recipe)
        warn = not self._recipe.tokenizer_too
        quality = on_main_process(lambda: _reconstruction(self.start, self._images, held_out, warn=warn))
        if self._recipe.tokenizer_too:
            quality["reconstruction_after_db"] = self._train_tokenizer(kept, held_out)
        trained_on, looked_at = (
            self._codes(what, rows, labels) for what, rows in (("kept", kept), ("held out", held_out))
        )
        self._tokenizer.cpu()  # encoding may have moved it; the rest needs only codes
        with torch.random.fork_rng():
            torch.manual_seed(self._recipe.seed)
            present = [] if trained_on.labels is None else np.unique(trained_on.labels).tolist()
            part = TrainedPart(begun_with_classes(self.start, config, taken), taken, present, self._recipe)
        new = [each for each, row in zip(config.class_names, taken.tolist(), strict=False) if row < 0]
        record = {
            **self._facts(part),
            **self._train(part, trained_on, looked_at, settings),
            **quality,
            "new_classes": new,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        conditional = trained_on.labels is not None
        return self._write(dataclasses.replace(config, name=name), part, record, conditional), record

    def publish(self) -> Path:
        """Make `folder` the one that was asked for, which is returned, and remove the hidden folder.

        Raises FileExistsError if there is something else by now.
        """
        on_main_process(self._place.publish)
        return self._place.out

    def _train_tokenizer(self, kept: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
        """Train the tokenizer further and use it from now on; returns its PSNR in dB."""
        self._tokenizer, (_, after) = adapted_tokenizer(
            self.start.tokenizer,
            self._images,
            kept,
            held_out,
            self._folder / "tokenizer",
            steps=self._recipe.length(len(kept)),
            seconds=30 * self._recipe.minutes,
            seed=self._recipe.seed,
            cpu=self._cpu,
            on_progress=partial(self._on_progress, "training, tokenizer"),
        )
        return after

    def _codes(self, what: str, rows: NDArray[np.int64], labels: NDArray[np.int64] | None) -> CodeSet:
        """The codes of some rows, reused if an earlier start made them."""
        folder = self._folder / f"codes-{what.replace(' ', '-')}"

        def encode() -> None:
            if not (folder / "codes.json").exists():
                write_codes(
                    Subset(self._images, rows, None if labels is None else labels[rows]),
                    self._tokenizer,
                    folder,
                    tokenizer_name=self._base,
                    mirror=self._recipe.mirror and what == "kept",
                    device=processes().device,
                    on_progress=partial(self._on_progress, f"encoding, {what}"),
                )

        on_main_process(encode)
        return CodeSet(folder)

    def _settings(self, images: int, precision: str) -> TrainSettings:
        recipe, steps = self._recipe, self._recipe.length(images)
        return TrainSettings(
            out=str(self._folder / RUN),
            steps=steps,
            batch_size=divisible_batch(recipe.batch(images)),
            learning_rate=recipe.rate(),
            warmup=min(20, steps),
            seed=recipe.seed,
            ema=_EMA,
            precision=precision,
            cpu=self._cpu,
            keep=1,
            save_every=max(1, steps // 10),
            log_every=max(1, steps // 100),
        )

    def _train(self, part: TrainedPart, kept: CodeSet, held_out: CodeSet, settings: TrainSettings) -> dict[str, Any]:
        """Train the part, unless an earlier start ended that, leave its best weights in it, and return a record."""
        usual = GeneratorRecipe(conditional=kept.labels is not None, weight_decay=0.0)
        task = GeneratorTask(part.model, usual, None, None, anchor=self._anchor())
        file, limits = Path(settings.out) / "trained.json", [self._recipe.minutes, self._recipe.patience]
        earlier = on_main_process(lambda: self._trained(file))
        record = None if earlier is None or earlier[0] != limits else earlier[1]
        if record is None:
            settings = decided(settings, partial(trial_step, part.model))
        seconds = max(1.0, self._recipe.minutes * (30 if self._recipe.tokenizer_too else 60))
        best = self._best(task, part, kept, held_out, settings, seconds)  # its clock starts
        if record is None:
            record = self._fit(task, usual, best, kept, settings, seconds)
            facts = {"limits": limits, "record": record}
            on_main_process(lambda: write_json(file, facts))
        self._on_progress("training", _PARTS, _PARTS)
        self.start.generator.cpu()
        part.model.cpu().load_state_dict(best.weights(), strict=False)
        part.model.eval()
        if record["steps"] == 0:
            log.warning(
                "minutes=%g were over before the first training step: the old weights are kept; give more minutes",
                self._recipe.minutes,
            )
        elif record["best_step"] == 0:
            log.warning("no training step did better on the held-out pictures: the old weights are kept")
        return record

    @staticmethod
    def _trained(file: Path) -> tuple[list[float], dict[str, Any]] | None:
        """The limits and the record of a training that has ended; None if none has. Raises ValueError if damaged."""
        if not file.exists():
            return None
        with reading_record(file, remedy=f"remove {file.parent}, and start again") as found:
            return list(found["limits"]), as_object(found["record"])

    def _fit(
        self,
        task: GeneratorTask,
        usual: GeneratorRecipe,
        best: BestWeights,
        kept: CodeSet,
        settings: TrainSettings,
        seconds: float,
    ) -> dict[str, Any]:
        """Train until `best` ends it, and return a record."""
        began, used = time.monotonic(), time.process_time()

        def finished(done: int, average: ExponentialAverage) -> bool:
            share = max(done / settings.steps, (time.monotonic() - began) / seconds)
            self._on_progress("training", min(_PARTS, round(_PARTS * share)), _PARTS)
            return best(done, average)

        record = identify(settings, task="adapt", model=self.start.fingerprint, objective=objective_of(usual))
        stream = partial(batches, kept, image_size=self.start.config.image_size)
        train(task, stream, settings, record=record, finished=finished)
        return best.record() | {
            "steps_at_most": settings.steps,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "anchor": self._recipe.anchor,
            "precision": settings.precision,
            "training_cpu_minutes": round((time.process_time() - used) / 60, 2),
        }

    def _anchor(self) -> Anchor | None:
        """The anchor for features; None if nothing changes them, or the recipe lets them change."""
        free = self._recipe.method == "classes" or not self._recipe.anchor
        return None if free else Anchor(self.start.generator, self._recipe.anchor)

    def _best(
        self,
        task: GeneratorTask,
        part: TrainedPart,
        kept: CodeSet,
        held_out: CodeSet,
        settings: TrainSettings,
        seconds: float,
    ) -> BestWeights:
        """The judge of weights on held-out pictures; also by neighbors, if there are classes and features change."""
        labels = kept.labels
        told_apart = labels is not None and len(np.unique(labels)) > 1 and self._recipe.method != "classes"
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        return BestWeights(
            lambda: getattr(task.modules[0], "module", task.modules[0]),
            held_out,
            Path(settings.out),
            names=part.names,
            conditional=labels is not None,
            every=max(1, settings.steps // _LOOKS),
            patience=self._recipe.patience,
            seconds=seconds,
            kept=kept if told_apart else None,
        )

    def _facts(self, part: TrainedPart) -> dict[str, Any]:
        return {
            "base": self._base,
            "base_sha256": self.start.fingerprint,
            "images": len(self._images),
            "method": self._recipe.method,
            "trained_parameters": part.count,
            "parameters": sum(weight.numel() for weight in self.start.generator.parameters()),
        }

    def _write(self, config: ModelConfig, part: TrainedPart, record: dict[str, Any], conditional: bool) -> Pretrained:
        """Write `folder`, the model with its adapter; the saved model equals base plus adapter bit for bit."""
        known = {key: self.start.config.training.get(key) for key in ("data", "terms")}
        adapted = {name: value for name, value in record.items() if name not in _CURVES}
        training = {"adapted": adapted, "begun_with": {key: value for key, value in known.items() if value}}
        if not conditional:  # whether it draws classes is as before
            settings = dict(self.start.config.training.get("settings", {}))
            training["settings"] = {name: settings[name] for name in ("conditional",) if name in settings}
        config, beside = dataclasses.replace(config, training=training, quality={}), self._folder / ADAPTER
        if self._recipe.method == "full":
            after = Pretrained(config, self._tokenizer.cpu(), part.model)
        else:
            on_main_process(lambda: self._write_adapter(part, beside, config))
            after = with_adapter(self.start, beside)
            processes().wait_for_everyone()  # until all have read it

        def finish() -> None:
            shutil.rmtree(self.folder, ignore_errors=True)
            save(after, self.folder)
            if self._recipe.method != "full":
                beside.rename(self.folder / ADAPTER)

        on_main_process(finish)
        return after

    def _write_adapter(self, part: TrainedPart, folder: Path, config: ModelConfig) -> None:
        own = None if self._tokenizer is self.start.tokenizer else self._tokenizer
        shutil.rmtree(folder, ignore_errors=True)
        part.write(folder, config, base=self._base, base_sha256=self.start.fingerprint, tokenizer=own)
