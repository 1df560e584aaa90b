"""Milvus as a server would be used: what is made, sent and asked for, with a double of its client in this process."""

from __future__ import annotations

import json
import re
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bigr_repr.codes import hamming
from bigr_repr.retrieval import Filter, HammingIndex, fit_binarizer
from bigr_repr.retrieval.stores import milvus, native
from bigr_repr.retrieval.stores import open as opening
from bigr_repr.retrieval.stores.base import Header, StoreIndex
from bigr_repr.retrieval.stores.open import open_store, push

pytest.importorskip("pymilvus")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its own imports
PLACE = "milvus:http://server:19530"


class Listed:
    """A schema, or the parameters of an index: what was added."""

    def __init__(self) -> None:
        self.added: list[tuple[Any, ...]] = []
        self.options: dict[str, dict[str, Any]] = {}

    def add_field(self, name: str, kind: Any, **options: Any) -> None:
        self.added.append((name, kind))
        self.options[name] = options

    def add_index(self, name: str, **options: Any) -> None:
        self.options[name] = options


class Client:
    """Collections in memory, searched exactly; `asked` are searches."""

    def __init__(self) -> None:
        self.collections: dict[str, dict[int, dict[str, Any]]] = {}
        self.schemas: dict[str, tuple[Listed, Listed]] = {}
        self.loaded: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.waits: list[float] = []
        self.flushed: list[str] = []
        self.fails = ""

    def patient(self, seconds: float) -> Client:
        self.waits.append(seconds)
        return self

    def create_schema(self, auto_id: bool) -> Listed:
        assert auto_id is False
        return Listed()

    def prepare_index_params(self) -> Listed:
        return Listed()

    def create_collection(self, name: str, schema: Listed, index_params: Listed) -> None:
        assert name not in self.collections
        self.collections[name], self.schemas[name] = {}, (schema, index_params)

    def has_collection(self, name: str) -> bool:
        return name in self.collections

    def list_collections(self) -> list[str]:
        return list(self.collections)

    def drop_collection(self, name: str) -> None:
        del self.collections[name]

    def load_collection(self, name: str) -> None:
        self.loaded.add(name)

    def flush(self, name: str) -> None:
        self.flushed.append(name)

    def upsert(self, name: str, records: list[dict[str, Any]]) -> None:
        if self.fails == "upsert":
            from pymilvus import MilvusException

            raise MilvusException(message="no\n  luck")
        self.collections[name] |= {record["row"]: record for record in records}

    insert = upsert

    def query(self, name: str, **options: Any) -> list[dict[str, Any]]:
        assert name in self.loaded
        assert options["filter"] == "row >= 0"
        assert options["consistency_level"] == "Strong"
        return list(self.collections[name].values())[: options["limit"]]

    def get(self, name: str, ids: list[int], output_fields: list[str]) -> list[dict[str, Any]]:
        found = [{field: self.collections[name][row][field] for field in output_fields} for row in ids]
        return [each | {"code": [each["code"]]} for each in reversed(found)]  # in no order

    def search(self, name: str, **options: Any) -> list[list[dict[str, Any]]]:
        assert name in self.loaded
        self.asked.append(options)
        listed = re.fullmatch(r"\(name in (\[.*\])\)", options["filter"])
        rows = [
            row for row in self.collections[name].values() if listed is None or row["name"] in json.loads(listed[1])
        ]
        if not rows:
            return [[] for _ in options["data"]]
        codes, answers = np.stack([np.frombuffer(row["code"], np.uint8) for row in rows]), []
        for query in options["data"]:
            far = hamming(codes, np.frombuffer(query, np.uint8))
            order = np.argsort(far, kind="stable")[: options["limit"]]
            fields = options["output_fields"]
            answers.append(
                [{"entity": {f: rows[i][f] for f in fields}, "distance": float(far[i])} for i in order]
            )  # fmt: skip
        return answers


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(milvus.MilvusStore, "_client", made)
    return made


def made(rows: int = 60, seed: int = 0, **options: Any) -> HammingIndex:
    vectors = np.random.default_rng(seed).normal(size=(rows, 20)).astype(np.float32)
    binarizer = fit_binarizer("sign", vectors)
    codes = binarizer.encode(vectors)
    index = HammingIndex.build(codes, ids=[f"ä/{seed}-{i}" for i in range(rows)], **options)
    index.binarizer = binarizer
    return index


