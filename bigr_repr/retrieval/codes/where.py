"""Expressions such as `label = "cat" and width > 100`, parsed by sqlglot and applied to columns.

sqlglot parses all of SQL; only the forms below are accepted, so an expression can do nothing but compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from bigr_repr.retrieval.codes.columns import is_time, type_name

Node: TypeAlias = Any  # of sqlglot, whose class names change between versions

__all__ = ["COMPARISONS", "Node", "constant", "mask_of", "parse_where"]

_LONGEST: Final = 1 << 16  # characters
_DEPTH: Final = 100
_EXAMPLE: Final = """an expression is, for example, label = "cat" and not width < 100"""
COMPARISONS: Final[dict[type[Any], str]] = {
    exp.EQ: "=", exp.NEQ: "!=", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_COMPUTE: Final[dict[str, Callable[..., pa.Array]]] = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_TURNED: Final = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}


@lru_cache(maxsize=64)
def parse_where(text: str) -> Node:
    """Parse and check an expression: comparisons of a column with a value, in, between, like, is null, and, or, not.

    Raises ValueError for anything else.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"where: an expression of {len(text):,} characters is longer than {_LONGEST:,}")
    try:
        found = parse_one(
            text, dialect="mysql", into=exp.Condition
        )  # in this dialect "cat" is text, and `a column` a name
    except (SqlglotError, RecursionError) as error:
        errors = getattr(error, "errors", None)
        said = errors[0].get("description", "") if errors else ""
        said = "it is not complete" if "missing for <class" in said else said
        raise ValueError(f"where={text!r:.80} cannot be read{f' ({said})' if said else ''}; {_EXAMPLE}") from None
    try:
        return _checked(found, text, 0)
    except RecursionError:
        raise ValueError(f"where={text!r:.80} is nested too deeply") from None


def _checked(node: Node, text: str, depth: int) -> Node:
    """The node without parentheses, with every column on the left of its comparison."""
    node = node.unnest()
    if depth > _DEPTH:
        raise ValueError(f"where={text!r:.80} is nested more than {_DEPTH} deep; use in (…) for many values")
    if isinstance(node, exp.And | exp.Or):
        flat = [_checked(part, text, depth + 1) for part in node.flatten()]
        return type(node)(expressions=flat)
    if isinstance(node, exp.Not):
        return exp.Not(this=_checked(node.this, text, depth + 1))
    if isinstance(node, exp.Like | exp.ILike) and node.args.get("negate"):  # sqlglot 30's "not like"
        return exp.Not(this=_checked(type(node)(this=node.this, expression=node.expression), text, depth + 1))
    if type(node) in COMPARISONS and not _is_column(node.this.unnest()) and _is_column(node.expression.unnest()):
        node = _TURNED.get(type(node), type(node))(this=node.expression.unnest(), expression=node.this)
    if not (_is_column(node) or (_is_column(node.this) and _values_of(node) is not None)):
        said = (
            f"where: {node.sql(dialect='mysql')!r:.80} is not a comparison of a column with a value; put text in quotes"
        )
        raise ValueError(f"{said}; {_EXAMPLE}")
    return node


def _is_column(node: Any) -> bool:
    return isinstance(node, exp.Column) and not node.table and isinstance(node.this, exp.Identifier)


def _values_of(node: Node) -> list[Any] | None:
    """The values in a comparison; None if the node is not one."""
    if isinstance(node, exp.In):
        listed = node.expressions
        extra = set(node.args) - {"this", "expressions"}
        found = None if not listed or any(node.args[name] for name in extra) else [_literal(each) for each in listed]
    elif isinstance(node, exp.Between):
        found = [_literal(node.args["low"]), _literal(node.args["high"])]
    elif type(node) in COMPARISONS or isinstance(node, exp.Like | exp.ILike):
        found = [_literal(node.expression)]
    elif isinstance(node, exp.Is):
        return [None] if isinstance(node.expression, exp.Null) else None
    else:
        return None
    return None if found is None or any(value is None for value in found) else found


