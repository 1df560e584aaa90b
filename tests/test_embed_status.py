"""How far a run is: a line a minute, JSON, metrics, and the same from another machine."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from bigr_repr_cli.embed import report, watch
from bigr_repr_cli.embed.metrics import parse_address, serving
from bigr_repr_cli.embed.watch import Meter, WatchOptions, in_time
from bigr_repr_cli.main import app
from tiny_model import write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.embed import Progress, embed_images, embed_status
from bigr_repr.embed.dataset import status


def run(inputs: Any, out: Any, model: Pretrained, **options: Any) -> Any:
    usual = {"layers": [2], "unit_size": 3, "batch_size": 3, "decode_timeout": None}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def test_a_run_is_seen_from_outside(pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_EVERY", 0.0)
    with pytest.raises(FileNotFoundError, match="no run has been planned here"):
        embed_status(tmp_path / "out")
    write_pictures(tmp_path / "in", 10)
    (tmp_path / "in" / "00004.png").write_bytes(b"junk")
    seen = []

    def look(progress: Progress) -> None:
        if progress.total and progress.done == 6:
            seen.append(embed_status(tmp_path / "out"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", pre, on_progress=look)
    (during,) = seen
    assert (during.units, during.images, during.running) == (4, 10, True)
    assert during.units_done in (1, 2)  # the second one is sealed after its last batch is told
    assert (during.told["done"], during.told["failures"], during.told["engine"]) == (6, 1, "local")
    after = embed_status(tmp_path / "out")
    assert (after.running, after.units_done < 4) == (False, True)
    run(tmp_path / "in", tmp_path / "out", pre)
    ended = embed_status(tmp_path / "out")
    assert (ended.units_done, ended.images_done, ended.seconds_left, ended.running) == (4, 10, 0.0, False)


def test_who_did_units_is_told(pre: Pretrained, tmp_path: Path) -> None:
    told = status.StatusFile(tmp_path, "ray")
    told._written -= 60
    told.tell(3, 9, 0, by="a, process 1")
    told._written -= 60
    told.tell(6, 9, 0, by="b, process 2")
    assert json.loads((tmp_path / "status.json").read_text())["units"] == {"a, process 1": 1, "b, process 2": 1}


def test_short_runs_write_no_status(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3)
    run(tmp_path / "in", tmp_path / "out", pre)
    assert not (tmp_path / "out" / "_run" / "status.json").exists()


# ---- lines


def test_rates_are_of_the_last_minutes_and_not_of_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    meter = Meter()
    for second in range(100):
        now = 1000.0 + second
        meter.count(second * 5000, None, 0)
    assert str(meter) == "listing: 495,000 images so far"
    now = 1100.0
    meter.count(200_000, 500_000, 0)  # of earlier runs
    for second in range(1, 1001):
        now = 1100.0 + second
        meter.count(200_000 + 100 * second, 500_000, 7)
    assert meter.rate == pytest.approx(100)
    assert meter.left == pytest.approx(2000)
    assert str(meter) == "embedding: 300,000 of 500,000 images (60.0 %), 7 failed, 100.0 images/s, about 33 min left"


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89.0, "1 min"), (3600 * 5.5, "5 h 30 min"), (86400 * 6.5, "6 d 12 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_time(seconds) == words


def test_without_a_terminal_there_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    metrics = tmp_path / "embed.prom"
    with report.embedding_progress(WatchOptions(metrics=metrics)) as show:
        for second in range(300):
            now = float(second)
            show(Progress(second * 10, 4000, second // 100))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert all(
        re.fullmatch(r"embedding: [\d,]+ of 4,000 images .*, 10\.0 images/s, about \d+ min left", s) for s in said
    )
    found = dict(line.split(" ") for line in metrics.read_text().splitlines() if not line.startswith("#"))
    assert found["bigr_repr_embed_images_done"] == "2990"
    assert found["bigr_repr_embed_images_planned"] == "4000"
    assert found["bigr_repr_embed_images_failed"] == "2"


def test_counts_are_asked_for_at_a_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ports = []

    @contextmanager
    def noted(address: str, text: Callable[[], str]) -> Iterator[int]:
        with serving(address, text) as port:
            ports.append(port)
            yield port

    monkeypatch.setattr(watch, "serving", noted)
    with report.embedding_progress(WatchOptions(metrics_port="0")) as show:
        show(Progress(7, 40, 2))
        place = f"http://127.0.0.1:{ports[0]}"
        with urllib.request.urlopen(f"{place}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            told = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{place}/", timeout=5)
        with pytest.raises(OSError, match="cannot listen there"), serving(str(ports[0]), str):
            pass
    assert f"metrics at port {ports[0]}, /metrics" in capsys.readouterr().err
    assert "bigr_repr_embed_images_done 7\n" in told
    assert "bigr_repr_embed_images_failed 2\n" in told
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{place}/metrics", timeout=5)


@pytest.mark.parametrize(
    ("text", "place"), [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::]:5", ("::", 5))]
)
def test_addresses(text: str, place: tuple[str, int]) -> None:
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["", "host", "99999", "::1", "1:2:3"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a port"):
        parse_address(text)


def test_the_commands_tell(pre: Pretrained, tmp_path: Path) -> None:
    save(pre, tmp_path / "model")
    write_pictures(tmp_path / "in", 4)
    options = ["--model", tmp_path / "model", "--layer", "2", "--decode-timeout", "0", "--unit-size", "2"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["embed", *map(str, [tmp_path / "in", "--out", out, *options]), "--log-json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (lines[0]["phase"], lines[0]["total"]) == ("embedding", 4)
    assert (lines[-1]["done"], lines[-1]["failures"], lines[-1]["ended"]) == (4, 0, True)
    told = CliRunner().invoke(app, ["embed status", str(out)])
    assert told.stdout.startswith(f"{out}: 2 of 2 units done (100.0 %)\nimages: about 4 of 4\n")
    as_json = CliRunner().invoke(app, ["embed status", str(out), "--json"])
    assert json.loads(as_json.stdout)["units_done"] == 2


@pytest.mark.parametrize(
    ("written", "rate", "left"),
    [
        ([], 0.0, None),  # nothing to tell by
        ([1000.0], 0.0, None),
        ([1000.0, 1010.0, 1020.0], 0.3, 39 / 0.3),  # a unit of three images in ten seconds
        ([0.0, 1.0, 2.0, 9000.0, 9010.0], 0.3, 33 / 0.3),  # of the last minutes
        ([1000.0] * 16, 0.0, 0.0),
    ],
)
def test_the_rate_is_that_of_the_last_units(
    written: list[float], rate: float, left: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = SimpleNamespace(units=16, inputs=48)
    monkeypatch.setattr(status, "open_plan", lambda folder: plan)
    monkeypatch.setattr(status, "_records", lambda folder: list(enumerate(written)))
    found = embed_status(tmp_path)
    assert found.rate == pytest.approx(rate)
    assert found.seconds_left == (left if left is None else pytest.approx(left))