def collection(client: Client, ending: str = r"index_[0-9a-f]{12}") -> str:
    (name,) = [name for name in client.collections if re.search(ending + "$", name)]
    return name


def test_a_push_makes_a_collection_and_a_header_that_names_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_CHUNK_ROWS", 25)
    index = made()
    pushed = push(index, PLACE, "index")
    rows, header = collection(client), "index_header"
    assert sorted(client.collections) == sorted([rows, header])
    assert sorted(client.collections[rows]) == list(range(60))
    for row, record in client.collections[rows].items():
        assert record == {"row": row, "name": f"ä/0-{row}", "code": index.rows.codes[row].tobytes()}
    schema, vector_index = client.schemas[rows]
    kinds = {name: kind.name for name, kind in schema.added}
    assert kinds == {"row": "INT64", "name": "VARCHAR", "code": "BINARY_VECTOR"}
    assert schema.options == {"row": {"is_primary": True}, "name": {"max_length": 4096}, "code": {"dim": 24}}
    assert vector_index.options["code"] == {"index_type": "BIN_FLAT", "metric_type": "HAMMING", "params": {}}
    assert client.schemas[header][0].options["name"] == {"max_length": 65_535}
    assert client.schemas[header][0].options["code"] == {"dim": 8}
    assert client.collections[header][0]["name"] == f"{rows} 1"
    assert client.flushed == [header]
    found, expected = pushed.search(index.rows.codes[:5], 7), index.search(index.rows.codes[:5], 7)
    assert np.array_equal(found.distances, expected.distances)
    assert found.ids[:, 0].tolist() == [f"ä/0-{row}" for row in range(5)]
    asked = client.asked[-1]
    assert (asked["limit"], asked["anns_field"], asked["filter"]) == (7, "code", "")
    assert asked["search_params"] == {"metric_type": "HAMMING", "params": {}}
    assert np.array_equal(pushed.codes_of(np.array([7, 3, 7])), index.rows.codes[[7, 3, 7]])
    assert pushed.names_of(np.array([7, 3, 7])) == ["ä/0-7", "ä/0-3", "ä/0-7"]
    assert pushed.codes_of(np.array([], np.int64)).shape == (0, 3)
    assert pushed.names_of(np.array([], np.int64)) == []
    assert (pushed.row_of("ä/0-9"), pushed.row_of("ä/0-09")) == (9, -1)


def test_another_push_takes_the_place_of_the_first_and_of_nothing_else(client: Client) -> None:
    opened = push(made(), PLACE, "index")
    first = collection(client)
    push(made(seed=3), PLACE, "index_2")
    client.collections["index_0123456789zz"] = {}  # somebody else's
    client.collections["index_0123456789ab"] = {}  # as a push that was killed leaves it
    other = made(40, seed=1)
    other.binarizer = opened.binarizer
    push(other, PLACE, "index")
    assert first not in client.collections
    assert "index_0123456789ab" not in client.collections
    assert {"index_0123456789zz", "index_2_header", "index_header"} < set(client.collections)
    assert len(open_store(PLACE, "index")) == 40
    client.search = _gone(client, first)  # type: ignore[method-assign]
    assert opened.search(other.rows.codes[:1], 1).ids.tolist() == [["ä/1-0"]]  # goes on with the new one
    assert len(opened) == 40


def _gone(client: Client, name: str) -> Any:
    whole = client.search

    def search(asked: str, **options: Any) -> Any:
        if asked == name:
            raise ConnectionError("collection not found")
        return whole(asked, **options)

    return search


def test_a_push_that_fails_leaves_what_was_there(client: Client) -> None:
    push(made(), PLACE, "index")
    before = {name: dict(rows) for name, rows in client.collections.items()}
    client.fails = "upsert"
    with pytest.raises(ConnectionError, match=r"^milvus:http://server:19530: no luck$"):
        push(made(seed=1), PLACE, "index")
    assert client.collections == before


def test_a_long_header_goes_in_parts_and_an_incomplete_one_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus, "_TEXT", 50)
    index = made()
    pushed = push(index, PLACE, "index")
    parts = client.collections["index_header"]
    assert len(parts) > 5
    assert parts[0]["name"] == f"{collection(client)} {len(parts) - 1}"
    assert all(0 < len(part["name"]) <= 50 for row, part in parts.items() if row)
    opened = open_store(PLACE, "index")
    assert opened.header.to_json() == pushed.header.to_json()
    del parts[3]
    with pytest.raises(ValueError, match="the header of index is incomplete; push the index again"):
        open_store(PLACE, "index")
    with pytest.raises(FileNotFoundError, match="no index called other here; push one with: bigr-repr index push"):
        open_store(PLACE, "other")


