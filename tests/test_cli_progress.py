"""What is counted is told: on a terminal as a bar, else as a line a minute for each thing."""

from __future__ import annotations

import time

import pytest
from bigr_repr_cli import progress
from rich.console import Console


def test_without_a_terminal_each_thing_has_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.bench_progress() as on_progress:
        for second in range(0, 200, 10):
            clock[0] = float(second)
            on_progress("cifar10 train", second, 400)
            on_progress("probe", second // 10, 20)
    with progress.counting_progress("encoding") as count:
        clock[0] += 90
        count(1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "cifar10 train: 60 of 400, about 6 min left", "probe: 6 of 20, about 2 min left",
        "cifar10 train: 120 of 400, about 5 min left", "probe: 12 of 20, about 1 min left",
        "cifar10 train: 180 of 400, about 4 min left", "probe: 18 of 20, about 0 min left",
        "encoding: 1 of 2, about 2 min left",
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_names_with_brackets_are_shown_as_they_are(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "Console", lambda **options: Console(**options, force_terminal=terminal, width=120))
    if not terminal:
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.bench_progress() as on_progress:
        on_progress("run [/data/x] [v1], train", 0, 3)
        clock[0] = 70
        on_progress("run [/data/x] [v1], train", 1, 3)
    assert "run [/data/x] [v1], train" in capsys.readouterr().err


def test_without_a_terminal_what_takes_long_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is counted for minutes, and between one thing and the next."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = progress._Lines(Console(stderr=True))

    def at(second: float) -> None:
        clock[0] = second
        lines.beat()

    at(100)
    lines.tell("linear probe", 0, 2)
    for second in (130, 170, 220, 300):
        at(second)
    lines.tell("linear probe", 2, 2)
    for second in (310, 420):
        at(second)
    assert capsys.readouterr().err.splitlines() == [
        "linear probe: 0 of 2", "linear probe: 0 of 2, for 2 min now", "linear probe: 0 of 2, for 3 min now",
        "linear probe: done, 2 min ago",
    ]  # fmt: skip


def test_a_thread_sees_to_the_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
    with progress.counting_progress("indexing") as count:
        count(0, 3)
        said, until = "", time.monotonic() + 60
        while "indexing: 0 of 3" not in said and time.monotonic() < until:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "indexing: 0 of 3" in said
