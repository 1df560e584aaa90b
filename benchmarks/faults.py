"""Small faults to put into the package: a flipped comparison, a dropped argument, a removed call. Runs none of them."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "sampling", "painting", "retrieval", "evaluate", "embed", "train", "checkpoints", "features")
FOLDERS += ("images", "config", "codes.py")
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Fault(NamedTuple):
    """One change: bytes start..end of `file` (relative to the repository root) become `text`; `line` counts from 1."""

    file: str
    line: int
    start: int
    end: int
    text: str
    kind: str


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    """Kinds and replacements for one node: a string is inserted as source, a node in parentheses."""
    yield from _other_flow(node)
    match node:
        case ast.Compare(left, [op], [right]) if type(op) in _SWAPS:
            yield "comparison", ast.Compare(left, [_SWAPS[type(op)]()], [right])  # type: ignore[list-item]
        case ast.BinOp(left, op, right) if type(op) in _SWAPS and not isinstance(left, ast.JoinedStr):
            yield "arithmetic", ast.BinOp(left, _SWAPS[type(op)](), right)  # type: ignore[arg-type]
        case ast.BoolOp(op, values):
            yield "and/or", ast.BoolOp(_SWAPS[type(op)](), values)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "sign", operand
        case ast.Constant(bool(value)):
            yield "constant", repr(not value)
        case ast.Constant(int(value) | float(value)):
            yield "constant", f"({value!r} {'-' if value > 1 else '+'} 1)"
        case ast.Name(name) if name in _NAMES:
            yield "name", _NAMES[name]
        case ast.Call(func, args, keywords):
            same = isinstance(func, ast.Name) and func.id in _NAMES and not keywords  # their order does not matter
            same = same or (len(args) > 1 and ast.dump(args[0]) == ast.dump(args[1]))
            if len(args) > 1 and not same and not any(isinstance(arg, ast.Starred) for arg in args[:2]):
                yield "arguments swapped", ast.Call(func, [args[1], args[0], *args[2:]], keywords)
            for index, keyword in enumerate(keywords):
                if keyword.arg:
                    rest = [*keywords[:index], *keywords[index + 1 :]]
                    yield f"argument {keyword.arg} removed", ast.Call(func, args, rest)


def _other_flow(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    match node:
        case ast.If(test) | ast.While(test) if "TYPE_CHECKING" not in ast.unparse(test):
            yield "condition", ast.UnaryOp(ast.Not(), test)
        case ast.IfExp(test, body, other):
            yield "condition", ast.IfExp(test, other, body)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise():
            yield "statement removed", "pass"
        case ast.Break():
            yield "break/continue", "continue"
        case ast.Continue():
            yield "break/continue", "break"


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Child nodes to search for faults. Skips annotations, docstrings, messages and TYPE_CHECKING imports."""
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Expr) and ast.unparse(node).startswith(("_log.", "log.", "logger.", "_logger.")):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST))


def faults(file: Path) -> list[Fault]:
    """All faults of one file, in line order."""
    source = file.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, todo = [], [ast.parse(source)]
    while todo:
        node = todo.pop()
        todo += _children(node)  # type: ignore[arg-type]
        place: Any = node.test if isinstance(node, ast.If | ast.While) else node
        if isinstance(node, ast.Expr) and not list(_children(node)):
            continue
        for kind, new in _replacements(node):
            text = new if isinstance(new, str) else f"({ast.unparse(new)})"
            start, end = (
                starts[place.lineno - 1] + place.col_offset,
                starts[place.end_lineno - 1] + place.end_col_offset,
            )
            found.append(Fault(str(file.relative_to(ROOT)), place.lineno, start, end, text, kind))
    return sorted(found, key=lambda fault: (fault.start, fault.end, fault.text))


def all_faults() -> list[Fault]:
    """All faults of the files in FOLDERS."""
    files = [file for name in FOLDERS for file in sorted((ROOT / "bigr_repr" / name).rglob("*.py"))]
    files += [ROOT / "bigr_repr" / name for name in FOLDERS if name.endswith(".py")]
    return [fault for file in files for fault in faults(file)]


def faulty(fault: Fault) -> bytes:
    """The file's content with the fault."""
    source = (ROOT / fault.file).read_bytes()
    return source[: fault.start] + fault.text.encode() + source[fault.end :]


def key(fault: Fault) -> str:
    """A name that survives changes elsewhere in the file: its path, and the changed lines with `-` and `+`."""
    before, after = (ROOT / fault.file).read_text().splitlines(), faulty(fault).decode().splitlines()
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join([fault.file, *(line for line in list(lines)[2:] if not line.startswith("@@"))])


def depending(fault: Fault) -> tuple[set[int], set[str]]:
    """For a line that runs at import: the lines that use what it defines, and its names visible to other modules.

    The lines are the body of the function or class whose head contains the line, or those that mention the names it
    assigns.
    """
    module = ast.parse((ROOT / fault.file).read_bytes())
    lines, names, nodes = set[int](), set[str](), list(ast.walk(module))
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                head = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if head <= fault.line < node.body[0].lineno:
                    lines.update(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
            case ast.Assign(targets) if node.lineno <= fault.line <= (node.end_lineno or 0):
                names.update(each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
            case ast.AnnAssign(ast.Name(name)) if node.lineno <= fault.line <= (node.end_lineno or 0):
                names.add(name)
    used = {node.lineno for node in nodes if isinstance(node, ast.Name | ast.Attribute) and _name(node) in names}
    outside = [node for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    ours = {name for node in outside for name in map(_name, ast.walk(node)) if node.lineno <= fault.line}
    return lines | used, names & ours


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@cache
def naming_tests() -> dict[str, set[str]]:
    """The tests that use each name, as pytest node ids without parameters."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for name in {_name(each) for each in ast.walk(node)} - {""}:
                    found.setdefault(name, set()).add(f"tests/{file.name}::{node.name}")
    return found
