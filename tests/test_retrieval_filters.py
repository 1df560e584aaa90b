"""Filters: what passes, that a search among it is exact, what columns are kept, and what is refused."""

from __future__ import annotations

import datetime
import fnmatch
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bigr_repr.codes import hamming
from bigr_repr.retrieval import KINDS, Filter, HammingIndex, Region, open_store, push
from bigr_repr.retrieval.codes.columns import plain_rows
from bigr_repr.retrieval.codes.provenance import reading_of
from bigr_repr.retrieval.index import scan as scanning

COUNT = 400
NAMES = [f"{'ab+'[row % 3]}/{row}_%.png" for row in range(COUNT)]
LABELS = [None if row % 7 == 0 else ["cat", "dog", 'say "x"', "it's"][row % 4] for row in range(COUNT)]
WIDTHS = [None if row % 11 == 0 else row for row in range(COUNT)]
DAYS = [datetime.date(2026, 1, 1) + datetime.timedelta(row) for row in range(COUNT)]
GOOD = [row % 2 == 0 for row in range(COUNT)]


def codes_of(count: int, seed: int = 0, n_bytes: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, n_bytes), np.uint8)


def built(kind: str = "flat", **more: object) -> HammingIndex:
    columns = {"label": LABELS, "width": WIDTHS, "day": DAYS, "good": GOOD, "odd name": list(range(COUNT))}
    return HammingIndex.build(codes_of(COUNT), ids=NAMES, kind=kind, columns=columns, **more)  # type: ignore[arg-type]


