"""What is counted is told: on a terminal as a bar, else as a line a minute for each thing."""

from __future__ import annotations

import pytest
from bigr_repr_cli import progress


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
