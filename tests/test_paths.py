"""Laws of finding images: order, recorded paths, patterns, links, names that are not UTF-8, lists."""

import errno
import glob
import io
import itertools
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigr_repr.images import find, sorting
from bigr_repr.images.find import Source, escape_path, find_images, read_list, unescape_path


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def paths(*args: object, **options: object) -> list[str]:
    return [source.path for source in find_images(*args, **options)]  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "imgs/b.jpg", "imgs/a.PNG", "imgs/a/z.webp", "imgs/a/deep/er/c.tif", "imgs/a.b/q.gif")
    make(tmp_path, "imgs/notes.txt", "imgs/.DS_Store", "imgs/.hidden.jpg", "imgs/.cache/t.jpg", "imgs/a/._c.jpg")
    return make(tmp_path, "other/b.jpg", "other/raw.dat", "other/list.dat")


def test_a_folder_gives_its_images_in_byte_order_relative_to_it(tree: Path) -> None:
    found = list(find_images("imgs"))
    assert [s.path for s in found] == ["a.PNG", "a.b/q.gif", "a/deep/er/c.tif", "a/z.webp", "b.jpg"]
    assert [s.path for s in found] == sorted(s.path for s in found)
    for source in found:
        assert source.file == f"imgs/{source.path}"
        assert Path(source.file).read_text() == source.file
    assert paths("imgs/") == paths(tree / "imgs") == paths(["imgs"]) == paths("imgs")


def test_the_order_does_not_depend_on_how_many_names_are_sorted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n:x}.jpg" for n in random.Random(0).sample(range(10_000), 50)]
    make(tmp_path, *names)
    for run in (1, 7, 1000):
        monkeypatch.setattr(sorting, "_RUN", run)
        assert paths(tmp_path) == sorted(names)


def test_files_named_outright_are_always_taken_as_given(tree: Path) -> None:
    (tree / "gone.jpg").symlink_to("nowhere")
    given = ["other/raw.dat", "imgs/notes.txt", "./imgs/.hidden.jpg", str(tree / "imgs/b.jpg"), "gone.jpg"]
    assert list(find_images(given)) == [Source(path, path) for path in given]


def test_among_several_inputs_a_path_never_means_two_files(tree: Path) -> None:
    inputs = ["imgs", "other", "imgs/a", "other/b.jpg", "imgs/*.jpg", "."]
    found = list(find_images(inputs))
    meaning: dict[str, str] = {}
    for source in found:
        assert meaning.setdefault(source.path, source.file) == source.file
    assert {"imgs/b.jpg", "other/b.jpg", "./other/b.jpg"} <= meaning.keys()
    assert paths(["imgs", "other"]) == [*(f"imgs/{path}" for path in paths("imgs")), "other/b.jpg"]


def test_root_makes_every_path_relative_to_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths(["imgs", tree / "other/b.jpg", "other/*.jpg"], root=tree) == [
        *(f"imgs/{path}" for path in paths("imgs")),
        "other/b.jpg",
        "other/b.jpg",
    ]
    assert paths("imgs/a", root="imgs") == ["a/deep/er/c.tif", "a/z.webp"]
    assert paths("imgs", root="imgs") == paths("imgs")
    monkeypatch.chdir(tree / "imgs")
    assert paths(["*.jpg", "a"], root="..") == ["imgs/b.jpg", "imgs/a/deep/er/c.tif", "imgs/a/z.webp"]
    with pytest.raises(ValueError, match=r"other/b\.jpg lies outside root=\."):
        paths("../other/b.jpg", root=".")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("imgs/*.jpg", ["imgs/b.jpg"]),
        ("imgs/*", ["imgs/a.PNG", "imgs/a.b/q.gif", "imgs/a/deep/er/c.tif", "imgs/a/z.webp", "imgs/b.jpg"]),
        ("imgs/**", ["imgs/a.PNG", "imgs/a.b/q.gif", "imgs/a/deep/er/c.tif", "imgs/a/z.webp", "imgs/b.jpg"]),
        ("**/b.jpg", ["imgs/b.jpg", "other/b.jpg"]),
        ("imgs/**/[cz].*", ["imgs/a/deep/er/c.tif", "imgs/a/z.webp"]),
        ("imgs/?/*", ["imgs/a/deep/er/c.tif", "imgs/a/z.webp"]),
        ("im*/a/", ["imgs/a/deep/er/c.tif", "imgs/a/z.webp"]),
        ("./im*/b.jpg", ["./imgs/b.jpg"]),
        ("imgs/**/**/deep/**", ["imgs/a/deep/er/c.tif"]),
        (
            "other/*.dat",
            ["other/list.dat", "other/more.dat/y.jpg", "other/raw.dat"],
        ),  # a suffix of its own
        ("other/*", ["other/b.jpg"]),
    ],
)
def test_patterns_mean_what_a_shell_would_make_of_them(tree: Path, pattern: str, expected: list[str]) -> None:
    make(tree, *(["other/more.dat/x.txt", "other/more.dat/y.jpg"] if ".dat" in pattern else []))
    found = list(find_images(pattern))
    assert [source.path for source in found] == expected
    assert [source.file for source in found] == expected