def brute(codes: np.ndarray, queries: np.ndarray, rows: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = hamming(queries[:, None], codes[rows])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.array(rows, np.int64)[order], np.take_along_axis(distances, order, axis=1)


PASSING = [
    ('label = "cat"', lambda i: LABELS[i] == "cat"),
    ("label != 'cat'", lambda i: LABELS[i] not in (None, "cat")),
    ('not (label = "cat" or width < 100)', lambda i: LABELS[i] not in (None, "cat") and (WIDTHS[i] or 0) >= 100),
    ('label in (\'it\'\'s\', "say ""x""")', lambda i: LABELS[i] in ("it's", 'say "x"')),
    ("width not in (1, 2, 3)", lambda i: WIDTHS[i] not in (None, 1, 2, 3)),
    ("100 <= width and width < 200", lambda i: 100 <= (WIDTHS[i] or 0) < 200),
    ("not width between 50 and 350", lambda i: WIDTHS[i] is not None and not 50 <= WIDTHS[i] <= 350),
    ("width is null", lambda i: WIDTHS[i] is None),
    ("label is not null and good", lambda i: LABELS[i] is not None and GOOD[i]),
    ("not good", lambda i: not GOOD[i]),
    ("day >= '2026-12-01'", lambda i: DAYS[i] >= datetime.date(2026, 12, 1)),
    ("path like 'b/1%'", lambda i: NAMES[i].startswith("b/1")),
    ("path not like 'b/1%'", lambda i: not NAMES[i].startswith("b/1")),
    ("label not ilike 'C%'", lambda i: LABELS[i] not in (None, "cat")),
    ("not label not like 'c%'", lambda i: LABELS[i] == "cat"),
    ("`odd name` = 7", lambda i: i == 7),
    ("width > 1000", lambda i: False),
]


@pytest.mark.parametrize(("where", "passes"), PASSING)
def test_an_expression_leaves_what_it_says(where: str, passes: object) -> None:
    rows = built().rows.selected(Filter(where=where))
    assert rows.tolist() == [row for row in range(COUNT) if passes(row)]  # type: ignore[operator]


@pytest.mark.parametrize("pattern", ["*", "a/*", "?/1*.png", NAMES[7], "*+*", "none"])
def test_a_pattern_leaves_what_it_matches(pattern: str) -> None:
    rows = built().rows.selected(Filter(match=pattern))
    assert rows.tolist() == [row for row, name in enumerate(NAMES) if fnmatch.fnmatchcase(name, pattern)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", ['label = "cat"', "width > 390", "width >= 0", "width > 1000"])
def test_a_search_of_some_rows_is_exact_whatever_the_kind(
    kind: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_GATHERED", 16 * 37)  # in several parts
    index, queries = built(kind), codes_of(6, 1)
    passing = index.rows.selected(Filter(where=chosen)).tolist()
    rows, distances = brute(index.rows.codes, queries, passing, 15)
    for wanted in (slice(None), slice(1)):  # many are compared with copies, a single one with all
        found = index.find(queries[wanted], 15, where=chosen)
        np.testing.assert_array_equal(found.rows, rows[wanted])
        np.testing.assert_array_equal(found.distances, distances[wanted])


def test_what_is_near_but_left_out_does_not_hide_what_passes() -> None:
    """A wide filter that leaves out just the neighbors of the query."""
    codes = codes_of(200_000, n_bytes=8)
    near = np.argsort(hamming(codes[0], codes), kind="stable")[:5000]
    good = np.ones(len(codes), np.bool_)
    good[near] = False
    index = HammingIndex.build(codes, columns={"good": good})
    rows, distances = brute(codes, codes[:1], np.flatnonzero(good).tolist(), 10)
    found = index.find(codes[0], 10, where="good")
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, distances)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("k", [1, 9, 150])
def test_picking_among_all_distances_is_exact_however_rows_are_cut(
    k: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_GATHERED", 1), ("_PICKED", 120), ("_FIRST_PICKED", 16)):
        monkeypatch.setattr(scanning, name, size)
    codes = codes_of(1000, n_bytes=8) & np.uint8(3)  # many equal distances
    wanted = codes_of(queries, 1, n_bytes=8) & np.uint8(3)
    places = np.arange(1000)
    for passing in (places >= 400, places % 3 > 0, places < 700, (places % 2 == 0) | (places > 990)):
        rows = np.flatnonzero(passing)
        found = scanning.scan_among(codes, wanted, k, rows)
        theirs, distances = brute(codes, wanted, rows.tolist(), k)
        np.testing.assert_array_equal(found.rows, theirs)
        np.testing.assert_array_equal(found.distances, distances)


def test_filters_go_with_regions_and_rescoring() -> None:
    vectors = np.random.default_rng(2).standard_normal((COUNT, 8)).astype(np.float32)
    index = built(bits_per_token=8, vectors=vectors)
    passing = index.rows.selected(Filter(where='label = "dog"'))
    region = Region(x=0, y=0, w=2, h=2)
    mask = region.mask(index.token_layout())
    rows, distances = brute(index.rows.codes & mask, index.rows.codes[:3] & mask, passing.tolist(), 9)
    found = index.find_region(index.rows.codes[:3], region, 9, where='label = "dog"')
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, distances)
    best = index.find_rescored(index.rows.codes[:1], vectors[:1], 5, rescore=1000, where='label = "dog"')
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert best.rows[0].tolist() == passing[np.argsort(-(unit[passing] @ unit[0]), kind="stable")[:5]].tolist()


def test_radius_and_offset_cut_the_same_list() -> None:
    index, query = built(), codes_of(1, 1)
    whole = index.find(query, COUNT)
    radius = int(whole.distances[0, 30])
    page = index.find(query, 10, offset=25, radius=radius)
    inside = whole.distances[0, 25:35] <= radius
    assert page.rows[0].tolist() == np.where(inside, whole.rows[0, 25:35], -1).tolist()
    assert page.distances[0].tolist() == np.where(inside, whole.distances[0, 25:35], -1).tolist()
    assert [id for id in page.ids[0] if id] == [NAMES[row] for row in page.rows[0][inside]]
    assert index.find(query, 10, offset=COUNT - 3).rows.shape == (1, 3)
    assert index.find(query, 10, offset=COUNT + 3).rows.shape == (1, 0)
    for bad in ({"offset": -1}, {"radius": -1.0}, {"radius": float("nan")}):
        with pytest.raises(ValueError, match="must be 0 or more"):
            index.find(query, 10, **bad)  # type: ignore[arg-type]


def test_columns_go_with_their_rows(tmp_path: Path) -> None:
    index = built()
    index.remove(NAMES[:100])
    more = {"label": ["new"], "width": [None], "day": DAYS[:1], "good": [True], "odd name": [-1]}
    index.add(codes_of(1, 3), ["new"], columns=more)
    index.save(tmp_path / "index")
    for memory_map in (True, False):
        loaded = HammingIndex.load(tmp_path / "index", memory_map=memory_map)
        assert loaded.rows.columns is not None
        assert loaded.rows.columns.column("label").to_pylist() == [*LABELS[100:], "new"]
        assert loaded.search(codes_of(1, 3), 1, where="`odd name` = -1").ids.tolist() == [["new"]]
    with pytest.raises(ValueError, match="add compatible rows"):
        index.add(codes_of(1, 4), ["another"])


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("label = 3", "label is text; compare it with text in quotes, not 3"),
        ('width = "x"', "width is number; compare it with a number without quotes"),
        ("label = cat", "put text in quotes"),
        ("color = 1", "column 'color' is not in this index: its columns are path, label, width"),
        ("day > 'soon'", "which 'soon' is not"),
        ("width", "width is number, not true or false"),
        ("width + 1 = 2", "is not a comparison of a column with a value"),
        ("width = (select 1)", "is not a comparison"),
        ("exists (select 1)", "is not a comparison"),
        ("label = 'x'; drop table x", "cannot be read"),
        ("", "cannot be read"),
        ("path like", r"cannot be read \(it is not complete\)"),
        ("(" * 5000 + "good" + ")" * 5000, "cannot be read|nested"),
        ("not " * 300 + "good", "cannot be read|nested"),
        ("good or " * 20_000 + "good", "longer than"),
        ("width = 9999999999999999999999", "which 9999999999999999999999 is not"),
    ],
)
def test_expressions_that_do_not_fit_are_refused_in_one_line(where: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        built().search(codes_of(1), 3, where=where)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_cannot_be_kept_is_refused() -> None:
    for columns, said in (
        ({"x": [1]}, "column 'x' has 1 values for 3 codes"),
        ({"x": [[1], [2], [3]]}, "text, numbers, booleans, dates and times can be kept"),
        ({"path": ["a", "b", "c"]}, "reserved for the ids"),
    ):
        with pytest.raises(ValueError, match=said):
            HammingIndex.build(codes_of(3), columns=columns)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="effort=3"):
        built("ivf").find(codes_of(1), 3, where="good", effort=3)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["lancedb", "milvus"])
