"""Do the tests bite? Small faults are put into the package one at a time, and the tests that run the line must fail.

    python benchmarks/mutation.py cover --work /tmp/mutation     # which test runs which line: the suite, twice as long
    python benchmarks/mutation.py run --work /tmp/mutation --count 300 --seed 0
    python benchmarks/mutation.py again --work /tmp/mutation --also tests/test_new.py   # survivors, by these too

Needs `coverage`. Expected: at least 85 % of 300 random faults found; about 5 s a fault on one core.
The faults are random (by seed), evenly over all that could be made in FOLDERS. A fault counts as found when a test
fails or takes much longer than before. Only tests that run the faulty line are tried, the fastest first. mutmut and
cosmic-ray were looked at: the first leaves out every decorated function, the second starts the whole command for each
fault, and half of that time is the import of torch; here each fault runs in a fork of one process that has it loaded.

Writes benchmarks/results/mutation.json: the score by folder, and the faults that were not found with their judgment,
which is written by hand there ("equivalent: ...", "not worth a test: ...", "mended") and kept by later runs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "mutation.json"
FOLDERS = ("models", "sampling", "painting", "retrieval", "evaluate", "embed", "train", "checkpoints", "features")
FOLDERS += ("images", "codes.py", "config.py")
LOADED = ("torch", "torchvision", "timm", "sklearn.linear_model", "faiss", "pyarrow.parquet", "accelerate")
BUDGET = 60.0  # seconds of tests a fault, as measured without one
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Fault(NamedTuple):
    """One change: bytes start..end of a file (relative to the root) become `text`; `line` counts from 1."""

    file: str
    line: int
    start: int
    end: int
    text: str
    kind: str


# ---- what could go wrong


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    """Kinds and replacements for one node; a string is source, a node is put in parentheses."""
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
            if len(args) > 1 and not any(isinstance(arg, ast.Starred) for arg in args[:2]):
                yield "arguments swapped", ast.Call(func, [args[1], args[0], *args[2:]], keywords)
            for index, keyword in enumerate(keywords):
                if keyword.arg:
                    rest = [*keywords[:index], *keywords[index + 1 :]]
                    yield f"argument {keyword.arg} removed", ast.Call(func, args, rest)


def _other_flow(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    match node:
        case ast.If(test) | ast.While(test):
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
    """Where faults are looked for: not in annotations, docstrings, messages and what is imported for types only."""
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
    """All faults of one file, in the order of its lines."""
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
    """All faults of FOLDERS."""
    files = [file for name in FOLDERS for file in sorted((ROOT / "bigr_repr" / name).rglob("*.py"))]
    files += [ROOT / "bigr_repr" / name for name in FOLDERS if name.endswith(".py")]
    return [fault for file in files for fault in faults(file)]


def faulty(fault: Fault) -> bytes:
    """The file with the fault."""
    source = (ROOT / fault.file).read_bytes()
    return source[: fault.start] + fault.text.encode() + source[fault.end :]


def key(fault: Fault) -> str:
    """A name that outlasts changes elsewhere in the file: the file, and the lines that differ as `-` and `+`."""
    before, after = (ROOT / fault.file).read_text().splitlines(), faulty(fault).decode().splitlines()
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join([fault.file, *(line for line in list(lines)[2:] if not line.startswith("@@"))])


# ---- which test runs which line


class Recorder:
    """A plugin for pytest: names each test to coverage, and notes how long those that pass take."""

    def __init__(self, file: Path) -> None:
        self._file, self._seconds = file, defaultdict[str, float](float)
        self._failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        import coverage

        os.environ["MUTATION_TEST"] = nodeid  # for the processes that the test starts
        if (current := coverage.Coverage.current()) is not None:
            current.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        passed = {test: round(s, 3) for test, s in self._seconds.items() if test not in self._failed}
        self._file.write_text(json.dumps(passed, indent=0))


def cover(work: Path, options: list[str]) -> None:
    """Run the suite once in a copy under coverage; leaves covered/, .coverage and seconds.json in `work`."""
    tree = _copy(work / "covered")
    (work / "coverage.ini").write_text(
        f"[run]\nsource = {tree}/bigr_repr\ndata_file = {work}/.coverage\nparallel = true\npatch = subprocess\n"
        "context = ${MUTATION_TEST-}\ndisable_warnings = no-data-collected\n"
    )
    python = [sys.executable, "-m", "coverage", "run", f"--rcfile={work}/coverage.ini", __file__, "record"]
    subprocess.run([*python, "--work", str(work), *options], cwd=tree, env=_environment(tree), check=False)
    combine = [sys.executable, "-m", "coverage", "combine", "-q", f"--rcfile={work}/coverage.ini"]
    subprocess.run(combine, cwd=work, check=True)


def _copy(tree: Path) -> Path:
    tree.mkdir(exist_ok=True)
    files = "git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read"
    subprocess.run(f"{files} | tar -x -C {shlex.quote(str(tree))}", shell=True, cwd=ROOT, check=True)
    return tree


def _environment(tree: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(tree), str(tree / "cli")])
    return os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # plugins that are loaded before pytest make it warn


class Coverage:
    """For each line of a file the tests that ran it, and the seconds of all tests; lines may have moved since."""

    def __init__(self, work: Path) -> None:
        import coverage

        self.seconds: dict[str, float] = json.loads((work / "seconds.json").read_text())
        self._data, self._covered = coverage.CoverageData(str(work / ".coverage")), work / "covered"
        self._data.read()

    @lru_cache  # noqa: B019
    def _lines(self, file: str) -> dict[int, set[str]]:
        old = self._covered / file
        if not old.exists():
            return {}
        ran = self._data.contexts_by_lineno(str(old))
        texts = old.read_text().splitlines(), (ROOT / file).read_text().splitlines()
        blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
        moved = {b + i + 1: a + i + 1 for a, b, size in blocks for i in range(size)}
        return {new: self.seconds.keys() & ran.get(line, []) for new, line in moved.items()}

    def tests(self, fault: Fault) -> list[str]:
        """Tests to try, the fastest first: those that ran the line, or, for what runs at import, the file."""
        lines = self._lines(fault.file)
        chosen = lines.get(fault.line) or set().union(*lines.values())
        tests, spent = [], 0.0
        for test in sorted(chosen, key=self.seconds.__getitem__):
            spent += self.seconds[test]
            if tests and spent > BUDGET:
                break
            tests.append(test)
        return tests


# ---- trying


class Chosen:
    """A plugin for pytest: runs these tests only, in this order; from the files `also` all, first."""

    def __init__(self, tests: list[str], also: list[str]) -> None:
        self._rank, self._also = {test: rank for rank, test in enumerate(tests)}, also

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        ranks = {i: -1 if i.nodeid.partition("::")[0] in self._also else self._rank.get(i.nodeid, -2) for i in items}
        items[:] = sorted((item for item in items if ranks[item] > -2), key=ranks.__getitem__)


def found(tree: Path, fault: Fault, tests: list[str], also: list[str], limit: float) -> str | None:
    """How the tests found a fault, in a process of its own: "failed" or "too long"; None if they did not."""
    (tree / fault.file).write_bytes(faulty(fault))
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        import pytest

        files = [file for file in {*also, *(test.partition("::")[0] for test in tests)} if Path(file).exists()]
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *sorted(files)], [Chosen(tests, also)])
        os._exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code))
    ends, ended, status = time.monotonic() + limit, 0, 0
    while not ended and time.monotonic() < ends:
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    (tree / fault.file).write_bytes((ROOT / fault.file).read_bytes())
    return ("failed" if status else None) if ended else "too long"


def run(work: Path, chosen: list[Fault], record: dict[str, Any], also: list[str]) -> None:
    """Try the faults one after the other, and note them in the record."""
    covered, tree = Coverage(work), _copy(work / "faulty")
    os.environ.update(_environment(tree))
    sys.path[:0] = [str(tree), str(tree / "cli")]
    for name in LOADED:
        importlib.import_module(name)
    for file in FOLDERS[-2:]:
        none = Fault(f"bigr_repr/{file}", 1, 0, 0, "", "none")
        if found(tree, none, covered.tests(none), also, 600):
            raise SystemExit("tests fail without any fault: nothing can be told from them")
    for number, fault in enumerate(chosen, start=1):
        tests = covered.tests(fault)
        how = found(tree, fault, tests, also, 60 + 5 * sum(covered.seconds[test] for test in tests))
        known = record.get(key(fault), {})
        judgment = "mended" if known and how else known.get("judgment", "")
        entry = {"line": fault.line, "kind": fault.kind, "found": how, "tests": len(tests), "judgment": judgment}
        record[key(fault)] = entry
        print(f"{number}/{len(chosen)} {how or 'NOT FOUND'} {fault.kind} {fault.line} {key(fault)}", flush=True)


def write(faults: dict[str, Any]) -> None:
    """The record: score by folder, and all faults."""
    import record

    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for name, entry in faults.items():
        for folder in (name.partition("\n")[0].split("/")[1], "all"):
            rows[folder].update(faults=1, found=bool(entry["found"]))
    table = {name: {**row, "score": round(row["found"] / row["faults"], 3)} for name, row in sorted(rows.items())}
    record.write("mutation", {"score": table["all"]["score"], "folders": table, "faults": faults})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["cover", "record", "run", "again"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the copies of the tree and the coverage")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--also", nargs="*", default=[], help="test files to try first, whatever they ran before")
    options, others = parser.parse_known_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.task == "cover":
        return cover(work, others)
    if options.task == "record":
        import pytest

        sys.exit(pytest.main(["-p", "no:cacheprovider", *others], [Recorder(work / "seconds.json")]))
    known = json.loads(RESULT.read_text())["faults"] if RESULT.exists() else {}
    every = all_faults()
    if options.task == "run":
        chosen = random.Random(options.seed).sample(every, options.count)
    else:
        chosen = [fault for fault in every if not known.get(key(fault), {"found": True})["found"]]
    try:
        run(work, chosen, known, options.also)
    finally:
        write(known)


if __name__ == "__main__":
    main()