def test_patterns_with_a_suffix_agree_with_pythons_glob(tmp_path: Path) -> None:
    rng = random.Random(1)
    make(tmp_path, *("/".join([*rng.choices("ab", k=rng.randint(0, 3)), f"{n}.jpg"]) for n in range(60)))
    for pattern in ("*.jpg", "a/*.jpg", "*/*/*.jpg", "**/*.jpg", "a/**/b/*1.jpg", "**/a/**/*.jpg", "*/**/[0-5]*.jpg"):
        whole = str(tmp_path / pattern)
        assert sorted(paths(whole)) == sorted(set(glob.glob(whole, recursive=True)))  # noqa: PTH207


def test_an_existing_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path, "a[1].jpg", "a1.jpg", "set[x]/p.jpg"))
    assert paths("a[1].jpg") == ["a[1].jpg"]
    assert paths("a[[]1].jpg") == ["a[1].jpg"]
    assert paths("set[x]") == ["p.jpg"]


def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "imgs/loop").symlink_to(tree / "imgs")
    (tree / "imgs/a/up").symlink_to("..")
    (tree / "imgs/self").symlink_to("self")
    (tree / "imgs/elsewhere").symlink_to(tree / "other")
    (tree / "imgs/picture.jpg").symlink_to(tree / "other/b.jpg")
    (tree / "imgs/dangling.jpg").symlink_to("nowhere")
    plain = ["a.PNG", "a.b/q.gif", "a/deep/er/c.tif", "a/z.webp", "b.jpg", "dangling.jpg"]
    assert paths("imgs") == [*plain, "elsewhere/b.jpg", "picture.jpg"]
    assert paths("imgs", follow_links=False) == [*plain, "picture.jpg"]
    assert paths("imgs/**/b.jpg") == ["imgs/b.jpg", "imgs/elsewhere/b.jpg"]


