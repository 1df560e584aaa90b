"""Laws of training that is stopped from outside, or split: what follows equals the unbroken run, or one process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import COMMAND, run, run_command, run_together, start
from test_train import MODEL, TOKENIZER, losses, settings
from tiny_model import write_pictures
from torch import Tensor

from bigr_repr.checkpoints.pretrained import save_tokenizer
from bigr_repr.datasets import open_images
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator
from bigr_repr.train.resume import TrainingError, find_checkpoints
from bigr_repr.train.stopping import EXIT_CODE, SIGNALS, RunStoppedError


def _train(packed: Path, out: Path, at: int | None = None, number: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Train eight steps; with `at`, send this process a signal after that step."""

    def on_step(step: int, values: dict[str, float]) -> None:
        if step + 1 == at:
            os.kill(os.getpid(), number)

    return train_generator(
        CodeSet(packed), MODEL, settings(out, steps=8, save_every=100, **changes), on_step=on_step
    ).state_dict()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        write_pictures(root / name, 6)
    return root


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("codes")
    write_codes(open_images(images), BinaryAutoencoder(TOKENIZER), out, tokenizer_name="test")
    return out


@pytest.fixture(scope="module")
def whole(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return _train(packed, tmp_path_factory.mktemp("whole"))


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(
    packed: Path,
    tmp_path: Path,
    whole: dict[str, Tensor],
    number: int,
) -> None:
    before = signal.getsignal(number)
    said = rf"^stopped by {signal.Signals(number).name} after step 3 of 8, .*repeat the command to continue$"
    with pytest.raises(RunStoppedError, match=said) as caught:
        _train(packed, tmp_path, 3, number)
    assert caught.value.exit_code == EXIT_CODE == 75
    assert signal.getsignal(number) is before
    assert [step for step, _ in find_checkpoints(tmp_path)] == [3]
    assert _equal(_train(packed, tmp_path), whole)
    assert len(losses(tmp_path)) == 8


def test_time_out_leaves_a_checkpoint_too(packed: Path, tmp_path: Path, whole: dict[str, Tensor]) -> None:
    with pytest.raises(RunStoppedError, match="stopped by the time limit after step 1 of 8"):
        _train(packed, tmp_path, max_time=1e-6)
    assert _equal(_train(packed, tmp_path), whole)


def test_a_signal_in_the_last_step_ends_the_run_as_it_should(
    packed: Path,
    tmp_path: Path,
    whole: dict[str, Tensor],
) -> None:
    assert _equal(_train(packed, tmp_path, 8, signal.SIGTERM), whole)


def test_a_damaged_newest_checkpoint_is_set_aside_for_the_previous_one(
    packed: Path,
    tmp_path: Path,
    whole: dict[str, Tensor],
) -> None:
    for at in (3, 5):
        with pytest.raises(RunStoppedError):
            _train(packed, tmp_path, at, signal.SIGTERM)
    optimizer = find_checkpoints(tmp_path)[-1][1] / "optimizer.bin"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    with pytest.raises(TrainingError, match=r"optimizer\.bin is damaged: .*: --resume previous$"):
        _train(packed, tmp_path)
    assert _equal(_train(packed, tmp_path, resume="previous"), whole)
    assert (tmp_path / "set-aside-000000005").is_dir()


def test_replaced_random_states_do_not_resume_without_a_word(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError):
        _train(packed, tmp_path, 3, signal.SIGTERM)
    (states,) = find_checkpoints(tmp_path)[-1][1].glob("random_states_*.pkl")
    states.write_bytes(states.read_bytes()[:-1] + b"?")
    with pytest.raises(TrainingError, match=r"random_states_0\.pkl is damaged"):
        _train(packed, tmp_path)
    with pytest.raises(TrainingError, match=r"resume='previous': .* has only one checkpoint"):
        _train(packed, tmp_path, resume="previous")


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"resume": "oldest"}, ValueError, "newest, previous"),
        ({"max_time": 0.0}, ValueError, "must be above 0 seconds"),
        ({"tracker": "paper"}, ValueError, "tracker='paper' is unknown; choose one of none, "),
    ],
)
def test_settings_that_cannot_be_are_named(
    packed: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    with pytest.raises(kind, match=said):
        _train(packed, tmp_path, **changes)


def test_a_tracker_that_is_not_installed_is_said(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bigr_repr.train.loop.get_available_trackers", list)
    with pytest.raises(ImportError, match="tracker='wandb' is not installed"):
        _train(packed, tmp_path, tracker="wandb")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the trackers
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_trackers_have_the_losses_without_a_network(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    """By the tracker's own offline mode, one of the guide's; what it then has on disk is what metrics.jsonl has."""
    package = pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    place = tmp_path / "tracked"
    place.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(place))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    _train(packed, tmp_path / "o", tracker=tracker)
    assert len(losses(tmp_path / "o")) == 8
    if tracker == "wandb":
        (kept,) = place.rglob("*.wandb")
        assert kept.stat().st_size > 0
        return
    client = package.MlflowClient()
    (experiment,) = (each for each in client.search_experiments() if each.name == "bigr")
    (run,) = client.search_runs([experiment.experiment_id])
    tracked = [each.value for each in client.get_metric_history(run.info.run_id, "loss")]
    assert tracked == pytest.approx(losses(tmp_path / "o"))


def test_without_a_tracker_the_metrics_are_there_all_the_same(packed: Path, tmp_path: Path) -> None:
    _train(packed, tmp_path, tracker="none")
    assert len(losses(tmp_path)) == 8
    assert not list(tmp_path.rglob("events*"))


def test_gradient_checkpointing_changes_no_weight(packed: Path, tmp_path: Path, whole: dict[str, Tensor]) -> None:
    model = train_generator(CodeSet(packed), MODEL, settings(tmp_path, steps=8, save_every=100), recompute=True)
    assert _equal(model.state_dict(), whole)


@pytest.mark.slow
def test_signals_reach_loading_processes_and_other_threads_unharmed() -> None:
    code = f"""
import os, signal, threading
from bigr_repr.train.stopping import StopSignals, ignore_stop_signals
threading.Thread(target=lambda: StopSignals().__enter__()).start()
ignore_stop_signals(0)
for number in {tuple(map(int, SIGNALS))}:
    os.kill(os.getpid(), number)
print("alive")
"""
    assert run(code, check=True).stdout == "alive\n"


SPLIT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dataclasses
from test_train import MODEL, TOKENIZER, settings
from bigr_repr.datasets import open_images
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.generator import train_generator
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.tokenizer import TokenizerRecipe, train_tokenizer
still = dataclasses.replace(MODEL.generator, objective="bce", attention="causal")
config = dataclasses.replace(MODEL, generator=still)
recipe = GeneratorRecipe(dropout=0, class_dropout=0)
out = Path({out!r})
train_generator(CodeSet({codes!r}), config, settings(out / "g", steps=6), recipe)
plain = TokenizerRecipe(perceptual=None, gan_start=None, sample_bits=False)
train_tokenizer(open_images({images!r}), TOKENIZER, settings(out / "t", steps=6), plain)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_batch(
    packed: Path,
    images: Path,
    tmp_path: Path,
) -> None:
    """Of a generator and a tokenizer whose steps draw nothing at random: what is drawn differs by process."""
    for count in (1, 2):
        places = {"codes": str(packed), "images": str(images), "out": str(tmp_path / str(count))}
        run_together(count, SPLIT.format(tests=str(Path(__file__).parent), **places))
    for kind in ("g", "t"):
        one, two = losses(tmp_path / "1" / kind), losses(tmp_path / "2" / kind)
        assert one == pytest.approx(two, rel=2e-5)
        assert len(set(one)) == len(one)


@pytest.mark.slow
def test_a_command_that_is_terminated_ends_with_its_code_and_goes_on(packed: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tokenizer(BinaryAutoencoder(MODEL.tokenizer), tmp_path / "t")
    command = ["train", "generator", packed, "--cpu", "--precision", "float32", "--tokenizer", tmp_path / "t"]
    command += ["--out", tmp_path / "o", "--batch-size", 2, "--log-every", 1]
    with start(COMMAND, [*command, "--steps", 100000]) as process:
        metrics = tmp_path / "o" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE
    assert "stopped by SIGTERM after step" in said.splitlines()[-1]
    done = len(losses(tmp_path / "o"))
    again = run_command(*command, "--steps", done + 2, check=True)
    assert f"step {done + 2}/{done + 2}" in again.stderr


def test_runs_of_one_process_may_differ_in_precision(packed: Path, tmp_path: Path) -> None:
    for number, precision in enumerate(("float32", "bfloat16", "float32")):
        _train(packed, tmp_path / str(number), precision=precision)
        assert len(losses(tmp_path / str(number))) == 8
