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
from bigr_repr.embed import EmbedSummary, Progress, read_embeddings
from bigr_repr.embed.dataset.locate import RowLocator

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
        self.past = dict[str, set[str]]()  # every digest that a path ever had
        for file, members in self.members.items():
            members += [(f"{number}.png", chance.choice(CONTENTS)) for number in range(4)]
            self._write(file)

    def _write(self, file: Path) -> None:
        self._to(file, self.members[file])
        for path, digest in paths_of(file, self.members[file]).items():
            self.past.setdefault(path, set()).add(digest)

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


def check(shards: Shards, out: Path, done: EmbedSummary, *, dropped: bool, reference: dict[str, bytes]) -> None:
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
    gone = (rows.keys() | failures | doubles.keys()) - now.keys()
    assert all(rows[path] in shards.past[path] for path in gone & rows.keys())
    assert gone <= {line["path"] for line in lines_of(out / "gone.jsonl")}
    assert not dropped or not gone
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
            check(shards, out, done, dropped=dropped, reference=reference)
            if not lines_of(out / "gone.jsonl"):
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
    write_tar(two, [("new.png", CONTENTS[4]), ("a.png", CONTENTS[2]), ("b.png", CONTENTS[3])])  # all others move
    done = run([one, two], out, pre, update=True)
    assert (done.embedded, done.rows, done.gone, done.dropped) == (3, 5, 0, 2)
    for update in (False, True):
        done = run([one, two], out, pre, update=update)
        assert (done.embedded, done.rows, done.gone, done.dropped) == (0, 5, 0, 2)


def test_rows_that_cannot_be_made_again_are_not_made_of_other_images(pre: Pretrained, tmp_path: Path) -> None:
    file, out = tmp_path / "in.parquet", tmp_path / "out"
    write_parquet(file, [("", content) for content in CONTENTS[:3]])
    run(file, out, pre)
    before = vectors_of(out)
    write_tar(file.with_suffix(".tar"), [])
    write_parquet(file, [("", CONTENTS[4])])
    done = run(file, out, pre, update=True)
    assert (done.rows, done.gone, done.changed) == (3, 2, 1)
    after = vectors_of(out)
    assert {path for path in before if before[path] != after[path]} == {f"{file}#0"}
    locator = RowLocator(out)
    assert [locator.entry("part-00000.parquet", row) is None for row in range(3)] == [False, True, True]
    part = out / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))  # of the same size
    done = run(file, out, pre, update=True, verify=True)
    assert (vectors_of(out).keys(), done.dropped) == ({f"{file}#0"}, 2)