@pytest.mark.parametrize(
    "given", ["nothing", "nothing.jpg", "nothing/*.jpg", "imgs/b.jpg/*", "imgs/*.bmp", "empty", "a\0b", ""]
)
def test_an_input_that_names_nothing_is_an_error_with_a_remedy(
    tree: Path, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(tree, "empty/readme.txt")
    with pytest.raises(FileNotFoundError) as error:
        paths(["imgs", given])
    assert str(error.value).startswith(f"{given}: ")
    assert any(remedy in str(error.value) for remedy in ("check the path", "quote it", "name other files"))
    assert not caplog.records
    with pytest.raises(ValueError, match="no inputs"):
        paths([])


def test_a_missing_input_is_reported_before_any_work(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"typo\.jpg"):
        find_images(["imgs", "typo.jpg"])  # not even iterated


def test_a_folder_that_cannot_be_listed_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(folder: bytes) -> object:
        if folder.endswith(b"deep/"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"imgs/a/deep/: the folder cannot be listed; change"):
        paths("imgs")


def test_lists_are_literal_and_stream(tree: Path) -> None:
    given = ["imgs/b.jpg", "gone.jpg", "imgs/*.jpg", "imgs/a"]
    assert paths(iter(given), literal=True) == [*given[:3], "imgs/a/deep/er/c.tif", "imgs/a/z.webp"]
    endless: Iterator[str] = itertools.cycle(["imgs/b.jpg", "gone.jpg"])
    first = list(itertools.islice(find_images(endless, literal=True), 1000))
    assert first[0] == Source("imgs/b.jpg", "imgs/b.jpg")
    assert paths(["imgs"], literal=True) == paths("imgs")


@pytest.mark.parametrize("chunk", [1 << 16, 5])
def test_read_list_takes_lines_or_nul_separated_paths(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_CHUNK", chunk)
    names = ["a.jpg", "b c.jpg", "d\udcff.jpg", "é.jpg"]
    raw = [os.fsencode(name) for name in names]
    for text in (b"\n".join(raw), b"\n".join(raw) + b"\n", b"\xef\xbb\xbf" + b"\r\n\r\n".join(raw) + b"\r\n"):
        assert list(read_list(io.BytesIO(text))) == names
    odd = ["x\ny\r", *names]
    assert list(read_list(io.BytesIO(b"x\0" + b"\0".join(os.fsencode(name) for name in odd) + b"\0"))) == ["x", *odd]
    assert list(read_list(io.BytesIO(b""))) == list(read_list(io.BytesIO(b"\n\n"))) == []


def test_names_that_are_not_utf8_are_found_opened_and_written_as_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102  (bytes)
    with open(folder + b"/\xff\xfe.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    (source,) = find_images(tmp_path)
    assert Path(source.file).read_bytes() == b"x"
    assert escape_path(source.path) == r"caf\xe9/\xff\xfe.jpg"
    assert unescape_path(escape_path(source.path)) == source.path


def test_escaped_paths_are_utf8_and_reverse_exactly() -> None:
    for path in ("a/b c.jpg", "日本/é.png", "C:\\photos\\x.jpg", "line\nbreak", "100%.jpg", "\\xFF", "\\x4"):
        assert escape_path(path) == path  # valid names stay as they are
    assert escape_path("\\x41") == "\\x5cx41"
    rng = random.Random(2)
    alphabet = [b"\\", b"x", b"5", b"c", b"f", b"F", b"\xff", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"/", b"\n", b"a"]
    seen: dict[str, str] = {}
    for _ in range(20_000):
        path = os.fsdecode(b"".join(rng.choices(alphabet, k=rng.randint(0, 9))))
        text = escape_path(path)
        text.encode("utf-8")
        assert unescape_path(text) == path
        assert seen.setdefault(text, path) == path


def test_a_large_folder_costs_little_more_than_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "_RUN", 4096)
    count = 60_000
    tracemalloc.start()
    try:
        merged = sorting.sorted_names(b"%020d.jpg" % (n * 7919 % count) for n in range(count))
        assert all(name == b"%020d.jpg" % n for n, name in enumerate(merged))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * 25 + sorting._RUN * 160  # the names once, and one run of them as objects


def test_a_folder_is_not_gone_where_there_is_no_room_to_sort_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"photos/{number}.jpg" for number in range(30)))
    temporary = tmp_path / "temporary"
    for name, value in {"_RUN": 10, "_HELD": 20}.items():
        monkeypatch.setattr(sorting, name, value)
    monkeypatch.setattr(sorting.tempfile, "gettempdir", lambda: str(temporary))
    with pytest.raises(FileNotFoundError) as missing:
        list(find_images(tmp_path / "photos"))
    assert str(temporary) in str(missing.value)
    temporary.mkdir()
    assert len(list(find_images(tmp_path / "photos"))) == 30
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(sorting.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="free some space") as told:
        list(find_images(tmp_path / "photos"))
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(temporary))
    refused = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(sorting.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(refused))
    with pytest.raises(PermissionError) as told:
        list(find_images(tmp_path / "photos"))
    assert told.value.filename == str(temporary)