def test_a_store_filters_as_the_folder_does(store: str, tmp_path: Path) -> None:
    pytest.importorskip({"lancedb": "lancedb", "milvus": "milvus_lite"}[store])
    index, queries = built(), codes_of(2, 1)
    place = f"{store}:{tmp_path / ('s.db' if store == 'milvus' else 's')}"
    kept = index.rows.columns
    assert kept is not None
    with pytest.raises(ValueError, match="holds no column called 'odd name'"):
        push(index, place)
    kept = kept.drop_columns(["odd name"])
    if store == "milvus":
        with pytest.raises(ValueError, match="holds no nulls, of which column 'label'"):
            push(HammingIndex.build(codes_of(COUNT), ids=NAMES, columns=kept), place)
        kept = kept.set_column(0, "label", [[label or "none" for label in LABELS]])
        kept = kept.set_column(1, "width", [[width or -5 for width in WIDTHS]])
    index = HammingIndex.build(codes_of(COUNT), ids=NAMES, columns=kept)
    push(index, place)
    opened = open_store(place)
    lacking = ["odd name", *(["path not like", "ilike"] if store == "milvus" else [])]  # which it refuses
    texts = [where for where, _ in PASSING if not any(each in where for each in lacking)]
    filters: list[Filter] = [Filter(where=where) for where in texts]
    filters += [Filter(match="*"), Filter(where="label like '%%'"), Filter(where="width > 1e2")]
    filters += [Filter(match="b/1*_%.pn?"), Filter(ids=(NAMES[5], NAMES[9])), Filter(where="width > 9.0 and good")]
    for chosen in filters:
        wanted, found = (each.find(queries, 5, where=chosen, offset=1, radius=70) for each in (index, opened))
        np.testing.assert_array_equal(found.distances, wanted.distances, err_msg=str(chosen))
        passing = set(index.rows.selected(chosen).tolist()) | {-1}
        assert set(found.rows.ravel().tolist()) <= passing
    for bad, said in (
        ("color = 1", "was not pushed: there are label, width, day, good, path"),
        ("width > 9.5", "holds integers"),
        ("label = 3", "compare it with text"),
    ):
        with pytest.raises(ValueError, match=said):
            opened.find(queries, 5, where=bad)


