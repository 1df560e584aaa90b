"""However a run ends, the next one makes it whole: nothing lost, nothing doubled, nothing swapped."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_model import picture, write_pictures
from violence import Server

from bigr_repr.embed import read_embeddings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists() or not hasattr(os, "fork"), reason="Linux"),
]

Content = tuple[list[str], list[bytes], list[dict[str, str]]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


class Scene(NamedTuple):
    """A run to be disturbed. options: of embed_images; before: the data set that it finds, or None."""

    options: dict[str, Any]
    before: Path | None


def content(out: Path) -> Content:
    """All that a data set says, in its order; and nothing half written lies about."""
    assert not list(out.rglob(".*"))
    data = read_embeddings(out)
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    return data.paths, [vector.tobytes() for vector in data.vectors], failures


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, if there is such: hundreds of runs wait for the disk at every step."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def scenes(place: Path, server: Server) -> dict[str, Scene]:
    """A fresh run, one that takes in new inputs, one that tries failures again, one that overwrites another layer's."""
    folder = place / "scenes"
    few, many, mended = folder / "few", folder / "many", folder / "mended"
    for inputs, count in ((few, 7), (many, 11), (mended, 7)):
        write_pictures(inputs, count)
        (inputs / "00002.png").write_bytes(b"junk")
    usual = {"layers": [2], "unit_size": 4, "batch_size": 2}
    for name, layer in (("standing", 2), ("other", 1)):
        assert server.run(inputs=str(few), out=str(folder / name), **(usual | {"layers": [layer]}))["error"] is None
    assert server.run(inputs=str(mended), out=str(folder / "failed"), **usual)["error"] is None
    picture(2).save(mended / "00002.png")
    few.rename(folder / "aside")
    many.rename(few)  # the same names, so that an update finds additions only
    return {
        "fresh": Scene({"inputs": str(few), **usual}, None),
        "update": Scene({"inputs": str(few), "update": True, **usual}, folder / "standing"),
        "retry": Scene({"inputs": str(mended), "retry_failed": True, **usual}, folder / "failed"),
        "overwrite": Scene({"inputs": str(few), "overwrite": True, **usual}, folder / "other"),
    }


@pytest.fixture
def begin(place: Path, request: pytest.FixtureRequest) -> Any:
    """Makes the folder that a scene's run finds."""
    numbers = itertools.count()

    def begun(scene: Scene) -> Path:
        out = place / f"{request.node.name}-{next(numbers)}"
        if scene.before is not None:
            shutil.copytree(scene.before, out)
        return out

    return begun


def expected(server: Server, scene: Scene, out: Path) -> tuple[Content, list[str]]:
    """What the run gives when nothing happens to it, and the steps that it takes."""
    done = server.run(out=str(out), **scene.options)
    assert done["error"] is None
    return content(out), done["steps"]


@pytest.mark.parametrize("name", ["fresh", "update", "retry"])
def test_killed_at_every_step(server: Server, scenes: dict[str, Scene], begin: Any, name: str) -> None:
    scene = scenes[name]
    whole, steps = expected(server, scene, begin(scene))
    assert {"open", "write", "fsync", "replace"} <= {step.split()[0] for step in steps}
    assert len(steps) > 20
    for number, step in enumerate(steps):
        out = begin(scene)
        assert server.run("kill", number, out=str(out), **scene.options)["killed"], step
        again = server.run(out=str(out), **scene.options)
        assert again["error"] is None, (step, again["error"])
        assert content(out) == whole, step


def test_overwriting_killed_at_every_step(server: Server, scenes: dict[str, Scene], begin: Any) -> None:
    """The old data set is whole until it is given up; from then on the new one is to be had by going on."""
    scene = scenes["overwrite"]
    assert scene.before is not None
    before = content(scene.before)
    whole, steps = expected(server, scene, begin(scene))
    going_on = {key: value for key, value in scene.options.items() if key != "overwrite"}
    refused = []
    for number, step in enumerate(steps):
        out = begin(scene)
        assert server.run("kill", number, out=str(out), **scene.options)["killed"], step
        again = server.run(out=str(out), **going_on)
        if again["error"] is not None:
            refused.append(step)
            assert "layers was [1], is [2]" in again["error"], step
            data = read_embeddings(out)
            assert (data.paths, [vector.tobytes() for vector in data.vectors]) == before[:2], step
            assert server.run(out=str(out), **scene.options)["error"] is None
        assert content(out) == whole, step
    assert "unlink plan.json" in refused
    assert "replace .plan.json.part" not in refused


@pytest.mark.parametrize(("name", "fault"), [("fresh", "full"), ("update", "broken")])
def test_the_disk_fails_at_every_step(
    server: Server, scenes: dict[str, Scene], begin: Any, name: str, fault: str
) -> None:
    scene = scenes[name]
    whole, steps = expected(server, scene, begin(scene))
    said = {"full": "No space left on device", "broken": "Input/output error"}[fault]
    for number, step in enumerate(steps):
        out = begin(scene)
        failed = server.run(fault, number, out=str(out), **scene.options)
        # That a folder which is there already cannot be made is no error.
        assert said in str(failed["error"]) or step.startswith("mkdir"), (step, failed)
        again = server.run(out=str(out), **scene.options)
        assert again["error"] is None, (step, again["error"])
        assert content(out) == whole, step


def test_killed_at_random_moments(server: Server, scenes: dict[str, Scene], begin: Any) -> None:
    """Each run is killed, over and over, until one gets to the end."""
    chance = random.Random(0)
    scene, kills = scenes["fresh"], 0
    started = time.monotonic()
    whole, _ = expected(server, scene, begin(scene))
    usual = time.monotonic() - started
    while kills < 40:
        out = begin(scene)
        while (end := server.run("timer", chance.uniform(0, usual), out=str(out), **scene.options))["killed"]:
            kills += 1
        assert end["error"] is None
        assert content(out) == whole
