"""Tar shards and Parquet files that are rewritten: after an update every image in them has a row of its own bytes."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_embed_histories import CONTENTS, GOOD, lines_of, reference, run, vectors_of, write

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedOptions, EmbedSummary, Progress, read_embeddings
from bigr_repr.embed.run import embed_sources, found_sources, load_setup

__all__ = ["reference"]  # the fixture

Members = list[tuple[str, bytes]]


def write_tar(file: Path, members: Members) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    write(file, file.read_bytes())


def write_parquet(file: Path, members: Members) -> None:
    pq.write_table(pa.table({"image": [content for _, content in members]}), file)
    write(file, file.read_bytes())


WRITERS: dict[str, Callable[[Path, Members], None]] = {"tar": write_tar, "parquet": write_parquet}


def paths_of(file: Path, members: Members) -> dict[str, str]:
    """The digest of each image in a container, by its path in the data set."""
    digests = [hashlib.sha256(content).hexdigest() for _, content in members]
    if file.suffix == ".parquet":
        return {f"{file.name}#{number}": digest for number, digest in enumerate(digests)}
    return {f"{file.name}/{name}": digest for (name, _), digest in zip(members, digests, strict=True)}


class Shards:
    """Two shards in a folder, to which things happen."""

    def __init__(self, place: Path, kind: str, chance: random.Random) -> None:
        place.mkdir(parents=True)
        self._to, self._chance = WRITERS[kind], chance
        self.members: dict[Path, Members] = {place / f"{name}.{kind}": [] for name in "ab"}
        for file, members in self.members.items():
            members += [(f"{number}.png", chance.choice(CONTENTS)) for number in range(4)]
            self._write(file)

    def _write(self, file: Path) -> None:
        self._to(file, self.members[file])

    @property
    def now(self) -> dict[str, str]:
        """The digest of each image that there is."""
        return {path: digest for each in self.members.items() for path, digest in paths_of(*each).items()}

    def happen(self) -> None:
        """Rewrite a shard: images are added anywhere, changed, removed, renamed or in another order."""
        file = self._chance.choice(list(self.members))
        members, names = self.members[file], {name for name, _ in self.members[file]}
        new = self._chance.choice([name for name in (f"{number}.png" for number in range(9)) if name not in names])
        at, kind = (
            self._chance.randrange(len(members)),
            self._chance.choice(["add", "insert", "change", "remove", "rename", "mix"]),
        )
        content = self._chance.choice(CONTENTS)
        if kind == "add" or len(members) < 2:
            members.append((new, content))
        elif kind == "insert":
            members.insert(at, (new, content))
        elif kind == "change":
            members[at] = (members[at][0], content)
        elif kind == "rename":
            members[at] = (new, members[at][1])
        elif kind == "remove":
            del members[at]
        else:
            self._chance.shuffle(members)
        del members[8:]
        self._write(file)


def check(shards: Shards, out: Path, done: EmbedSummary, reference: dict[str, bytes]) -> None:
    """Every image has a row of its own bytes, or is the double of one that does, or is a failure."""
    data, now = read_embeddings(out), shards.now
    assert data.sha256 is not None
    rows = dict(zip(data.paths, data.sha256, strict=True))
    assert len(rows) == len(data.paths)
    assert {path: reference[digest] for path, digest in rows.items()} == vectors_of(out)
    doubles = {line["path"]: line["same_as"] for line in lines_of(out / "duplicates.jsonl")}
    failures = {line["path"] for line in lines_of(out / "failures.jsonl")}
    for path, digest in now.items():
        if path in rows:
            assert rows[path] == digest, path
        elif path in failures:
            assert digest not in GOOD, path
        else:
            assert rows.get(doubles[path]) == (digest if digest in GOOD else None), path
    assert rows.keys() | failures | doubles.keys() == now.keys()
    assert lines_of(out / "gone.jsonl") == []
    assert len(rows) + len(failures) + len(doubles) + done.dropped == done.inputs


def history(seed: int, kind: str, pre: Pretrained, place: Path, reference: dict[str, bytes], **options: Any) -> None:
    chance, out = random.Random(seed), place / "out"
    shards = Shards(place / "in", kind, chance)

    def interrupt(progress: Progress) -> None:
        if progress.total and progress.done > 3:
            raise KeyboardInterrupt

    always = {"sha256": True, "root": place / "in", **options}
    for turn in range(8):
        dropped = chance.random() < 0.6
        if chance.random() < 0.4:
            try:
                run(list(shards.members), out, pre, update=True, on_progress=interrupt, **always)
            except KeyboardInterrupt:
                shards.happen()
        retry = chance.random() < 0.3
        done = run(list(shards.members), out, pre, update=True, drop_gone=dropped, retry_failed=retry, **always)
        try:
            check(shards, out, done, reference)
            again = run(list(shards.members), out, pre, **always)
            assert (again.embedded, again.rows) == (0, done.rows)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"seed {seed}, turn {turn}") from error
        for _ in range(chance.randrange(1, 3)):
            shards.happen()


@pytest.mark.parametrize("dedup", [None, "exact"])
@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_random_history(
    pre: Pretrained, tmp_path: Path, reference: dict[str, bytes], kind: str, dedup: str | None
) -> None:
    history(0, kind, pre, tmp_path, reference, dedup=dedup)


@pytest.mark.slow
@pytest.mark.parametrize("dedup", [None, "exact"])
@pytest.mark.parametrize("kind", list(WRITERS))
def test_many_random_histories(
    pre: Pretrained, tmp_path: Path, reference: dict[str, bytes], kind: str, dedup: str | None
) -> None:
    for seed in range(1, 8):
        history(seed, kind, pre, tmp_path / str(seed), reference, dedup=dedup)


def test_only_the_rewritten_shard_is_embedded_again(pre: Pretrained, tmp_path: Path) -> None:
    one, two, out = tmp_path / "1.tar", tmp_path / "2.tar", tmp_path / "out"
    write_tar(one, [("a.png", CONTENTS[0]), ("b.png", CONTENTS[1])])
    write_tar(two, [("a.png", CONTENTS[2]), ("b.png", CONTENTS[3])])
    run([one, two], out, pre)
    write_tar(two, [("new.png", CONTENTS[4]), ("b.png", CONTENTS[3])])
    done = run([one, two], out, pre, update=True)
    assert (done.embedded, done.rows, done.gone, done.dropped, done.changed) == (2, 4, 0, 2, 2)
    for update in (False, True):
        done = run([one, two], out, pre, update=update)
        assert (done.embedded, done.rows, done.gone, done.dropped, done.changed) == (0, 4, 0, 2, 0)


@pytest.mark.parametrize("dedup", [None, "exact"])
def test_places_in_a_rewritten_shard_are_never_read_again(pre: Pretrained, tmp_path: Path, dedup: str | None) -> None:
    file, out = tmp_path / "in.tar", tmp_path / "out"
    members = [(f"{number}.png", CONTENTS[number % 3]) for number in range(4)]
    write_tar(file, members)
    run(file, out, pre, dedup=dedup)
    write_tar(file, members[::-1])
    run(file, out, pre, dedup=dedup, update=True)
    before, parts = vectors_of(out), sorted(out.glob("part-*.parquet"))
    for part in parts:
        part.unlink()
        for options in ({}, {"update": True}, {"retry_failed": True}):
            run(file, out, pre, dedup=dedup, **options)
            assert vectors_of(out) == before
    part = parts[-1]
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))  # of the same size
    run(file, out, pre, dedup=dedup, verify=True)
    assert vectors_of(out) == before


def test_a_rewritten_shard_that_is_not_named_is_compared_when_it_is(pre: Pretrained, tmp_path: Path) -> None:
    one, two, out = tmp_path / "1.tar", tmp_path / "2.tar", tmp_path / "out"
    write_tar(one, [("a.png", CONTENTS[0])])
    write_tar(two, [("a.png", CONTENTS[1]), ("junk.png", CONTENTS[5])])
    run([one, two], out, pre, root=tmp_path)
    write_tar(two, [("new.png", CONTENTS[2]), ("a.png", CONTENTS[3])])
    done = run([one], out, pre, update=True, root=tmp_path)
    assert (done.rows, done.gone, done.dropped, done.failures) == (2, 2, 0, 1)
    done = run([one, two], out, pre, update=True, root=tmp_path)
    assert (done.rows, done.gone, done.changed, done.failures) == (3, 0, 2, 0)
    run([one, two], tmp_path / "anew", pre, root=tmp_path)
    assert vectors_of(out) == vectors_of(tmp_path / "anew")


def test_a_rewritten_shard_under_another_name_has_one_row_for_each_image(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "in.tar", tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    write_tar(file, [("a.png", CONTENTS[0]), ("b.png", CONTENTS[1])])
    run(file.name, out, pre)
    write_tar(file, [("b.png", CONTENTS[1]), ("a.png", CONTENTS[0])])
    done = run(file, out, pre, update=True)
    assert (done.rows, done.gone) == (2, 0)


def test_one_of_two_equal_names_that_goes_takes_its_row_along(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "in.tar", tmp_path / "out"
    write_tar(file, [("a.png", CONTENTS[0]), ("a.png", CONTENTS[1])])
    assert run(file, out, pre).rows == 2
    write_tar(file, [("a.png", CONTENTS[0])])
    assert run(file, out, pre, update=True).rows == 1
    write_tar(tmp_path / "anew.tar", [("a.png", CONTENTS[0])])
    run(tmp_path / "anew.tar", tmp_path / "anew", pre)
    assert [*vectors_of(out).values()] == [*vectors_of(tmp_path / "anew").values()]


@pytest.mark.parametrize("unit_size", [1, 3])
def test_a_double_of_a_superseded_image_keeps_its_own_row_when_its_record_is_lost(
    pre: Pretrained, tmp_path: Path, unit_size: int
) -> None:
    file, double, out = tmp_path / "in.tar", tmp_path / "keep.png", tmp_path / "out"
    write_tar(file, [("a.png", CONTENTS[0])])
    write(double, CONTENTS[0])
    always = {"dedup": "exact", "sha256": True, "root": tmp_path, "unit_size": unit_size}
    run([file, double], out, pre, **always)
    write_tar(file, [("a.png", CONTENTS[1])])
    run([file, double], out, pre, update=True, **always)
    rows = vectors_of(out)
    assert sorted(rows) == ["in.tar/a.png", "keep.png"]
    for part in sorted(out.glob("part-*.parquet")):
        part.unlink()
        for options in ({}, {"update": True}, {"verify": True, "retry_failed": True}):
            done = run([file, double], out, pre, **always, **options)
            assert (vectors_of(out), done.duplicates) == (rows, 0)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_container_that_is_rewritten_after_listing_is_spoken_of_and_embedded_by_the_next_update(
    pre: Pretrained, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, begun: bool
) -> None:
    file, out = tmp_path / f"in.{kind}", tmp_path / "out"
    members = [(f"{number}.png", CONTENTS[number]) for number in range(4)]
    WRITERS[kind](file, members)
    options = EmbedOptions(layers=(2,), batch_size=3, unit_size=3, decode_timeout=None, update=begun, sha256=True)
    if begun:
        run(file, out, pre, sha256=True, update=True)
    loaded, found = load_setup(pre, options), found_sources(file, out, options)
    WRITERS[kind](file, members[::-1])
    embed_sources(found, out, loaded, options)
    assert f"{file} changed after being listed; embed again with update" in caplog.text
    caplog.clear()
    done = run(file, out, pre, sha256=True, update=True)
    run(file, tmp_path / "anew", pre)
    assert (done.changed, vectors_of(out)) == (4, vectors_of(tmp_path / "anew"))
    assert (run(file, out, pre, sha256=True, update=True).changed, caplog.text) == (0, "")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_container_that_was_damaged_for_a_while_is_taken_in_again(pre: Pretrained, tmp_path: Path, kind: str) -> None:
    file, other, out = tmp_path / f"in.{kind}", tmp_path / "other.png", tmp_path / "out"
    WRITERS[kind](file, [("a.png", CONTENTS[0]), ("b.png", CONTENTS[1])])
    write(other, CONTENTS[2])
    run([file, other], out, pre)
    before, content = vectors_of(out), file.read_bytes()
    write(file, b"damaged")
    done = run([file, other], out, pre, update=True, drop_gone=True)
    assert (done.rows, done.failures) == (1, 1)
    write(file, content)
    done = run([file, other], out, pre, update=True, drop_gone=True)
    assert (done.failures, vectors_of(out)) == (0, before)
    assert run([file, other], out, pre, update=True).embedded == 0


def test_a_shard_that_is_named_twice_in_a_row_is_resumed(pre: Pretrained, tmp_path: Path) -> None:
    one, two, out = tmp_path / "1.tar", tmp_path / "2.tar", tmp_path / "out"
    for file in (one, two):
        write_tar(file, [("a.png", CONTENTS[0]), ("b.png", CONTENTS[1])])
    inputs = [one, str(tmp_path / "*.tar")]
    assert run(inputs, out, pre).rows == 6
    for options in ({}, {"update": True}):
        done = run(inputs, out, pre, **options)
        assert (done.rows, done.embedded) == (6, 0)


def test_what_a_failed_image_was_before_is_forgotten(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    for content in (CONTENTS[0], CONTENTS[1], b"junk"):
        write(photos / "a.png", content)
        run(photos, out, pre, dedup="exact", update=True)
    write(photos / "b.png", b"junk")
    done = run(photos, out, pre, dedup="exact", update=True)
    again = run(photos, out, pre, dedup="exact", update=True)
    assert (again.embedded, again.failures, again.duplicates) == (0, done.failures, done.duplicates)
