"""Index folders: what is saved is loaded, damage is an error in words, and nothing is ever half written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forks import run

from bigr_repr.retrieval import KINDS, HammingIndex, IndexSettings, fit_binarizer
from bigr_repr.retrieval.index.folder import FolderReader, manifest_digest
from bigr_repr.retrieval.index.folder_writer import FolderWriter
from bigr_repr.serve.live_index import FolderOpener

PROVENANCE = {
    "of": "tokenizer bits", "layer": 3, "pooling": "avg", "model": "m", "weights_sha256": "0" * 64,
    "precision": "float32", "preprocessing": {"image_size": 64},
}  # fmt: skip


def codes_of(rows: int, n_bytes: int = 16, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = [random.integers(0, 256, (rows, n_bytes), np.uint8) for _ in range(3)]
    return np.asarray(
        random.integers(0, 256, (5, n_bytes), np.uint8)[np.arange(rows) % 5] ^ (noise[0] & noise[1] & noise[2])
    )


def made(kind: str, rows: int = 300) -> HammingIndex:
    vectors = np.random.default_rng(0).normal(size=(rows, 128)).astype(np.float16)
    index = HammingIndex.build(
        codes_of(rows), ids=[f"ö/{i}.jpg" for i in range(rows)], kind=kind, vectors=vectors, bits_per_token=2,
        provenance=PROVENANCE,
    )  # fmt: skip
    index.binarizer = fit_binarizer("median", vectors)
    return index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_map", [True, False])
def test_what_is_saved_is_loaded(kind: str, memory_map: bool, tmp_path: Path) -> None:
    index = made(kind)
    index.save(tmp_path / "index")
    again = HammingIndex.load(tmp_path / "index", memory_map=memory_map)
    queries = codes_of(20, seed=3)
    np.testing.assert_array_equal(again.search(queries, 7).ids, index.search(queries, 7).ids)
    assert again.ids.equals(index.ids)
    assert (again.settings, again.layout, again.provenance) == (index.settings, index.layout, index.provenance)
    assert again.self_check == index.self_check
    assert again.rows.vectors is not None
    assert again.binarizer is not None
    np.testing.assert_array_equal(again.rows.vectors, index.rows.vectors)
    again.add(codes_of(3, seed=9), ["a", "b", "c"], vectors=np.zeros((3, 128)))  # a mapped index can be changed
    again.remove(["ö/7.jpg"])
    again.save(tmp_path / "index")
    third = HammingIndex.load(tmp_path / "index")
    assert third.ids.to_pylist()[-3:] == ["a", "b", "c"]
    assert len(third) == 302
    assert len([file for file in (tmp_path / "index").iterdir() if file.suffix == ".bin"]) == 4  # no old files


def test_an_index_may_have_a_single_bit(tmp_path: Path) -> None:
    HammingIndex.build(np.array([[128], [0]], np.uint8), n_bits=1).save(tmp_path / "index")
    found = HammingIndex.load(tmp_path / "index").search(np.array([[128]], np.uint8), 2)
    assert (found.ids.tolist(), found.distances.tolist()) == ([[0, 1]], [[0, 1]])


def test_numbers_as_ids_and_an_empty_index(tmp_path: Path) -> None:
    for rows in (0, 4):
        index = HammingIndex.build(codes_of(rows), ids=np.arange(rows) + 7)
        index.save(tmp_path / "i")
        again = HammingIndex.load(tmp_path / "i")
        assert again.ids.to_pylist() == list(range(7, 7 + rows))
    assert again.search(codes_of(4)[2], 1).ids[0, 0] == 9


def test_a_save_that_fails_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("flat").save(tmp_path / "i")
    before = sorted(file.name for file in (tmp_path / "i").iterdir())
    append = FolderWriter.append

    def full(self: FolderWriter, part: str, data: object) -> None:
        if part == "vectors":
            raise OSError(28, "No space left on device")
        append(self, part, data)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderWriter, "append", full)
    with pytest.raises(OSError, match="No space"):
        made("ivf").save(tmp_path / "i")
    with pytest.raises(OSError, match="No space"):
        made("flat").save(tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "i").iterdir()) == before
    assert not (tmp_path / "new").exists()
    assert HammingIndex.load(tmp_path / "i").settings.kind == "flat"


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_the_old_index(tmp_path: Path) -> None:
    made("flat").save(tmp_path / "i")
    script = (
        "import os; from test_retrieval_files import made, FolderWriter\n"
        "FolderWriter.commit = lambda *_: os._exit(9)\n"
        f"made('ivf').save({str(tmp_path / 'i')!r})"
    )
    assert run(script).returncode == 9
    assert HammingIndex.load(tmp_path / "i").settings.kind == "flat"
    made("flat").save(tmp_path / "i")  # and the next save tidies up
    assert not list((tmp_path / "i").glob("search-*"))


@pytest.mark.slow
def test_a_process_killed_at_its_first_save_does_not_bar_the_next(tmp_path: Path) -> None:
    script = (
        "import os; from test_retrieval_files import made, FolderWriter\n"
        "FolderWriter.commit = lambda *_: os._exit(9)\n"
        f"made('ivf').save({str(tmp_path / 'i')!r})"
    )
    assert run(script).returncode == 9
    left = {file.name for file in (tmp_path / "i").iterdir()}
    assert left
    with pytest.raises(FileNotFoundError, match="no index here"):
        HammingIndex.load(tmp_path / "i")
    made("flat").save(tmp_path / "i")
    assert len(HammingIndex.load(tmp_path / "i")) == 300
    assert not left & {file.name for file in (tmp_path / "i").iterdir()}


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds something other"):
        made("flat").save(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        made("flat").save(tmp_path / "letter.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_every_file_is_on_the_disk_before_the_manifest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def watched(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    made("hnsw").save(tmp_path / "i")
    manifest = synced.index((tmp_path / "i" / "index.json").stat().st_ino)
    data = {file.stat().st_ino for file in (tmp_path / "i").iterdir() if file.name != "index.json"}
    assert len(data) == 6  # codes, ids, offsets, vectors, binarizer, graph
    assert data <= set(synced[:manifest])
    assert (tmp_path / "i").stat().st_ino in synced[:manifest]  # their names are


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    from bigr_repr.retrieval.index.folder_writer import writing

    with pytest.raises(RuntimeError, match="another process is writing"), writing(tmp_path / "i"):
        made("flat").save(tmp_path / "i")


def test_limits_and_missing_files_are_errors_in_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bigr-repr index build"):
        HammingIndex.load(tmp_path)
    made("flat").save(tmp_path / "i")
    with pytest.raises(ValueError, match="more than max_bytes=1,000"):
        HammingIndex.load(tmp_path / "i", max_bytes=1000)
    next((tmp_path / "i").glob("codes-*")).unlink()
    with pytest.raises(ValueError, match="missing; build the index again"):
        HammingIndex.load(tmp_path / "i")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(count=10**12),
        lambda m: m.update(count=-1),
        lambda m: m.update(n_bits=10**9),
        lambda m: m.update(settings={"kind": "flat", "magic": 1}),
        lambda m: m.update(settings={"kind": "hnsw"}),
        lambda m: m.update(layout=[1, 2]),
        lambda m: m.update(layout=[10**9, 10**9, 1]),
        lambda m: m.update(vectors={"dtype": "object", "width": 128}),
        lambda m: m.update(vectors={"dtype": "float16", "width": 10**9}),
        lambda m: m["files"]["codes"].update(name="../codes.bin"),
        lambda m: m["files"]["codes"].update(name="/etc/passwd"),
        lambda m: m["files"]["codes"].update(bytes=5),
        lambda m: m["files"]["codes"].update(sha256=5),
        lambda m: m["files"].update(evil=m["files"]["codes"]),
        lambda m: m["files"].pop("codes"),
        lambda m: m.update(binariser="lsh"),
        lambda m: m.update(self_check={"recall": "x"}),
        lambda m: m.update(format=99),
        lambda m: m.update(ids="other"),
        lambda m: m.update(origin={}),
        lambda m: m["origin"].pop("model"),
        lambda m: m["origin"].update(of="features"),
        lambda m: m["origin"].update(layer="3"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: object, tmp_path: Path) -> None:
    made("flat").save(tmp_path / "i")
    path = tmp_path / "i" / "index.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    change(manifest)  # type: ignore[operator]
    path.write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))
    with pytest.raises(ValueError, match=str(tmp_path)):
        HammingIndex.load(tmp_path / "i")


@pytest.mark.slow
def test_no_altered_character_of_a_manifest_passes(tmp_path: Path) -> None:
    made("flat").save(tmp_path / "i")
    path = tmp_path / "i" / "index.json"
    text = path.read_text()
    for place, letter in enumerate(text):
        if not letter.isspace():  # between values, blanks say nothing
            path.write_text(f"{text[:place]}{'8' if letter != '8' else '9'}{text[place + 1 :]}")
            with pytest.raises(ValueError, match=r"index\.json: (damaged|format)"):
                HammingIndex.load(tmp_path / "i")


FUZZ = """
import resource, sys, shutil, random, pathlib
import numpy as np
from bigr_repr.retrieval import HammingIndex
from bigr_repr.retrieval.index.folder import manifest_digest
import faiss, hashlib, json
folder, work, resign = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] == "resign"
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + (200 << 10)
generator = random.Random(int(sys.argv[4]))
queries = np.random.default_rng(0).integers(0, 256, (4, 16), np.uint8)
outcomes = {"fine": 0, "refused": 0}
for turn in range(int(sys.argv[5])):
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work)
    files = sorted(work.iterdir())
    if resign:
        files = [file for file in files if file.suffix in (".faiss", ".bin", ".safetensors")]
    file = generator.choice(files)
    data = bytearray(file.read_bytes())
    if turn % 4 == 0 and not resign:
        data = data[: generator.randrange(len(data))]
    else:
        for _ in range(generator.choice((1, 1, 3, 50))):
            # headers hold the sizes: hit them more often than their share
            place = generator.randrange(min(len(data), 128) if generator.random() < 0.5 else len(data))
            data[place] = generator.choice((0, 255, 127, 128, generator.randrange(256)))
    file.write_bytes(data)
    if resign:  # an attacker's file, with a checksum that fits
        manifest = json.loads((work / "index.json").read_text())
        for entry in manifest["files"].values():
            if entry["name"] == file.name:
                entry["sha256"] = hashlib.sha256(data).hexdigest()
        del manifest["sha256"]
        (work / "index.json").write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))
    try:
        index = HammingIndex.load(work, memory_map=turn % 2 == 0)
        if turn % 3:
            index.search(queries, 5)
        else:
            index.rows.check()
        outcomes["fine"] += 1
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1, error
        outcomes["refused"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit, f"turn {turn}: {file.name} took memory"
print(outcomes)
assert outcomes["refused"], outcomes
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resign", ["damaged", "resign"])
def test_fuzzed_files_end_in_typed_errors_and_bounded_memory(kind: str, resign: str, tmp_path: Path) -> None:
    made(kind).save(tmp_path / "i")
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "i"), str(tmp_path / "w"), resign, "1", "150"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout


