"""Laws of adaptation: what a method does not train stays, an adapter is the model, and a broken run goes on exactly."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import signal
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bigr_repr_cli import adapt as adapt_command
from forks import run, run_together
from PIL import Image
from tiny_model import tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.checkpoints import description
from bigr_repr.checkpoints.adapters import CLASS_TABLE, with_classes
from bigr_repr.checkpoints.description import describe
from bigr_repr.checkpoints.pretrained import Pretrained, tokenizer_fingerprint, with_adapter
from bigr_repr.datasets import open_images
from bigr_repr.evaluate.reports.adapted import ClassShown, adaptation_page, figures_of, quality_of
from bigr_repr.evaluate.runs.adapted import compare_models
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.train import Adapted, AdaptRecipe, GeneratorRecipe, adapt, adapt_folder, adapt_job, adapt_tokenizer
from bigr_repr.train import held_out as held_out_module
from bigr_repr.train import reconstruction as reconstruction_module
from bigr_repr.train.adapt_job import OnProgress
from bigr_repr.train.adaptation import _split, note_quality
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.held_out import held_out_loss, held_out_neighbors, no_fall
from bigr_repr.train.reconstruction import reconstruction_db
from bigr_repr.train.resume import TrainingError
from bigr_repr.train.shown import class_pictures, held_out_pictures, subjects
from bigr_repr.train.stopping import RunStoppedError

COLORS = {"red": (200, 30, 30), "teal": (20, 150, 150)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(layers=2)
    config = dataclasses.replace(model.config, class_names=("cat", "dog", "red"))
    return br.save(Pretrained(config, model.tokenizer, model.generator), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for number in range(6):
            pixels = np.clip(np.array(color) + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def _adapt(
    pictures: Path,
    base: Path,
    out: Path,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
    report: Callable[[Adapted], None] = lambda made: None,
    **changes: object,
) -> Adapted:
    recipe = AdaptRecipe(**{"steps": 6, "held_out": 0.4, **changes})  # type: ignore[arg-type]
    return adapt(
        pictures, model=str(base), out=out, recipe=recipe, cpu=True, precision="float32", on_progress=on_progress,
        report=report,
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapted(pictures: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapted]:
    root = tmp_path_factory.mktemp("adapted")
    return {
        method: _adapt(pictures, base, root / method, method=method, classes="add", learning_rate=rate)
        for method, rate in {"classes": 0.05, "lora": 0.02, "full": 0.002}.items()
    }


def _changed(made: Adapted) -> set[str]:
    before, after = made.before.generator.state_dict(), made.after.generator.state_dict()
    return {name for name in before if name != CLASS_TABLE and not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_each_method_changes_what_it_says_and_nothing_else(adapted: dict[str, Adapted]) -> None:
    assert _changed(adapted["classes"]) == set()
    matrices = {name.split(".")[-2] for name in _changed(adapted["lora"])}
    assert matrices == {"wqkv", "wo", "w1", "w2", "w3"}
    assert {"transformer.mask_tok", "diffusion.denoiser.final_layer.linear.weight"} <= _changed(adapted["full"])
    for made in adapted.values():
        assert all(
            torch.equal(a, b)
            for a, b in zip(made.before.tokenizer.parameters(), made.after.tokenizer.parameters(), strict=True)
        )


@pytest.mark.slow
def test_old_classes_keep_their_rows_and_new_ones_are_appended(adapted: dict[str, Adapted]) -> None:
    made = adapted["classes"]
    assert made.after.config.class_names == ("cat", "dog", "red", "teal")
    assert made.record["new_classes"] == ["teal"]
    old, new = (side.generator.state_dict()[CLASS_TABLE] for side in (made.before, made.after))
    assert torch.equal(new[[0, 1, 4]], old[[0, 1, 3]])  # cat, dog, no class
    assert not torch.equal(new[2], old[2])  # red is trained on
    assert made.record["trained_parameters"] == 2 * made.before.config.generator.dim


def test_replaced_classes_keep_what_the_model_knows_of_equal_names(base: Path) -> None:
    config, taken = with_classes(br.load(base).config, ("dog", "owl"), "replace")
    assert config.class_names == ("dog", "owl")
    assert taken.tolist() == [1, -1, 3]


@pytest.mark.parametrize("method", ["classes", "lora"])
def test_the_adapter_on_its_model_is_the_saved_model_bit_for_bit(
    adapted: dict[str, Adapted], base: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapted[method]
    assert made.adapter is not None
    name = f"{base}+{made.adapter}"
    assert br.load(name).fingerprint == br.load(made.folder).fingerprint == made.after.fingerprint
    loaded: list[str] = []
    monkeypatch.setattr(description, "load", lambda name: loaded.append(name) or br.load(name))
    assert describe(name).fingerprint == made.after.fingerprint
    assert describe(name).location == f"{base}, adapter {made.adapter}"
    assert loaded == [name, name]  # the base is not loaded on its own
    assert adapted["full"].adapter is None


def test_what_an_adapter_makes_of_a_model_is_what_peft_makes_of_it(adapted: dict[str, Adapted], base: Path) -> None:
    import peft

    made = adapted["lora"]
    assert made.adapter is not None
    own = br.load(base).generator
    merged = peft.PeftModel.from_pretrained(own, str(made.adapter)).merge_and_unload().state_dict()
    ours = made.after.generator.state_dict()
    for name in _changed(made):
        assert torch.allclose(merged[name], ours[name], atol=1e-6)


def test_the_best_weights_are_kept_and_the_start_is_among_them(adapted: dict[str, Adapted]) -> None:
    for made in adapted.values():
        losses = {int(step): loss for step, loss in made.record["held_out_losses"].items()}
        assert 0 in losses
        neighbors = {int(step): share for step, share in made.record["held_out_neighbors"].items()}
        least = neighbors[0] - no_fall(neighbors[0], len(made.held_out)) if neighbors else 0.0
        kept = [step for step in losses if neighbors.get(step, 0.0) >= least]
        assert losses[made.record["best_step"]] == min(losses[step] for step in kept)


def test_training_that_only_harms_leaves_the_model_as_it_was(
    pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = itertools.count(1)
    monkeypatch.setattr("bigr_repr.train.held_out.held_out_loss", lambda *given, **options: float(next(worse)))
    made = _adapt(pictures, base, tmp_path / "o", patience=2, steps=40)
    assert made.record["best_step"] == 0
    assert made.record["steps"] == 2 * 40 // 10
    assert made.record["ended_by"] == "the held-out loss stopped improving"
    assert _changed(made) == set()


@pytest.mark.slow
def test_a_tokenizer_trained_too_is_in_the_adapter_and_its_codes_are_others(
    pictures: Path, base: Path, tmp_path: Path
) -> None:
    made = _adapt(pictures, base, tmp_path / "o", tokenizer_too=True)
    assert made.record["reconstruction_after_db"] > made.record["reconstruction_db"]
    assert (tmp_path / "o/adapter/tokenizer.safetensors").exists()
    assert br.load(f"{base}+{made.adapter}").fingerprint == br.load(made.folder).fingerprint
    fingerprints = {tokenizer_fingerprint(side.tokenizer) for side in (made.before, made.after)}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("better", [True, False])
def test_a_tokenizer_is_trained_for_so_many_steps_or_so_long_and_kept_if_it_is_better(
    better: bool, pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, other, images = br.load(base).tokenizer, tiny_model(5).tokenizer, open_images(pictures)
    asked: list[tuple[Any, ...]] = []
    told: list[tuple[int, int]] = []
    ends: list[bool] = []
    clock = iter([100.0, 101.0, 101.0, 105.0, 105.0, 110.0, 110.0])
    quality = {id(start): 20.0, id(other): 21.0 if better else 19.0}

    def trained(chosen: Any, config: Any, settings: Any, recipe: Any, *, initial: Any, finished: Any) -> Any:
        asked.append((len(chosen), config, settings, recipe, initial))
        ends.extend(finished(done, None) for done in (10, 30, 50))
        return other

    monkeypatch.setattr(adapt_tokenizer, "train_tokenizer", trained)
    monkeypatch.setattr(adapt_tokenizer, "reconstruction_db", lambda tokenizer, images, rows: quality[id(tokenizer)])
    monkeypatch.setattr(adapt_tokenizer, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))

    def adapted() -> Any:
        return adapt_tokenizer.adapted_tokenizer(
            start, images, np.arange(7), np.arange(7, 12), tmp_path, steps=200, seconds=10.0, seed=9, cpu=True,
            on_progress=lambda *each: told.append(each),
        )  # fmt: skip

    made, measured = adapted()
    assert (made is other, measured) == ((True, (20.0, 21.0)) if better else (False, (20.0, 20.0)))
    assert better or made is start
    ((count, config, settings, recipe, initial),) = asked
    assert (count, config, initial) == (7, start.config, start)
    assert (settings.steps, settings.batch_size, settings.seed, settings.cpu, settings.keep) == (200, 7, 9, True, 1)
    assert (settings.save_every, settings.log_every, settings.tracker) == (20, 2, "none")
    assert (settings.ema, settings.learning_rate) == (adapt_tokenizer._EMA, adapt_tokenizer._RATE)
    assert settings.ema < 0.999  # a few hundred steps are averaged, not the start
    assert Path(settings.out) == tmp_path / "run"
    assert (recipe.pixel_loss, recipe.perceptual, recipe.gan_start) == ("l2", None, None)
    # Ten of 200 steps are 5 %, but a second of ten is more; then five seconds; then the time is over.
    assert told == [(100, 1000), (500, 1000), (1000, 1000)]
    assert ends == [False, False, True]
    monkeypatch.setattr(adapt_tokenizer, "reconstruction_db", lambda tokenizer, images, rows: 3.0)
    assert adapted()[0] is start  # no better
    assert len(asked) == 1  # what an earlier call has made is read
    assert tokenizer_fingerprint(adapt_tokenizer.load_tokenizer(tmp_path / "tokenizer")) == tokenizer_fingerprint(other)


def test_the_tokenizer_has_half_of_the_time_and_tells_its_progress(
    pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    asked: list[dict[str, Any]] = []
    other = tiny_model(5).tokenizer

    def adapted(start: Any, images: Any, kept: Any, held_out: Any, folder: Path, **given: Any) -> Any:
        asked.append({**given, "folder": folder, "kept": kept, "held_out": held_out})
        given["on_progress"](3, 1000)
        return other, (20.0, 21.5)

    monkeypatch.setattr(adapt_job, "adapted_tokenizer", adapted)
    recipe = AdaptRecipe(steps=6, minutes=4.0, seed=3)
    job = adapt_job.AdaptJob(
        tmp_path / "o", str(base), open_images(pictures), recipe, lambda *each: told.append(each), cpu=True
    )
    assert job._train_tokenizer(np.arange(7), np.arange(7, 12)) == 21.5
    assert job._tokenizer is other
    assert told == [("training, tokenizer", 3, 1000)]
    assert (asked[0]["steps"], asked[0]["seconds"], asked[0]["seed"], asked[0]["cpu"]) == (6, 120.0, 3, True)
    assert asked[0]["folder"] == tmp_path / ".o.adapting" / "tokenizer"
    assert (len(asked[0]["kept"]), len(asked[0]["held_out"])) == (7, 5)


def test_an_adaptation_is_trained_as_asked(pictures: Path, base: Path, tmp_path: Path) -> None:
    recipe = AdaptRecipe(steps=250, seed=3, batch_size=5, learning_rate=0.25)
    job = adapt_job.AdaptJob(tmp_path / "o", str(base), open_images(pictures), recipe, adapt_job._silent, cpu=True)
    settings = job._settings(12, "bf16")
    assert (settings.steps, settings.batch_size, settings.learning_rate, settings.warmup) == (250, 5, 0.25, 20)
    assert (settings.seed, settings.precision, settings.cpu, settings.keep, settings.ema) == (3, "bf16", True, 1, 0.99)
    assert (settings.save_every, settings.log_every) == (25, 2)
    assert Path(settings.out) == tmp_path / ".o.adapting" / "run"
    job._recipe = AdaptRecipe(steps=7)
    short = job._settings(12, "no")
    assert (short.warmup, short.save_every, short.log_every) == (7, 1, 1)


def test_reconstruction_is_the_mean_of_the_images_peak_signal_to_noise_ratios(pictures: Path, base: Path) -> None:
    tokenizer, images = br.load(base).tokenizer, open_images(pictures)
    rows = np.array([3, 0, 7])
    pixels = np.stack([images.load_square(int(row), 32) for row in rows])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.encode(batch)).clamp(0, 1)
    errors = ((decoded - batch) ** 2).flatten(1).mean(dim=1).numpy()
    assert reconstruction_db(tokenizer, images, rows) == pytest.approx(float(-10 * np.log10(errors).mean()), abs=0.006)


def test_what_is_measured_is_spread_over_pictures_sorted_by_class(
    pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, asked = br.load(base), open_images(pictures), list[list[int]]()
    codes = write_codes(images, model.tokenizer, tmp_path / "c", tokenizer_name="t", mirror=False)
    bits, load = CodeSet.bits, images.load_square
    for module in (held_out_module, reconstruction_module):
        monkeypatch.setattr(module, "_LOOKED_AT", 3)
    monkeypatch.setattr(
        CodeSet, "bits", lambda self, index, view: asked.append(index.tolist()) or bits(self, index, view)
    )
    monkeypatch.setattr(images, "load_square", lambda index, side: asked.append([index]) or load(index, side))
    held_out_loss(model.generator, codes, conditional=True)
    held_out_neighbors(model.generator, codes, codes)
    reconstruction_db(model.tokenizer, images, np.arange(12))
    assert asked == [[0, 5, 11], list(range(12)), [0, 5, 11], [0], [5], [11]]


def test_pictures_far_from_the_models_own_are_warned_of(
    pictures: Path, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = br.load(base)
    quality = {"reconstruction": {"psnr_mean_of_images_db": 40.0}}
    config = dataclasses.replace(model.config, quality=quality)
    known = br.save(Pretrained(config, model.tokenizer, model.generator), tmp_path / "known")
    with caplog.at_level(logging.WARNING):
        _adapt(pictures, known, tmp_path / "o", method="classes")
    assert "compared with 40.0 dB in its record" in caplog.text


@pytest.mark.parametrize(("tokenizer_too", "seconds"), [(False, 240.0), (True, 120.0)])
def test_encoding_takes_no_time_from_the_training(
    tokenizer_too: bool, seconds: float, pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    hours = itertools.count(0, 3600)

    def best(*others: Any, **options: Any) -> Any:
        given.append(options["seconds"])
        return held_out_module.BestWeights(*others, **options)

    clock = types.SimpleNamespace(monotonic=lambda: float(next(hours)), process_time=lambda: 0.0)
    monkeypatch.setattr(adapt_job, "time", clock)
    monkeypatch.setattr(adapt_job, "BestWeights", best)
    monkeypatch.setattr(adapt_job, "adapted_tokenizer", lambda start, *others, **options: (start, (20.0, 20.0)))
    made = _adapt(pictures, base, tmp_path / "o", method="classes", steps=2, minutes=4.0, tokenizer_too=tokenizer_too)
    assert given == [seconds]
    assert made.record["steps"] == 2


def test_time_over_before_the_first_step_is_said(
    pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held_out_module, "any_process", lambda late: True)
    made = _adapt(pictures, base, tmp_path / "o", method="classes", minutes=0.25)
    assert made.record["steps"] == 0
    assert "minutes=0.25 were over before the first training step: the old weights are kept; give more" in caplog.text
    assert "did better" not in caplog.text


@pytest.mark.slow
def test_time_given_ends_it(pictures: Path, base: Path, tmp_path: Path) -> None:
    made = _adapt(pictures, base, tmp_path / "o", minutes=0.01, steps=100_000, patience=1000)
    assert made.record["ended_by"] == "the time limit was reached"
    assert made.record["steps"] < 100_000


def test_an_adapter_is_refused_on_another_model_and_named_when_alone(
    adapted: dict[str, Adapted], tmp_path: Path
) -> None:
    made = adapted["lora"]
    assert made.adapter is not None
    other = br.save(tiny_model(1, layers=2), tmp_path / "other")
    with pytest.raises(ValueError, match=r"belongs to .* is another model .*: load it as "):
        br.load(f"{other}+{made.adapter}")
    with pytest.raises(FileNotFoundError, match="is an adapter, which loads onto its model"):
        br.load(made.adapter)
    with pytest.raises(FileNotFoundError, match=r"not an adapter, as it has no adapter\.json"):
        br.load(f"{other}+{tmp_path}")
    assert with_adapter(made.before, made.adapter).fingerprint == made.after.fingerprint


def test_a_damaged_adapter_is_named(adapted: dict[str, Adapted], base: Path, tmp_path: Path) -> None:
    import shutil

    made = adapted["lora"]
    assert made.adapter is not None
    shutil.copytree(made.adapter, tmp_path / "a")
    settings = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ValueError, match=r"a/adapter_config.json is damaged: its SHA-256"):
        br.load(f"{base}+{tmp_path / 'a'}")
    (tmp_path / "a/sha256.json").unlink()
    with pytest.raises(ValueError, match="an adapter with use_dora is not supported"):
        br.load(f"{base}+{tmp_path / 'a'}")
    (tmp_path / "a/classes.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"classes\.safetensors: damaged"):
        br.load(f"{base}+{tmp_path / 'a'}")


@pytest.mark.parametrize(
    ("made", "changes", "said"),
    [
        ({"a": 3}, {}, "3 pictures are too few"),
        ({"": 9}, {"method": "classes"}, "the pictures have no labels"),
        ({"a": 9, "b": 1}, {}, r"1 classes have only one picture \(b\)"),
    ],
)
def test_pictures_that_cannot_be_used_are_said(
    base: Path, tmp_path: Path, made: dict[str, int], changes: dict[str, str], said: str
) -> None:
    for name, count in made.items():
        write_pictures(tmp_path / "p" / name, count)
    with pytest.raises(ValueError, match=said):
        _adapt(tmp_path / "p", base, tmp_path / "o", **changes)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("targets", "attention,w9", "choose from attention"),
        ("method", "dora", "lora"),
        ("minutes", 0, "at least 0.01"),
        ("learning_rate", 0.0, "it must be above 0 and finite"),
        ("learning_rate", float("inf"), "it must be above 0 and finite"),
        ("anchor", float("inf"), "it must be finite"),
        ("seed", 2**32, r"it must be a whole number in 0\.\.4294967295"),
    ],
)
def test_recipes_out_of_range_are_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}=.*{said}"):
        AdaptRecipe(**{field: value})  # type: ignore[arg-type]


def test_a_precision_that_is_none_is_refused_before_anything_is_encoded(
    pictures: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="float99"):
        adapt(pictures, model=str(base), out=tmp_path / "o", cpu=True, precision="float99", on_progress=_stop)


def test_a_folder_that_holds_something_is_left_alone(pictures: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o/file").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        _adapt(pictures, base, tmp_path / "o")


def _recipes_of(monkeypatch: pytest.MonkeyPatch) -> list[GeneratorRecipe]:
    """A list that gets the recipe of every adaptation."""
    seen, real = list[GeneratorRecipe](), adapt_job.GeneratorTask

    def noted(model: Any, recipe: GeneratorRecipe, *others: Any, **named: Any) -> Any:
        seen.append(recipe)
        return real(model, recipe, *others, **named)

    monkeypatch.setattr(adapt_job, "GeneratorTask", noted)
    return seen


def test_pictures_without_labels_adapt_what_no_class_draws(
    base: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = _recipes_of(monkeypatch)
    write_pictures(tmp_path / "p", 9)
    _adapt(pictures, base, tmp_path / "labeled")
    made = _adapt(tmp_path / "p", base, tmp_path / "o")
    assert [recipe.conditional for recipe in recipes] == [True, False]
    assert "the pictures have no classes" in caplog.text
    assert made.after.config.class_names == made.before.config.class_names
    assert compare_models((str(base), str(made.folder)), made.images, made.kept, made.held_out) is None
    (subject,) = subjects(made, 9)
    assert subject.after is None


def test_a_column_of_labels_without_a_label_is_as_none(base: Path, tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in write_pictures(tmp_path / "p", 9)]
    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({"image": images, "label": pa.array([None] * 9, pa.int64())}), file)
    made = _adapt(file, base, tmp_path / "o", steps=2)
    assert made.images.labels is None
    assert len(made.kept) + len(made.held_out) == 9
    assert made.after.config.class_names == made.before.config.class_names
    assert [each.name for each in subjects(made, 9)] == ["no class"]
    assert compare_models((str(base), str(made.folder)), made.images, made.kept, made.held_out) is None
    with pytest.raises(ValueError, match="the pictures have no labels"):
        _adapt(file, base, tmp_path / "other", method="classes")


def test_pictures_of_one_class_are_adapted_to_and_said(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "p" / "red", 9)
    made = _adapt(tmp_path / "p", base, tmp_path / "o", steps=2)
    assert made.after.config.class_names == ("red",)
    assert made.record["held_out_neighbors"] == {}
    assert "all pictures have the same class" in caplog.text


def test_probes_are_measured_and_the_page_shows_every_class(
    adapted: dict[str, Adapted], base: Path, tmp_path: Path
) -> None:
    made = adapted["lora"]
    settings = BenchSettings(k=(3,), cache=tmp_path / "cache", device="cpu")
    rows = compare_models((str(base), str(made.folder)), made.images, made.kept, made.held_out, settings)
    assert rows is not None
    figures = figures_of(rows)
    assert set(figures) == {"linear probe", "3-NN"}
    assert rows[0].facts["model"]["model_sha256"] != rows[1].facts["model"]["model_sha256"]
    shown = []
    for each in subjects(made, 9):
        after = class_pictures(made.after, each.after, 2)
        shown.append(ClassShown(name=each.name, real=held_out_pictures(made, each.rows[:2]), before=after, after=after))
    assert [(each.name, each.before, each.after) for each in subjects(made, 9)] == [("red", 2, 2), ("teal", None, 3)]
    page = adaptation_page("mine", made.record, figures, shown)
    assert page.count("data:image/png") == 6
    curve = made.record["held_out_losses"].values()
    assert all(f">{loss:.4f}</span>" in page for loss in (min(curve), max(curve)))
    assert all(f">{step}</span>" in page for step in ("step 0", made.record["steps"]))
    assert "teal" in page


def test_two_pictures_of_each_class_are_enough_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to learn from and one to test on: none is left to choose the probe's C by."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate("abcd"):
        write_pictures(tmp_path / "p" / name, 2, first=2 * number)
    images = open_images(tmp_path / "p")
    rows = compare_models(("pixels:8", "pixels:8"), images, *_split(images, AdaptRecipe()), device="cpu")
    assert set(figures_of(rows)) == {"linear probe", "4-NN"}


def test_a_model_that_cannot_be_measured_is_finished_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise ValueError("too few pictures")

    monkeypatch.setattr("bigr_repr.evaluate.runs.adapted.compare_models", fail)
    made: Any = types.SimpleNamespace(folder="o", images=None, kept=None, held_out=None)
    assert adapt_command._measured(made, "bigr-tiny", None, adapt_job._silent) == {}
    assert capsys.readouterr().err == "warning: probe and neighbors are not measured: too few pictures\n"


def test_what_was_measured_is_in_the_models_record_and_no_place_on_this_machine_is(
    pictures: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _adapt(pictures, base, tmp_path / "o", method="classes")
    note_quality(made, quality_of({"20-NN": (50.0, 75.0)}, made.record, 4))
    config = br.load(made.folder).config
    assert config.quality["held_out_pictures"] == {"images": 4, "20-NN": "75.0 % (before: 50.0 %)"}
    assert config.quality["reconstruction"]["psnr_mean_of_images_db"] == made.record["reconstruction_db"]
    adapt_command._write(made, {}, [])
    for file in ("config.json", "adapter/adapter.json", "adapt.json", "adapt.html"):
        text = (made.folder / file).read_text()
        assert str(base) not in text
        assert str(tmp_path) not in text
    record = json.loads((made.folder / "adapt.json").read_text())
    assert (record["folder"], record["adapter"]) == (".", "adapter")
    adapt_command._tell(record, made.folder, str(base), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["adapter"]) == (str(made.folder), str(made.adapter))


def test_a_model_on_this_machine_is_recorded_by_its_own_name(
    pictures: Path, adapted: dict[str, Adapted], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    names = {
        f"{base}+{adapted['lora'].adapter}": "lora",
        "~/model": br.load(base).config.name,
        "bigr-tiny": "bigr-tiny",
    }
    for name, said in names.items():
        job = adapt_job.AdaptJob(
            tmp_path / said, name, open_images(pictures), AdaptRecipe(), adapt_job._silent, cpu=True
        )
        assert job._base == said
    assert adapt_job._public_name("hf:user/mine@v1", br.load(base).config) == "hf:user/mine@v1"
    assert adapt_job._public_name("hf:user/mine+adapter", br.load(base).config) == br.load(base).config.name


# ---- what is broken off goes on


@pytest.fixture(scope="module")
def whole(pictures: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return _adapt(pictures, base, tmp_path_factory.mktemp("whole") / "o")


def _same(one: Adapted, other: Adapted) -> bool:
    """Whether two adaptations gave the same weights by the same way."""
    curves = ("held_out_losses", "held_out_neighbors", "best_step", "steps", "ended_by")
    return one.after.fingerprint == other.after.fingerprint and all(one.record[c] == other.record[c] for c in curves)


@pytest.mark.slow
def test_an_adaptation_that_was_terminated_goes_on_to_the_same_weights(
    pictures: Path, base: Path, whole: Adapted, tmp_path: Path
) -> None:
    def terminate(what: str, done: int, total: int) -> None:
        if what == "training" and done >= total // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError, match="stopped by SIGTERM after step 4 of 6"):
        _adapt(pictures, base, tmp_path / "o", on_progress=terminate)
    assert not (tmp_path / "o").exists()
    assert _same(_adapt(pictures, base, tmp_path / "o"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_adapt import _adapt
from bigr_repr.train import held_out
calls = []
@contextmanager
def dies(path):
    with own(path) as file:
        if path.name == "best.safetensors":
            calls.append(path)
        if len(calls) == 3:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield file
def on_progress(what, done, total):
    if what == {what!r} and done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
if {what!r} == "look":
    own, held_out.replacing = held_out.replacing, dies
def report(made):
    (made.folder / "report").write_text("begun")
    if {what!r} == "report":
        os.kill(os.getpid(), signal.SIGKILL)
_adapt(Path({pictures!r}), Path({base!r}), Path({out!r}), on_progress=on_progress, report=report)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["encoding, kept", "training", "look", "report"])
def test_an_adaptation_that_was_killed_goes_on_to_the_same_weights(
    pictures: Path, base: Path, whole: Adapted, tmp_path: Path, what: str
) -> None:
    """Killed while it encodes, between two steps, while the best weights are being written, or in the report."""
    places = {"tests": str(Path(__file__).parent), "pictures": str(pictures), "base": str(base)}
    code = KILLED.format(what=what, out=str(tmp_path / "o"), **places)
    done = run(code)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "o").exists()
    assert _same(_adapt(pictures, base, tmp_path / "o"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
    assert not (tmp_path / "o/report").exists()


class _KilledError(Exception):
    """Stands for a kill, which leaves the same files."""


def _stop(*given: object) -> None:
    raise _KilledError


@pytest.mark.parametrize("place", ["save", "report", "publish"])
def test_a_run_stopped_after_its_training_ends_without_training_again(
    pictures: Path, base: Path, whole: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Wherever it stops, the model has its name only once it is complete, with its adapter and the report."""
    with monkeypatch.context() as patch:
        if place == "save":
            patch.setattr(adapt_job, "save", _stop)
        if place == "publish":
            patch.setattr(adapt_folder.AdaptFolder, "publish", _stop)
        with pytest.raises(_KilledError):
            _adapt(pictures, base, tmp_path / "o", report=_stop if place == "report" else lambda made: None)
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(adapt_job, "train", _stop)
    made = _adapt(pictures, base, tmp_path / "o", report=lambda made: (made.folder / "report").touch())
    assert _same(made, whole)
    assert made.adapter == tmp_path / "o/adapter"
    assert (tmp_path / "o/report").exists()
    assert br.load(f"{base}+{made.adapter}").fingerprint == br.load(made.folder).fingerprint == whole.after.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize("file", ["request.json", "run/trained.json", "run/best.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_record_of_a_stopped_run_is_named(
    pictures: Path, base: Path, tmp_path: Path, file: str, text: str
) -> None:
    with pytest.raises(_KilledError):
        _adapt(pictures, base, tmp_path / "o", steps=1, report=_stop)
    (damaged := tmp_path / ".o.adapting" / file).write_text(text)
    if (file, text) == ("request.json", "{}"):
        with pytest.raises(TrainingError, match=r"holds an interrupted run of another command"):
            _adapt(pictures, base, tmp_path / "o", steps=1)
        return
    with pytest.raises(ValueError, match=rf"^{damaged} cannot be used: .*; remove {damaged.parent}, and start again$"):
        _adapt(pictures, base, tmp_path / "o", steps=1)


@pytest.mark.slow
def test_the_command_stopped_in_its_report_is_completed_by_repeating_it(
    pictures: Path, base: Path, tmp_path: Path, bigr: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = ("adapt", pictures, "--model", base, "--out", "o", "--steps", 3, "--pictures", 1, "--no-measure", "--cpu")
    shown = adapt_command._shown
    monkeypatch.setattr(adapt_command, "_shown", lambda *given: (_ for _ in ()).throw(OSError("stopped")))
    assert bigr(*command)[0] == 1
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(adapt_command, "_shown", shown)
    monkeypatch.setattr(adapt_job, "train", _stop)
    code, out, err = bigr(*command)
    assert code == 0, err
    assert {"adapter", "adapt.html", "adapt.json", "config.json"} <= {path.name for path in (tmp_path / "o").iterdir()}
    record = json.loads((tmp_path / "o/adapt.json").read_text())
    assert (record["folder"], record["adapter"]) == (".", "adapter")
    assert f"adapter: --model {base}+{tmp_path / 'o/adapter'}" in out
    assert not list(tmp_path.glob(".*"))


def test_longer_training_may_be_asked_for_when_a_run_goes_on(pictures: Path, base: Path, tmp_path: Path) -> None:
    trained: list[int] = []

    def count(what: str, done: int, total: int) -> None:
        trained.append(done) if what == "training" else None

    with pytest.raises(_KilledError):
        _adapt(pictures, base, tmp_path / "o", patience=1, report=_stop)
    _adapt(pictures, base, tmp_path / "o", patience=2, on_progress=count)
    assert len(trained) > 1  # that it is done is always told


def test_two_runs_into_one_folder_are_refused_and_the_first_keeps_its_files(
    pictures: Path, base: Path, tmp_path: Path
) -> None:
    first = adapt_folder.AdaptFolder(tmp_path / "o")
    first.claim({"steps": 1})
    (first.path / "kept").touch()
    for _ in range(2):  # a refused run holds nothing
        with pytest.raises(RuntimeError, match="another process is adapting a model into this folder; wait for it"):
            _adapt(pictures, base, tmp_path / "o")
    assert (first.path / "kept").exists()
    first.release()
    _adapt(pictures, base, tmp_path / "o", steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_what_an_interrupted_run_has_trained_is_never_removed_for_another(
    pictures: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(_KilledError):
        _adapt(pictures, base, tmp_path / "o", on_progress=_stop)
    with pytest.raises(_KilledError):
        _adapt(pictures, base, tmp_path / "o", seed=1, report=_stop)  # only encoded so far: begins anew
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrainingError, match=r"\.o\.adapting holds an interrupted run .*: rank was 8, is 4; repeat"):
        _adapt(pictures, base, tmp_path / "o", seed=1, rank=4)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 9}, r"^batch_size=9 is not allowed: choose at most 8, .*\(4 others are held out\)"),
        ({"rank": 65}, "^rank=65 is not allowed: choose at most 64, the width of tiny-random"),
    ],
)
def test_what_does_not_fit_the_pictures_or_the_model_is_refused_before_any_work(
    pictures: Path, base: Path, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        _adapt(pictures, base, tmp_path / "o", **changes)
    assert not list(tmp_path.iterdir())


def _noting(said: set[str]) -> OnProgress:
    return lambda what, done, total: said.add(what)


def adapt_in_turn(pictures: Path, base: Path, out: Path) -> list[Any]:
    """A model, and one with its tokenizer, by steps that draw nothing at random: what is drawn differs by process."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt_job, "GeneratorRecipe", partial(GeneratorRecipe, dropout=0, class_dropout=0))
        for name, changes in {"plain": {"learning_rate": 0.01}, "both": {"tokenizer_too": True}}.items():
            said = set[str]()
            made = _adapt(pictures, base, out / name, on_progress=_noting(said), **changes)
            curves = made.record["held_out_losses"], made.record["held_out_neighbors"]
            found.append([made.after.fingerprint, *curves, sorted(said)])
    return found


TOGETHER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_adapt import adapt_in_turn
from bigr_repr.train.distributed import processes
out = Path({out!r})
found = adapt_in_turn(Path({pictures!r}), Path({base!r}), out)
out.with_name(str(processes().process_index)).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_adapt_one_model_after_another_as_one_does(pictures: Path, tmp_path: Path) -> None:
    base = br.save(tiny_model(layers=2, objective="bce", attention="causal"), tmp_path / "base")
    one = adapt_in_turn(pictures, base, tmp_path / "alone")
    out = tmp_path / "together"
    places = {"tests": str(Path(__file__).parent), "pictures": str(pictures), "base": str(base), "out": str(out)}
    run_together(2, TOGETHER.format(**places))
    first, second = (json.loads((tmp_path / each).read_text()) for each in "01")
    alone, together = (list(side[0][1].values()) for side in (one, first))
    assert alone == pytest.approx(together, abs=3e-5)
    assert len(set(alone)) == len(alone)
    for number, name in enumerate(("plain", "both")):
        assert first[number][:3] == second[number][:3]
        assert first[number][0] == br.load(out / name).fingerprint
        assert (first[number][3], second[number][3]) == (one[number][3], [])
    assert sorted(path.name for path in out.iterdir()) == ["both", "plain"]


# ---- features


@pytest.mark.slow
def test_features_are_held_near_the_old_ones(pictures: Path, base: Path, tmp_path: Path) -> None:
    """The loss of drawing alone moves them further, at the same rate and for as many steps."""

    def moved(anchor: float) -> float:
        changes = {"method": "full", "learning_rate": 0.01, "steps": 12, "patience": 100, "anchor": anchor}
        kept = _adapt(pictures, base, tmp_path / f"{anchor}", **changes)
        old, new = (
            br.extract_features(pictures, model=each, layer=1, dtype="float32") for each in (kept.before, kept.after)
        )
        assert kept.record["best_step"] > 0
        cosine = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
        return float(1 - cosine.mean())

    assert moved(50.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize(("share", "images", "points"), [(50.0, 100, 5.0), (80.0, 128, 3.54), (100.0, 128, 0.78)])
def test_a_fall_is_more_than_chance(share: float, images: int, points: float) -> None:
    assert no_fall(share, images) == pytest.approx(points, rel=0.02)


@pytest.mark.slow
def test_weights_that_tell_classes_apart_less_well_are_not_kept(
    pictures: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However small their loss is: of the others the best are kept, or the old ones."""
    losses, shares = itertools.count(100, -1), iter([80.0, 80.0, 40.0, 90.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr("bigr_repr.train.held_out.held_out_loss", lambda *given, **options: float(next(losses)))
    monkeypatch.setattr("bigr_repr.train.held_out.held_out_neighbors", lambda *given: next(shares))
    made = _adapt(pictures, base, tmp_path / "a", patience=10)
    assert made.record["best_step"] == 3
    assert made.record["held_out_20nn"] == {"before": 80.0, "after": 90.0}
    shares = iter([80.0, *[30.0] * 6])
    made = _adapt(pictures, base, tmp_path / "b", patience=10)
    assert made.record["best_step"] == 0
    assert _changed(made) == set()
    assert "the old weights are kept" in caplog.text


def test_the_page_tells_what_fell(adapted: dict[str, Adapted]) -> None:
    made = adapted["lora"]
    page = adaptation_page("mine", made.record, {"20-NN": (92.0, 74.0), "linear probe": (98.0, 97.5)}, ())
    assert page.count('class="fell"') == 1
    assert "less well than before (20-NN fell)" in page
    assert 'class="fell"' not in adaptation_page("mine", made.record, {"20-NN": (92.0, 92.5)}, ())
