"""Translates filters to the syntax of LanceDB and Milvus. Knows nothing of how they search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from sqlglot import exp

from bigr_repr.retrieval.codes.columns import OWN, is_time
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.where import COMPARISONS, Node, constant, mask_of, parse_where

__all__ = ["LANCE", "MILVUS", "Dialect", "pushed_columns"]

_TAKEN: Final = {"row", "id", "name", "code", "_distance", "_rowid"}  # names that the stores' tables use themselves
_ESCAPED: Final = re.compile(r"\\.", re.DOTALL)
_OPPOSITE: Final = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A store's syntax of expressions.

    id: its name for the ids. equal: its equality operator. text, name: quoting functions. brackets: of lists. ilike:
    whether it has ilike and "not like". nulls: whether it can hold nulls. wildcards: whether a pattern may consist of
    wildcards alone.
    """

    id: str
    equal: str
    text: Callable[[str], str]
    name: Callable[[str], str]
    brackets: str
    ilike: bool
    nulls: bool
    wildcards: bool

    def expression(self, chosen: Filter, schema: pa.Schema) -> str:
        """A filter for an index with columns of this schema.  Raises ValueError for what it or the store lacks."""
        parts = []
        if chosen.match is not None:
            parts.append(self._like(self.name(self.id), "like", _pattern(chosen.match)))
        if chosen.ids is not None:
            listed = ", ".join(self.text(str(id)) for id in chosen.ids)
            parts.append(f"{self.name(self.id)} in {self.brackets[0]}{listed}{self.brackets[1]}")
        if chosen.where is not None:
            node = parse_where(chosen.where)
            types = {field.name: field.type for field in schema} | dict.fromkeys(OWN, pa.large_string())
            _check(node, chosen.where, types)
            parts.append(self._written(node, types, negated=False))
        return " and ".join(f"({part})" for part in parts)

    def _written(self, node: Node, types: dict[str, pa.DataType], *, negated: bool) -> str:
        """An expression or its negation: "not" is pushed inward, as some stores do not allow it before parentheses."""
        if isinstance(node, exp.Not):
            return self._written(node.this, types, negated=not negated)
        if isinstance(node, exp.And | exp.Or):
            join = " and " if isinstance(node, exp.And) != negated else " or "
            return join.join(f"({self._written(part, types, negated=negated)})" for part in node.expressions)
        name = node.name if isinstance(node, exp.Column) else node.this.name
        column, kind = self.name(self.id if name in OWN else name), types[name]
        if isinstance(node, exp.Column):
            return f"{column} {self.equal} {'false' if negated else 'true'}"
        if isinstance(node, exp.Is):
            if not self.nulls:
                return "row >= 0" if negated else "row < 0"
            return f"{column} is {'not ' if negated else ''}null"
        return self._compared(node, column, name, kind, negated)

    def _compared(self, node: Node, column: str, name: str, kind: pa.DataType, negated: bool) -> str:
        def value(part: Node) -> str:
            return self._value(constant(part, name, kind), name, kind)

        no = "not " if negated else ""
        if isinstance(node, exp.In):
            listed = ", ".join(value(part) for part in node.expressions)
            return f"{column} {no}in {self.brackets[0]}{listed}{self.brackets[1]}"
        if isinstance(node, exp.Between):
            low, high = value(node.args["low"]), value(node.args["high"])
            join, above, below = ("or", "<", ">") if negated else ("and", ">=", "<=")
            return f"({column} {above} {low}) {join} ({column} {below} {high})"
        if isinstance(node, exp.Like | exp.ILike):
            if not self.ilike and (negated or isinstance(node, exp.ILike)):
                raise ValueError("where: this store has neither ilike nor not like; search the index folder")
            like = "ilike" if isinstance(node, exp.ILike) else "like"
            return self._like(column, no + like, constant(node.expression, name, kind).as_py())
        sign = COMPARISONS[type(node)]
        sign = _OPPOSITE[sign] if negated else sign
        return f"{column} {self.equal if sign == '=' else sign} {value(node.expression)}"

    def _like(self, column: str, like: str, pattern: str) -> str:
        """A comparison with a pattern.  Raises ValueError for wildcards alone if the store finds nothing by them."""
        if not self.wildcards and not _ESCAPED.sub("x", pattern).strip("%_"):
            if not pattern:
                return f"{column} {self.equal} {self.text('')}"
            if "_" in pattern:
                raise ValueError(
                    f"where, match: this store finds nothing by wildcards alone, such as {pattern!r:.60}; add a "
                    "letter, or search the index folder"
                )
            return "row >= 0"
        return f"{column} {like} {self.text(pattern)}"

    def _value(self, scalar: pa.Scalar, name: str, kind: pa.DataType) -> str:
        if is_time(kind):
            return str(scalar.cast(_pushed(kind)).as_py())
        value = scalar.as_py()
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return self.text(value)
        if pa.types.is_integer(kind) and isinstance(value, float):
            if not value.is_integer():
                raise ValueError(f"where: {name} holds integers; this store does not compare them with {value!r}")
            value = int(value)
        return repr(float(value) if pa.types.is_floating(kind) else value)


LANCE: Final = Dialect(
    id="id", equal="=", brackets="()", ilike=True, nulls=True, wildcards=True,
    text=lambda text: "'" + text.replace("'", "''") + "'", name=lambda name: f"`{name}`",
)  # fmt: skip
MILVUS: Final = Dialect(
    id="name", equal="==", brackets="[]", ilike=False, nulls=False, wildcards=False,
    text=lambda text: json.dumps(text, ensure_ascii=False), name=lambda name: name,
)  # fmt: skip


def pushed_columns(table: pa.Table | None, store: str, *, nulls: bool) -> pa.Table | None:
    """Kept columns in a store's form: dates and times as numbers.  Raises ValueError for what it cannot hold."""
    if table is None:
        return None
    columns = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name in _TAKEN or not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{store} holds no column called {name!r}; build the index with a different name")
        if not nulls and values.null_count:
            raise ValueError(f"{store} holds no nulls, of which column {name!r} has {values.null_count:,}; use lancedb")
        columns[name] = values.cast(_pushed(values.type))
    return pa.table(columns)


def _pushed(kind: pa.DataType) -> pa.DataType:
    if is_time(kind):
        return pa.int32() if pa.types.is_date32(kind) else pa.int64()
    return pa.string() if kind == pa.large_string() else kind


def _check(node: Node, text: str, types: dict[str, pa.DataType]) -> None:
    """Raise ValueError as the index folder would."""

    def column(name: str) -> pa.ChunkedArray:
        if name not in types:
            held = ", ".join(name for name in types if name != "id")
            raise ValueError(f"column {name!r:.60} was not pushed: there are {held:.200}")
        return pa.chunked_array([], types[name])

    try:
        mask_of(node, column)
    except pa.ArrowException as error:
        raise ValueError(f"where={text!r:.80}: {error}") from error


def _pattern(match: str) -> str:
    """Convert a pattern with * and ? to one with % and _."""
    escaped = match.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