def test_text_of_many_chunks_is_filtered() -> None:
    labels = pa.chunked_array([["a", "b"], [], ["c"]])
    index = HammingIndex.build(codes_of(3), columns=pa.table({"label": labels.dictionary_encode()}))
    assert index.search(codes_of(1), 1, where='label = "c"').ids.tolist() == [[2]]


def test_columns_of_rows_are_plain_data() -> None:
    kept = pa.table(
        {
            "day": pa.array([datetime.date(2026, 1, 2), None], pa.date32()), "x": [1.5, float("inf")], "n": [1, 2],
            "text": ["a", None],
        }
    )  # fmt: skip
    assert plain_rows(kept, np.array([1, 0])) == [
        {"day": None, "x": None, "n": 2, "text": None}, {"day": "2026-01-02", "x": 1.5, "n": 1, "text": "a"}
    ]  # fmt: skip
    assert plain_rows(None, np.array([4, 5])) == [{}, {}]
    assert plain_rows(pa.table({"x": [float("nan"), -0.5]}), np.array([0, 1])) == [{"x": None}, {"x": -0.5}]


def test_vectors_of_an_index_were_read_as_it_says() -> None:
    stated = {"layer": 3, "pooling": "max", "mirror": True, "condition": None}
    found = reading_of(stated)
    assert (found.layer, found.pool, found.mirror) == (3, "max", True)
    bare = reading_of({"layer": None, "pooling": None})
    assert (bare.layer, bare.pool, bare.mirror) == (None, "avg", False)
    assert not bare.condition


@pytest.mark.parametrize(
    "where",
    [
        *(f"n {sign} {value}" for sign in ("=", "!=", "<", "<=", ">", ">=") for value in (
            "1e10", "0.5e1", "2.5", "-2.5", "9007199254740993", "9.007199254740992e15", "1e300", "-1e300", "1e999",
        )),
        "n between 2.5 and 1e10", "n between -1e300 and 4.5", "n in (1e10, 2.5, 5)", "n in (2.5)", "n not in (2.5, 5)",
    ],
)  # fmt: skip
def test_large_integers_are_compared_exactly(where: str) -> None:
    """Beyond 2^53 a double cannot tell neighbors apart, and Arrow refuses to compare them with one."""
    numbers = [0, 2, 3, 5, 10**10, 2**53, 2**53 + 1, 2**63 - 1, -3, -(2**63), None]
    codes = codes_of(len(numbers))
    index = HammingIndex.build(codes, ids=[str(number) for number in numbers], columns={"n": numbers})
    name, sign, *rest = where.replace("not in", "not_in").split(" ", 2)
    assert name == "n"

    def passes(number: int) -> bool:
        if sign == "between":
            low, high = (Fraction(each) for each in rest[0].split(" and "))
            return low <= number <= high
        if sign in ("in", "not_in"):
            return (number in [Fraction(each) for each in rest[0].strip("()").split(", ")]) == (sign == "in")
        value = Fraction(rest[0].replace("e999", "e400"))
        return bool(
            {"=": number == value, "!=": number != value, "<": number < value, "<=": number <= value,
             ">": number > value, ">=": number >= value}[sign]
        )  # fmt: skip

    found = index.search(codes[0], len(numbers), where=where).ids[0].tolist()
    assert sorted(found) == sorted(str(number) for number in numbers if number is not None and passes(number))


def test_floats_are_compared_with_any_number() -> None:
    codes = codes_of(3)
    index = HammingIndex.build(codes, ids=["a", "b", "c"], columns={"x": [1.0, 2.0**60, None]})
    for where, ids in (
        ("x > 9007199254740993", ["b"]),
        ("x in (1, 2.5)", ["a"]),
        ("x = 1", ["a"]),
        ("x < 1e400", "ab"),
    ):
        assert sorted(index.search(codes[0], 3, where=where).ids[0].tolist()) == list(ids)