def test_lists_are_made_and_searched_as_many_as_asked_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_FEW", 300)
    index = made(400)
    pushed = push(index, PLACE, "index", kind="ivf")
    assert (pushed.header.kind, pushed.header.lists) == ("ivf", 40)  # twice the root
    assert (pushed.header.effort, pushed.header.recall) == (1, 1.0)  # the double is exact
    options = client.schemas[collection(client)][1].options["code"]
    assert (options["index_type"], options["params"]) == ("BIN_IVF_FLAT", {"nlist": 40})
    pushed.search(index.rows.codes[:1], 3, effort=2)
    assert client.asked[-1]["search_params"]["params"] == {"nprobe": 2}
    pushed.search(index.rows.codes[:1], 3)
    assert client.asked[-1]["search_params"]["params"] == {"nprobe": 1}
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"effort={wrong} must be a number of lists from 1"):
            pushed.search(index.rows.codes[:1], 3, effort=wrong)
    few = push(made(299), PLACE, "few", kind="ivf")
    assert (few.header.kind, few.header.lists) == ("flat", None)
    with pytest.raises(ValueError, match="is flat"):
        few.search(index.rows.codes[:1], 3, effort=1)


def test_columns_have_types_of_milvus_and_no_nulls(client: Client) -> None:
    columns = {"label": ["a", "b"] * 30, "n": list(range(60)), "share": [0.5] * 60, "good": [True, False] * 30}
    pushed = push(made(columns=columns), PLACE, "index")
    schema = client.schemas[collection(client)][0]
    kinds = {name: kind.name for name, kind in schema.added}
    assert {name: kinds[name] for name in columns} == {
        "label": "VARCHAR", "n": "INT64", "share": "DOUBLE", "good": "BOOL"
    }  # fmt: skip
    assert (schema.options["label"], schema.options["n"]) == ({"max_length": 65_535}, {})
    record = client.collections[collection(client)][3]
    assert {name: record[name] for name in columns} == {"label": "b", "n": 3, "share": 0.5, "good": False}
    assert pushed.column_names.keys() == columns.keys()
    with pytest.raises(ValueError, match="holds no nulls, of which column 'n' has 1; use lancedb"):
        push(made(columns={"n": [None, *range(59)]}), PLACE, "index")
    assert len(client.collections) == 2


