"""A store that fails in every way: nothing is lost or taken for whole that is not, and the run says what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, s3_server
from store_proxy import StoreProxy, store_proxy
from tiny_model import write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, Progress, embed_images, read_embeddings
from bigr_repr.system import filesystems, retries
from bigr_repr.system.object_store import ObjectPath

COUNT = 20


@pytest.fixture(scope="module")
def proxy() -> Iterator[StoreProxy]:
    with (
        s3_server() as environment,
        store_proxy(environment["AWS_ENDPOINT_URL"]) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**environment, "AWS_ENDPOINT_URL": made.address}.items():
            patch.setenv(name, value)
        patch.setattr(retries, "_FIRST", 0.1)
        patch.setattr(filesystems, "_ATTEMPTS", 1)  # the patience that is tested is ours
        yield made


@pytest.fixture
def store(proxy: StoreProxy, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectPath]:
    place = ObjectPath(f"s3://{BUCKET}") / request.node.name
    for file in write_pictures(tmp_path / "in", COUNT):
        with (place / "in" / file.name).put() as target:
            target.write(file.read_bytes())
    yield place
    proxy.rule = lambda method, path, number: None


def run(inputs: Any, out: Any, model: Pretrained, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 5, "batch_size": 5, "decode_timeout": None, "workers": 2}
    return embed_images(str(inputs), str(out), model=model, **{**usual, **options})


def failures(out: ObjectPath) -> dict[str, str]:
    lines = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    return {line["path"]: line["error"] for line in lines}


@pytest.mark.slow
def test_an_outage_is_sat_out(proxy: StoreProxy, store: ObjectPath, pre: Pretrained, tmp_path: Path) -> None:
    until: list[float] = []

    def out_for_seconds(progress: Progress) -> None:
        if progress.total and progress.done == 5 and not until:
            until.append(time.monotonic() + 3)
            proxy.rule = lambda method, path, number: 503 if time.monotonic() < until[0] else None

    done = run(store / "in", store / "out", pre, on_progress=out_for_seconds)
    assert until
    assert time.monotonic() > until[0]
    assert (done.rows, done.failures) == (COUNT, 0)
    run(tmp_path / "in", tmp_path / "whole", pre)
    assert read_embeddings(store / "out").vectors.tobytes() == read_embeddings(tmp_path / "whole").vectors.tobytes()


@pytest.mark.slow
def test_pieces_that_break_off_are_asked_for_again(
    proxy: StoreProxy, store: ObjectPath, pre: Pretrained, tmp_path: Path
) -> None:
    def breaking(method: str, path: str, number: int) -> float | None:
        return 0.5 if method == "GET" and path.endswith(".png") and number % 4 == 0 else None

    proxy.rule = breaking
    done = run(store / "in", tmp_path / "out", pre)
    assert (done.rows, done.failures) == (COUNT, 0)
    run(tmp_path / "in", tmp_path / "whole", pre)
    assert read_embeddings(tmp_path / "out").vectors.tobytes() == read_embeddings(tmp_path / "whole").vectors.tobytes()


@pytest.mark.slow
def test_what_is_refused_for_good_is_a_failure_and_the_rest_is_done(
    proxy: StoreProxy, store: ObjectPath, pre: Pretrained
) -> None:
    proxy.rule = lambda method, path, number: 403 if path.endswith("/00003.png") else None
    done = run(store / "in", store / "out", pre)
    assert (done.rows, done.failures) == (COUNT - 1, 1)
    assert failures(store / "out") == {"00003.png": "unreadable"}
    assert run(store / "in", store / "out", pre).embedded == 0


@pytest.mark.slow
def test_what_is_out_of_reach_or_missing_is_tried_by_the_next_run(
    proxy: StoreProxy, store: ObjectPath, pre: Pretrained
) -> None:
    statuses = {"00003.png": 500, "00004.png": 404}
    proxy.rule = lambda method, path, number: statuses.get(path.rpartition("/")[2])
    with (store / "in" / "00007.png").put() as file:
        file.write(b"no picture")
    done = run(store / "in", store / "out", pre, retry_for=0.5)
    assert (done.rows, done.failures) == (COUNT - 3, 3)
    kinds = {"00003.png": "unreachable", "00004.png": "missing", "00007.png": "not-an-image"}
    assert failures(store / "out") == kinds
    proxy.rule = lambda method, path, number: None
    again = run(store / "in", store / "out", pre)
    assert (again.rows, again.embedded, again.failures) == (COUNT - 1, 2, 1)  # the damaged one is not tried


@pytest.mark.slow
def test_a_unit_that_the_store_does_not_take_is_set_aside(
    proxy: StoreProxy, store: ObjectPath, pre: Pretrained, tmp_path: Path
) -> None:
    proxy.rule = lambda method, path, number: 403 if path.endswith("part-00001.parquet") else None
    said = "1 units of 5 images could not be written; everything else is done; run it again"
    with pytest.raises(ConnectionError, match=said) as caught:
        run(store / "in", store / "out", pre)
    assert "\n" not in str(caught.value)
    proxy.rule = lambda method, path, number: None
    assert len(list((store / "out").glob("part-*"))) == 3
    assert run(store / "in", store / "out", pre).embedded == 5
    run(tmp_path / "in", tmp_path / "whole", pre)
    assert read_embeddings(store / "out").vectors.tobytes() == read_embeddings(tmp_path / "whole").vectors.tobytes()


@pytest.mark.slow
def test_patience_ends(proxy: StoreProxy, store: ObjectPath, pre: Pretrained) -> None:
    def away(progress: Progress) -> None:
        if progress.total and progress.done == 5:
            proxy.rule = lambda method, path, number: 503

    started = time.monotonic()
    with pytest.raises(ConnectionError, match="the server does not answer"):
        run(store / "in", store / "out", pre, on_progress=away, retry_for=1.0)
    assert time.monotonic() - started < 60