def _literal(node: Node) -> str | int | float | bool | None:
    """A value; None for anything else."""
    node = node.unnest()
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    sign = -1 if isinstance(node, exp.Neg) else 1
    inner = node.this if isinstance(node, exp.Neg) else node
    if not isinstance(inner, exp.Literal):
        return None
    if inner.is_string:
        return str(inner.this) if sign == 1 else None
    try:
        return sign * int(inner.this)
    except ValueError:
        return sign * float(inner.this)


def constant(node: Node, name: str, kind: pa.DataType) -> pa.Scalar:
    """A value in a column's type, or a float for integers if it is none.  Raises ValueError for a different kind."""
    value = _literal(node)
    wanted = str if kind == pa.large_string() or is_time(kind) else bool if pa.types.is_boolean(kind) else int | float
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        form = {str: "text in quotes", bool: "true or false"}.get(wanted, "a number without quotes")  # type: ignore[arg-type]
        raise ValueError(f"where: {name} is {type_name(kind)}; compare it with {form}, not {value!r:.60}")
    try:
        if pa.types.is_floating(kind):
            value = float(value)
        elif isinstance(value, float) and abs(value) < 1 << 63 and value == int(value):
            value = int(value)  # Arrow refuses to compare large integers with floats
        return pa.scalar(value).cast(kind) if is_time(kind) else pa.scalar(value)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise ValueError(f"where: {name} is {type_name(kind)}, which {value!r:.60} is not ({error})") from None


def mask_of(node: Node, column: Callable[[str], pa.ChunkedArray]) -> pa.ChunkedArray:
    """Which rows satisfy an expression: booleans, and null where a null was compared, as in SQL.

    column(name): its values, or ValueError.
    """
    if isinstance(node, exp.And | exp.Or):
        join = pc.and_kleene if isinstance(node, exp.And) else pc.or_kleene
        first, *others = (mask_of(part, column) for part in node.expressions)
        for other in others:
            first = join(first, other)
        return first
    if isinstance(node, exp.Not):
        return pc.invert(mask_of(node.this, column))
    name = node.name if isinstance(node, exp.Column) else node.this.name
    values = column(name)
    if isinstance(node, exp.Column):
        if not pa.types.is_boolean(values.type):
            raise ValueError(f"where: {name} is {type_name(values.type)}, not true or false; compare it with a value")
        return values
    if isinstance(node, exp.Is):
        return pc.is_null(values)
    return _compared(node, name, values)


def _compared(node: Node, name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    def value(part: Node) -> pa.Scalar:
        return constant(part, name, values.type)

    if isinstance(node, exp.Like | exp.ILike):
        if values.type != pa.large_string():
            raise ValueError(f"where: {name} is {type_name(values.type)}; like compares text")
        pattern = value(node.expression).as_py()
        return pc.match_like(values, pattern, ignore_case=isinstance(node, exp.ILike))
    if isinstance(node, exp.In):
        listed = [value(part) for part in node.expressions]
        if pa.types.is_integer(values.type):
            listed = [each for each in listed if not pa.types.is_floating(each.type)]
        wanted = pa.array([each.as_py() for each in listed], listed[0].type if listed else values.type)
        known = pc.is_in(values.cast(wanted.type) if pa.types.is_floating(wanted.type) else values, value_set=wanted)
        return pc.if_else(pc.is_valid(values), known, None)
    if isinstance(node, exp.Between):
        low, high = (value(node.args[end]) for end in ("low", "high"))
        return pc.and_kleene(_ordered(">=", values, low), _ordered("<=", values, high))
    return _ordered(COMPARISONS[type(node)], values, value(node.expression))


def _ordered(sign: str, values: pa.ChunkedArray, scalar: pa.Scalar) -> pa.ChunkedArray:
    """values sign scalar; integers are compared with a float that is none of them by the integer next to it."""
    if not (pa.types.is_integer(values.type) and pa.types.is_floating(scalar.type)):
        return _COMPUTE[sign](values, scalar)
    number = scalar.as_py()
    if sign in ("=", "!=") or abs(number) >= 1 << 63:
        holds = sign == "!=" or (sign != "=" and sign[0] == ("<" if number > 0 else ">"))
        return pc.if_else(pc.is_valid(values), holds, None)
    low = math.floor(number)
    return pc.less_equal(values, low) if sign[0] == "<" else pc.greater(values, low)
