"""Laws of files of features and labels: what no row of numbers is, is named and never guessed at."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigr_repr.evaluate.data.class_matching import read_aliases
from bigr_repr.evaluate.data.feature_files import FeatureSet, open_features
from bigr_repr.evaluate.data.multi_labels import read_multi_labels
from bigr_repr.evaluate.data.segments import class_names_of
from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.runs.suite_file import read_suite

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def written(folder: Path, **columns: Any) -> Path:
    features = {} if "features" in columns else {"features": pa.array(X.tolist())}
    pq.write_table(pa.table({**features, **columns}), folder / "x.parquet")
    return folder / "x.parquet"


def numbers(found: FeatureSet) -> list[int]:
    assert found.labels is not None
    return found.labels.tolist()


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],  # nine numbers, three rows
        [[1.0, 2.0], None, [3.0, 4.0]],
        [[[1.0, 2.0]], [[3.0], [4.0]], [[5.0, 6.0]]],
        [[[1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0]], [[7.0], [8.0, 9.0]]],
    ],
)
def test_lists_of_different_lengths_are_no_features(rows: list[Any], tmp_path: Path) -> None:
    for name in ("features", "anything"):
        file = written(tmp_path, features=pa.array(rows))
        table = pq.read_table(file).rename_columns([name])
        pq.write_table(table, file)
        with pytest.raises(ValueError, match=rf"x\.parquet.*{name} has rows that are null or differ in length"):
            open_features(file)


def test_lists_of_other_columns_may_differ_in_length(tmp_path: Path) -> None:
    boxes = pa.array([[1.0] * (1 + row) for row in range(6)])
    np.testing.assert_array_equal(open_features(written(tmp_path, boxes=boxes)).features, X)


def test_lists_within_lists_keep_their_order(tmp_path: Path) -> None:
    grids = X.reshape(6, 2, 2)
    fixed = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 2), 2)
    np.testing.assert_array_equal(open_features(written(tmp_path, features=fixed)).features, grids)
    nested = pa.array(grids.tolist(), pa.list_(pa.list_(pa.float32())))
    np.testing.assert_array_equal(open_features(written(tmp_path, features=nested)).features, X)


@pytest.mark.parametrize(
    ("labels", "found", "names"),
    [
        (pa.array([0, 1, None, 1, 0, 1], pa.uint8()), [0, 1, -1, 1, 0, 1], ()),
        (pa.array([0, 1, None, 1, 0, 1], pa.uint64()), [0, 1, -1, 1, 0, 1], ()),
        (pa.array([0.0, 1.0, None, 1.0, 0.0, 1.0]), [0, 1, -1, 1, 0, 1], ()),  # what pandas makes of integers with gaps
        (pa.array([True, False, None, True, False, True]), [1, 0, -1, 1, 0, 1], ()),
        (pa.array(["a", "b", None, "b", "a", "b"]).dictionary_encode(), [0, 1, -1, 1, 0, 1], ("a", "b")),
        (pa.array([7, 8, 7, 8, 7, 8]).dictionary_encode(), [7, 8, 7, 8, 7, 8], ()),
    ],
)
def test_labels_of_every_type_are_read(labels: Any, found: list[int], names: tuple[str, ...], tmp_path: Path) -> None:
    file = written(tmp_path, label=labels)
    for read in (open_features(file), open_features(file, file)):
        assert numbers(read) == found
        assert read.class_names == names


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pa.array([0, 1] * 3, pa.timestamp("ms")), r"label is of type timestamp\[ms\], which is neither numbers nor"),
        (pa.array([0.5, 1.0] * 3), r"label is float64 \(6,\); labels are whole numbers or names"),
        (pa.array([[1.0]] * 6), r"label is float64 \(6, 1\); labels are whole numbers or names"),
        (pa.array([2**64 - 1] * 6, pa.uint64()), r"label holds integers above 9223372036854775807; use smaller ones"),
    ],
)
def test_what_cannot_be_labels_is_named(labels: Any, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, label=labels)
    np.testing.assert_array_equal(open_features(file).features, X)  # which need none
    with pytest.raises(ValueError, match=rf"there are no labels: {said}"):
        open_data(f"features:{file}")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet"])
def test_files_without_a_row_are_named(name: str, tmp_path: Path) -> None:
    file, none = tmp_path / name, np.zeros((0, 3), np.float32)
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array([], pa.float32()), 3)}), file)
    elif file.suffix == ".npy":
        np.save(file, none)
    else:
        np.savez(file, features=none, label=np.zeros(0, int))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} holds 0 rows of features.*; save at least one"):
        open_features(file)


def test_a_column_of_numbers_is_no_substitute_for_labels_that_cannot_be_read(tmp_path: Path) -> None:
    file = written(tmp_path, label=pa.array([0, 1] * 3, pa.timestamp("ms")), id=pa.array(range(6)))
    with pytest.raises(ValueError, match=r"label is of type timestamp.*; or name another: x\.parquet#id"):
        open_features(file, file)
    assert numbers(open_features(file, f"{file}#id")) == [*range(6)]


def test_files_of_a_folder_with_other_columns_are_named_by_their_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name, labels in (("a", pa.array(["a"] * 6)), ("b", pa.array(range(6)))):
        written(tmp_path, label=labels).rename(tmp_path / "parts" / f"{name}.parquet")
    with pytest.raises(ValueError, match="parts: its files differ in columns"):
        open_features(tmp_path / "parts")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.array([0.0, 1.0, np.nan, 1.0, 0.0, 1.0]), [0, 1, -1, 1, 0, 1]),
        (np.array([True, False] * 3), [1, 0] * 3),
    ],
)
def test_arrays_of_whole_numbers_are_labels(labels: Any, found: list[int], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", labels)
    assert numbers(open_features(tmp_path / "x.npy", tmp_path / "y.npy")) == found


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array(["a", None] * 3, object), "holds Python objects; save it as numbers, or as names with dtype=str"),
        (np.array([0.5, 1.0] * 3), r"holds no labels.*it holds .*float64 \(6,\); save whole numbers, or names"),
        (np.full(6, np.inf), "holds no labels"),
        (np.array([2**64 - 1] * 6, np.uint64), "label 18446744073709551615 is outside .*; use smaller ones, or names"),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_labels_that_cannot_be_taken_are_named_with_the_cure(
    labels: Any, said: str, ending: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "y.npz", y=labels)
    with pytest.raises(ValueError, match=rf"y\.{ending}.*{said}"):
        open_features(tmp_path / "x.npy", tmp_path / f"y.{ending}")


@pytest.mark.parametrize("label", ["99999999999999999999", "-99999999999999999999"])
def test_numbers_beyond_64_bits_are_named(label: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.txt").write_text("\n".join([label, *"10101"]))
    with pytest.raises(ValueError, match=rf"y\.txt: label {label} is outside .*; use smaller ones, or names"):
        open_features(tmp_path / "x.npy", tmp_path / "y.txt")


def test_large_numbers_take_no_room_and_may_be_names_of_the_other_side(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    large = str(10**15)
    for name, labels in (("one", [large, "3", "", "3", large, "3"]), ("other", ["3", large, "3", large, "z", "z"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(labels))
    sides = [f"features:{tmp_path}/x.npy?labels={tmp_path}/{name}.txt" for name in ("other", "one")]
    data = transfer(*sides)
    assert [data.test.class_names[label] for label in data.test.labels] == [large, "3", "3", large, "3"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    def marked(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        return tmp_path / name

    np.save(tmp_path / "x.npy", X)
    assert numbers(open_features(tmp_path / "x.npy", marked("y.txt", "0\n1\n0\n1\n0\n1\n"))) == [0, 1] * 3
    lines = marked("lines.txt", "a\na,b\n")
    assert read_multi_labels((lines, lines))[0].class_names == ("a", "b")
    marked("classes.txt", "sky\nsea\n")
    assert class_names_of(tmp_path) == ("sky", "sea")
    assert read_suite(marked("s.yaml", "datasets: [digits]\nmodels: [pixels]")).name == "s"
    assert read_aliases(marked("a.yaml", "cat: {same: [katze]}"))[0].is_same({"cat"})


def test_texts_in_other_encodings_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.txt").write_text("é\n" * 6, encoding="latin-1")
    with pytest.raises(ValueError, match=r"y\.txt is not UTF-8 text \(byte 0\); save it as UTF-8"):
        open_features(tmp_path / "x.npy", tmp_path / "y.txt")


def test_names_and_integers_are_labels_rather_than_flags(tmp_path: Path) -> None:
    """Of unnamed columns, flags and whole floats are labels only if nothing else can be."""
    np.save(tmp_path / "x.npy", X)
    flags = {"is_train": pa.array([True, False] * 3), "weight": pa.array([1.0, 2.0] * 3)}
    file = written(tmp_path, category=pa.array(["a", "b"] * 3), **flags)
    assert open_features(tmp_path / "x.npy", file).class_names == ("a", "b")
    with pytest.raises(ValueError, match="holds is_train, weight; name one"):
        open_features(tmp_path / "x.npy", written(tmp_path, **flags))