def test_what_milvus_cannot_hold_is_said(client: Client, tmp_path: Path) -> None:
    def header(bits: int, kind: str = "flat") -> Header:
        return Header(n_bits=bits, count=5, kind=kind, lists=None, provenance=None, binarizer=None)

    server, lite = (milvus.MilvusStore(where, "index") for where in ("http://s:1", str(tmp_path / "m.db")))
    server.check(header(262_144), 16_384)
    lite.check(header(32_768), 16_384)
    server.check(header(64, "ivf"))
    for store, given, k, said in (
        (server, header(262_145), 1, "at most 262,144 bits, not 262,145; use lancedb"),
        (lite, header(32_769), 1, "at most 32,768 bits"), (lite, header(64, "ivf"), 1, "has only kind flat"),
        (server, header(64), 16_385, "finds at most 16,384"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            store.check(given, k)
    with pytest.raises(FileNotFoundError, match="no index called index here"):
        lite.open()  # there is no file, so nothing is asked
    long = HammingIndex.build(made().rows.codes, ids=["x" * 4097, *map(str, range(59))])
    with pytest.raises(ValueError, match="ids of at most 4,096 bytes; use lancedb for xxx"):
        push(long, PLACE, "index")
    push(HammingIndex.build(made().rows.codes, ids=["x" * 4096, *map(str, range(59))]), PLACE, "index")


def test_errors_of_the_client_are_one_line(client: Client) -> None:
    from pymilvus import MilvusException

    store = milvus.MilvusStore("m.db", "index")
    for message, said in (
        ("one\n two", "milvus:m.db: one two"),
        ("x Open local milvus failed y", "another process has"),
    ):
        with pytest.raises(ConnectionError, match=said), store._reaching():
            raise MilvusException(message=message)


# ---- an index in a store


class Table:
    """A state of an index; `hits` rows are found by a search of few lists."""

    def __init__(self, version: str, header: Header, codes: np.ndarray) -> None:
        self.version, self.header, self.codes, self.few, self.gone = version, header.to_json(), codes, 99, False
        self.asked: list[tuple[int, int | None]] = []

    def search(self, codes: np.ndarray, k: int, effort: int | None, where: str | None = None) -> list[Any]:
        if self.gone:
            raise ConnectionError("gone")
        self.asked.append((len(codes), effort))
        found = []
        for query in codes:
            far = hamming(self.codes, query)
            rows = np.argsort(far, kind="stable")[: min(k, self.few if effort and effort < 8 else k)][::-1]
            found.append((rows.tolist(), [str(row) for row in rows], far[rows].tolist()))
        return found

    def read(self, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        if self.gone:
            raise ConnectionError("gone")
        assert (np.diff(rows) > 0).all()  # ascending
        return [str(row) for row in rows], self.codes[rows]


def _index(lists: int | None = None, **fields: Any) -> tuple[StoreIndex, Table, Any]:
    codes = np.random.default_rng(0).integers(0, 256, (30, 3), np.uint8)
    header = Header(
        n_bits=24, count=30, kind="ivf" if lists else "flat", lists=lists, provenance=None, binarizer=None, **fields
    )
    table = Table("one", header, codes)
    store = types.SimpleNamespace(
        place="shelf", dialect=native.LANCE, check=lambda header, k: None, open=lambda: store.table, table=table
    )  # fmt: skip
    return StoreIndex(store), table, store


def test_where_few_lists_hold_too_little_all_are_searched() -> None:
    index, table, _ = _index(lists=8, effort=2)
    table.few = 3
    found = index.find(table.codes[:2], 5)
    assert table.asked == [(2, 2), (1, 8), (1, 8)]
    expected = np.argsort(hamming(table.codes[None], table.codes[:2, None]), axis=1, kind="stable")[:, :5]
    assert np.array_equal(found.rows, expected)  # in the order of distances, then of rows
    assert found.ids.tolist() == [[str(row) for row in rows] for rows in expected]
    table.asked.clear()
    index.find(table.codes[:2], 3)
    assert table.asked == [(2, 2)]
    unmeasured, table, _ = _index(lists=24)
    unmeasured.find(table.codes[:1], 1)
    assert table.asked == [(1, 3)]


def test_an_offset_and_a_radius_cut_what_was_found() -> None:
    index, table, _ = _index()
    whole = index.find(table.codes[:1], 10)
    later = index.find(table.codes[:1], 4, offset=3)
    assert np.array_equal(later.rows, whole.rows[:, 3:7])
    near = index.find(table.codes[:1], 10, radius=int(whole.distances[0, 4]))
    assert (near.distances[near.rows >= 0] <= whole.distances[0, 4]).all()
    assert (near.rows >= 0).sum() >= 5


@pytest.mark.parametrize(
    ("queries", "k", "said"),
    [
        (np.zeros((1, 4), np.uint8), 1, "not packed codes of 3 bytes"), (np.zeros((1, 3)), 1, "dtype float64"),
        (np.zeros((1, 1, 3), np.uint8), 1, "of shape"), (np.zeros(3, np.uint8), 31, r"k=31 is outside 1\.\.30"),
        (np.zeros(3, np.uint8), 0, "k=0 is outside"),
    ],
)  # fmt: skip
def test_queries_that_do_not_fit_are_refused(queries: np.ndarray, k: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _index()[0].search(queries, k)


def test_a_state_that_vanished_without_another_is_an_error() -> None:
    index, table, _ = _index()
    assert index.search(table.codes[0], 30).distances.shape == (1, 30)
    table.gone = True
    with pytest.raises(ConnectionError, match="gone"):
        index.search(table.codes[0], 1)
    with pytest.raises(ValueError, match="that are not made from features: leave rescore out"):
        index.find_rescored(table.codes[:1], np.zeros((1, 24)))
    with pytest.raises(ValueError, match="compares whole codes: search regions in the index folder"):
        index.find_region(table.codes[:1], None)  # type: ignore[arg-type]


def test_rows_are_read_from_the_state_that_has_replaced_another() -> None:
    index, table, store = _index()
    store.table = Table("two", replace(index.header, count=20), table.codes[:20] ^ 1)
    table.gone = True
    assert index.names_of(np.array([3, 1])) == ["3", "1"]
    np.testing.assert_array_equal(index.codes_of(np.array([3, 1])), store.table.codes[[3, 1]])
    assert index.version == "two"
    table, store.table = store.table, Table("three", replace(index.header, count=10), table.codes[:10])
    table.gone = True
    with pytest.raises(ValueError, match=r"row=12 is outside 0\.\.9: shelf was replaced; search it again"):
        index.read([1, 12])
    assert index.read([1, 9])[0] == ["1", "9"]
    store.table.gone = True
    with pytest.raises(ConnectionError, match="gone"):
        index.codes_of(np.array([1]))


def test_a_rescored_search_is_of_one_state() -> None:
    """Although the state disappears between its search and the reading of the hits' codes."""
    vectors = np.random.default_rng(0).normal(size=(30, 24)).astype(np.float32)
    binarizer = fit_binarizer("sign", vectors)
    index, table, store = _index()
    index.binarizer = binarizer
    new = Table("two", replace(index.header, binarizer=binarizer), binarizer.encode(vectors))
    index.header = replace(index.header, binarizer=binarizer)
    search = table.search

    def last(*asked: Any) -> list[Any]:
        found = search(*asked)
        table.gone, store.table = True, new
        return found

    table.search = last  # type: ignore[method-assign]
    found = index.find_rescored(new.codes[:2], vectors[:2], 3, rescore=5)
    expected = StoreIndex(store).find_rescored(new.codes[:2], vectors[:2], 3, rescore=5)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# ---- expressions


SCHEMA = pa.schema(
    [("label", pa.large_string()), ("n", pa.int64()), ("x", pa.float64()), ("good", pa.bool_()), ("day", pa.date32())]
)


@pytest.mark.parametrize(
    ("where", "lance", "other"),
    [
        ("n = 3", "(`n` = 3)", "(n == 3)"), ("n != 3", "(`n` != 3)", "(n != 3)"),
        ("not n < 3", "(`n` >= 3)", "(n >= 3)"), ("not n <= 3", "(`n` > 3)", "(n > 3)"),
        ("not n > 3", "(`n` <= 3)", "(n <= 3)"), ("not n >= 3", "(`n` < 3)", "(n < 3)"),
        ("not n = 3", "(`n` != 3)", "(n != 3)"), ("not n != 3", "(`n` = 3)", "(n == 3)"),
        ("x > 1", "(`x` > 1.0)", "(x > 1.0)"), ("n < 2.0", "(`n` < 2)", "(n < 2)"),
        ("good", "(`good` = true)", "(good == true)"), ("not good", "(`good` = false)", "(good == false)"),
        ("n in (1, 2)", "(`n` in (1, 2))", "(n in [1, 2])"),
        ("n not in (1, 2)", "(`n` not in (1, 2))", "(n not in [1, 2])"),
        ("label in ('it''s', 'b')", "(`label` in ('it''s', 'b'))", '(label in ["it\'s", "b"])'),
        ("n between 1 and 5", "((`n` >= 1) and (`n` <= 5))", "((n >= 1) and (n <= 5))"),
        ("not n between 1 and 5", "((`n` < 1) or (`n` > 5))", "((n < 1) or (n > 5))"),
        ("n = 1 and x < 2", "((`n` = 1) and (`x` < 2.0))", "((n == 1) and (x < 2.0))"),
        ("n = 1 or x < 2", "((`n` = 1) or (`x` < 2.0))", "((n == 1) or (x < 2.0))"),
        ("not (n = 1 or x < 2)", "((`n` != 1) and (`x` >= 2.0))", "((n != 1) and (x >= 2.0))"),
        ("not (n = 1 and not good)", "((`n` != 1) or (`good` = true))", "((n != 1) or (good == true))"),
        ("label is null", "(`label` is null)", "(row < 0)"),
        ("label is not null", "(`label` is not null)", "(row >= 0)"),
        ("label like 'a%'", "(`label` like 'a%')", '(label like "a%")'),
        ("path = 'a'", "(`id` = 'a')", '(name == "a")'),
        ("day >= '1970-01-11'", "(`day` >= 10)", "(day >= 10)"),
    ],
)  # fmt: skip
def test_an_expression_in_the_words_of_each_store(where: str, lance: str, other: str) -> None:
    assert native.LANCE.expression(Filter(where=where), SCHEMA) == lance
    assert native.MILVUS.expression(Filter(where=where), SCHEMA) == other


def test_patterns_and_ids_in_the_words_of_each_store() -> None:
    both = Filter(match="a_%\\b*?", ids=('x"', "y'"), where="n = 1")
    assert native.LANCE.expression(both, SCHEMA) == (
        "(`id` like 'a\\_\\%\\\\b%_') and (`id` in ('x\"', 'y''')) and (`n` = 1)"
    )
    assert native.MILVUS.expression(both, SCHEMA) == (
        '(name like "a\\\\_\\\\%\\\\\\\\b%_") and (name in ["x\\"", "y\'"]) and (n == 1)'
    )
    assert native.LANCE.expression(Filter(), SCHEMA) == ""


def test_wildcards_alone_are_not_left_to_milvus() -> None:
    """milvus-lite finds nothing by them."""
    for everything in (Filter(match="*"), Filter(match="**"), Filter(where="label like '%%'")):
        assert native.MILVUS.expression(everything, SCHEMA) == "(row >= 0)"
    assert native.MILVUS.expression(Filter(match=""), SCHEMA) == '(name == "")'
    assert native.MILVUS.expression(Filter(match="*_*"), SCHEMA) == '(name like "%\\\\_%")'
    for some in (
        Filter(match="?"),
        Filter(match="*?"),
        Filter(where="label like '_%'"),
        Filter(where="path like '__'"),
    ):
        with pytest.raises(ValueError, match="this store finds nothing by wildcards alone"):
            native.MILVUS.expression(some, SCHEMA)
        assert " like " in native.LANCE.expression(some, SCHEMA)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("label ilike 'A%'", "neither ilike nor not like"), ("label not like 'a%'", "neither ilike nor not like"),
        ("n < 2.5", "n holds integers; this store does not compare them with 2.5"),
        ("size = 1", "column 'size' was not pushed: there are label, n, x, good, day"),
        ("n = 'a'", "n is number; compare it with a number"),
    ],
)  # fmt: skip
def test_an_expression_that_a_store_lacks_is_refused(where: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        native.MILVUS.expression(Filter(where=where), SCHEMA)
    if "like" in where:
        assert "like" in native.LANCE.expression(Filter(where=where), SCHEMA)


def test_kept_columns_go_as_a_store_takes_them() -> None:
    table = pa.table(
        {
            "day": pa.array([10, None], pa.date32()), "at": pa.array([5, 6], pa.timestamp("us")),
            "text": pa.array(["a", "b"], pa.large_string()), "n": pa.array([1, 2], pa.int16()),
        }
    )  # fmt: skip
    found = native.pushed_columns(table, "shelf", nulls=True)
    assert found is not None
    assert [str(kind) for kind in found.schema.types] == ["int32", "int64", "string", "int16"]
    assert found.column("day").to_pylist() == [10, None]
    assert native.pushed_columns(None, "shelf", nulls=True) is None
    with pytest.raises(ValueError, match="shelf holds no nulls, of which column 'day' has 1"):
        native.pushed_columns(table, "shelf", nulls=False)
    for name in ("row", "_distance", "odd name", "größe"):
        with pytest.raises(ValueError, match="shelf holds no column called"):
            native.pushed_columns(pa.table({name: [1]}), "shelf", nulls=True)


@pytest.mark.parametrize(("where", "times"), [("own.db", 3), ("http://server:19530", 1)])
def test_a_server_of_a_file_is_asked_until_it_listens(
    where: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pymilvus

    place, asked, client = str(tmp_path / where) if where.endswith(".db") else where, list[str](), object()
    pings = list[int | None]()

    def connect(uri: str, **options: Any) -> object:
        asked.append(uri)
        pings.append(options.get("grpc_options", {}).get("grpc.keepalive_time_ms"))
        if len(asked) < 3:
            raise pymilvus.MilvusException(message=f"Fail connecting to server on {uri}, server unavailable")
        return client

    monkeypatch.setattr(pymilvus, "MilvusClient", connect)
    monkeypatch.setattr(milvus, "_PAUSE", 0.0)
    store = milvus.MilvusStore(place, "codes")
    if times == 1:
        with pytest.raises(ConnectionError, match="Fail connecting to server on http://server:19530"):
            _ = store._client
    else:
        assert store._connected() is client
    assert asked == [place] * times
    assert pings == [None if times == 1 else 2**31 - 1] * times  # gRPC's "never": milvus-lite takes pings for an attack