def test_verifying_finds_what_mapping_does_not_look_at(tmp_path: Path) -> None:
    made("flat").save(tmp_path / "i")
    file = next((tmp_path / "i").glob("codes-*"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    HammingIndex.load(tmp_path / "i")
    with pytest.raises(ValueError, match="has changed since it was written"):
        HammingIndex.load(tmp_path / "i", memory_map=False)


@pytest.mark.parametrize("named", [True, False])
def test_of_ids_only_the_pieces_that_are_read_are_checked(named: bool, tmp_path: Path) -> None:
    """Damage at the end of a megabyte of ids: what lies before is answered, what is damaged never is."""
    count = 150_000
    codes = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    ids = [f"a/{i:08d}" for i in range(count)] if named else list(range(7, count + 7))
    HammingIndex.build(codes, ids=ids).save(tmp_path / "i")
    (file,) = (tmp_path / "i").glob("ids-*")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    index = HammingIndex.load(tmp_path / "i")
    assert len(index) == count
    assert index.search(codes[[5, 900]], 1).ids.tolist() == [[ids[5]], [ids[900]]]
    for ask in (
        lambda: index.search(codes[-1:], 1),
        lambda: index.ids,
        lambda: index.rows.places([ids[0]]),
        lambda: HammingIndex.load(tmp_path / "i", memory_map=False),
        lambda: FolderOpener(tmp_path / "i").open(lambda index: None),  # a server asks for all before it serves
    ):
        with pytest.raises(ValueError, match=f"{file.name}: damaged, its content has changed since it was written"):
            ask()
    data[-3] ^= 1
    file.write_bytes(data)
    again = HammingIndex.load(tmp_path / "i")
    kept = np.delete(np.arange(count), [3, count - 2])
    assert again.rows.named(kept[::1111]).tolist() == [ids[i] for i in kept[::1111]]
    assert again.ids.to_pylist() == ids


@pytest.mark.parametrize("memory_map", [True, False])
def test_a_truncated_file_is_named_with_both_sizes(memory_map: bool, tmp_path: Path) -> None:
    made("flat").save(tmp_path / "i")
    file = next((tmp_path / "i").glob("codes-*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file.name}: 4799 bytes where 4800 were written"):
        HammingIndex.load(tmp_path / "i", memory_map=memory_map)


def test_files_behind_links_are_read(tmp_path: Path) -> None:
    """A hub's cache keeps a snapshot of links to files that are named by their content."""
    made("hnsw").save(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert len(HammingIndex.load(tmp_path / "snapshot")) == 300


def test_an_index_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("flat").save(tmp_path / "i")
    whole, turns = FolderReader.array, iter([made("flat", 301), made("hnsw", 302)])

    def replaced(self: FolderReader, *arguments: object, **options: object) -> object:
        if (index := next(turns, None)) is not None:
            index.save(tmp_path / "i")
        return whole(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderReader, "array", replaced)
    assert len(HammingIndex.load(tmp_path / "i")) == 302


def test_an_index_can_be_moved(tmp_path: Path) -> None:
    made("ivf").save(tmp_path / "i")
    shutil.move(tmp_path / "i", tmp_path / "elsewhere")
    assert len(HammingIndex.load(tmp_path / "elsewhere")) == 300


def test_settings_are_checked() -> None:
    for wrong in ({"kind": "x"}, {"lists": 0}, {"links": 1}, {"effort": -1}, {"target_recall": 0}, {"tables": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            IndexSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("lists", 1, 1 << 22),
        ("links", 2, 512),
        ("build_effort", 1, 1 << 16),
        ("hash_bits", 1, 32),
        ("tables", 1, 64),
        ("effort", 0, 1 << 22),
    ],
)
def test_settings_go_up_to_their_limits(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(IndexSettings(**{name: value}), name) == value  # type: ignore[arg-type]
    for value in (least - 1, most + 1):
        with pytest.raises(ValueError, match=name):
            IndexSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_go_by_the_names_that_faiss_gives_them() -> None:
    ours = IndexSettings(kind="hnsw", links=8, build_effort=40, effort=30)
    assert IndexSettings(kind="hnsw", M=8, efConstruction=40, efSearch=30) == ours
    assert IndexSettings(kind="ivf", nlist=9, nprobe=2) == IndexSettings(kind="ivf", lists=9, effort=2)
    assert IndexSettings.from_dict(ours.to_dict()) == ours
    assert replace(ours, effort=5).effort == 5
    with pytest.raises(ValueError, match="M=8 is links, which is 4"):
        IndexSettings(kind="hnsw", links=4, M=8)
    with pytest.raises(ValueError, match="lists=0"):
        IndexSettings(kind="ivf", nlist=0)
