"""Mutation testing: puts small faults into the package, one at a time, and counts those that the tests detect.

    python benchmarks/mutation.py cover --work /tmp/mutation -m "not slow"   # record which test runs which line
    python benchmarks/mutation.py cover --work /tmp/mutation -m slow tests/test_train.py   # add more of the suite
    python benchmarks/mutation.py run --work /tmp/mutation --count 300 --seed 0 --jobs 2
    python benchmarks/mutation.py again --work /tmp/slow                                # retry survivors: other tests
    python benchmarks/mutation.py again --work /tmp/mutation --also tests/test_new.py   # retry survivors: these first

Needs `coverage`. Faults are sampled by seed, uniformly over all that faults.py can make. A fault counts as found if a
test fails or takes much longer than before. Only tests that run the faulty line are tried, as recorded by covered.py,
for at most a tenth of the suite's time.

mutmut and cosmic-ray do not fit: the first skips every decorated function, the second starts the whole suite for each
fault. Here one process imports and collects everything once; for each fault, a fork of it swaps the faulty code into
the functions.

Writes benchmarks/results/mutation.json: the last run's seed, commit, scores by folder and faults; how survivors fared
in later `again` runs; and the scores of earlier runs. Survivors are judged by hand ("equivalent: ...", "not worth a
test: ...", "worth a test: ..."); later runs keep these judgments.

Expected: 78 % of random faults found by the quick tests, 89 % once slow tests and tests for survivors are tried too.
`cover` takes twice as long as the tests; `run` takes 2 to 3 s per fault on an idle core.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TextIO

from covered import SHARE, Coverage, Recorder, copy_tree, cover, environment
from faults import ROOT, Fault, all_faults, faulty, key

RESULT = Path(__file__).parent / "results" / "mutation.json"
_ANEW = 99  # exit code: the fault needs a fresh import
_KEPT = ("run", "before", "judgments", "faults")  # fields of a record that `again` keeps


# ---- trying faults


def _alone(tree: Path, fault: Fault, tests: list[str], limit: float) -> str | None:
    """Like `Trial.attempt`, but in a fresh process that imports the faulty package, for code that runs at import."""
    files = sorted({test.partition("::")[0] for test in tests})
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    chosen = ["-p", "mutation", "--chosen", "\n".join(tests)]
    place = tree / fault.file
    place.write_bytes(faulty(fault))
    try:
        done = subprocess.run([*command, *chosen], cwd=tree, timeout=limit, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return "too long"
    finally:
        place.write_bytes((ROOT / fault.file).read_bytes())
    return "failed" if done.returncode not in (0, 5) else None  # 5: no test has that name any more


def pytest_addoption(parser: Any) -> None:
    """Add the option that selects tests when `_alone` loads this module as a pytest plugin."""
    parser.addoption("--chosen", default="")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep only the chosen tests, in the given order."""
    tests = config.getoption("--chosen").split("\n")
    items[:] = sorted((item for item in items if item.nodeid in tests), key=lambda item: tests.index(item.nodeid))


def _code(source: str, path: str) -> list[CodeType]:
    """All code objects of a module, each before those nested in it."""
    found, todo = [], [compile(source, path, "exec")]
    while todo:
        found.append(todo.pop())
        todo += reversed([each for each in found[-1].co_consts if isinstance(each, CodeType)])
    return found


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _is_function(code: CodeType) -> bool:
    """Whether code is a function's, not a module's or a class's."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED)


def _outside(code: CodeType) -> list[object]:
    """The content of a code object, without nested code objects."""
    return [code.co_code, code.co_names, *(each for each in code.co_consts if not isinstance(each, CodeType))]


class Trial:
    """A pytest plugin: once all tests are collected, tries faults instead of running the tests.

    Each fault runs in a fork that replaces the code of the affected functions, so that nothing is imported again.
    """

    def __init__(self, tree: Path, covered: Coverage, chosen: list[Fault], also: list[str], tried: TextIO) -> None:
        self._tried = tried
        self._tree, self._covered, self._chosen, self._also = tree, covered, chosen, also
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)

    def pytest_runtestloop(self, session: Any) -> bool:
        gc.unfreeze()  # what pytest's configuration froze is not listed
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename.startswith(str(self._tree)):
                self._functions[_place(each.__code__)].append(each)
        gc.freeze()
        also = [item.nodeid for item in session.items if item.nodeid.partition("::")[0] in self._also]
        for number, fault in enumerate(self._chosen, start=1):
            named = [item.nodeid for item in session.items if f"[{fault.file}]" in item.nodeid]  # they read the file
            tests = [*also, *named, *self._covered.tests(fault)]
            limit = 60 + 3 * sum(self._covered.seconds.get(test, 1) for test in tests)
            new = self._changed(fault)
            if number == 1 and self.attempt(session, Fault(fault.file, 1, 0, 0, "", ""), {}, tests, 600):
                raise SystemExit("tests fail without any fault, so they cannot detect one")
            how = self.attempt(session, fault, new or {}, tests if new is not None else named, limit)
            if how == "anew" or (how is None and new is None):
                how = _alone(self._tree, fault, tests, limit)
            self._tried.write(json.dumps([fault, how, len(tests)]) + "\n")
            self._tried.flush()
            print(f"{number}/{len(self._chosen)} {how or 'NOT FOUND'} {fault.kind} {key(fault)}", flush=True)
        return True

    def _changed(self, fault: Fault) -> dict[tuple[str, str, int], CodeType] | None:
        """New code objects by place, or None if code outside functions changes, which needs a fresh import."""
        path = str(self._tree / fault.file)
        old, new = _code((ROOT / fault.file).read_text(), path), _code(faulty(fault).decode(), path)
        if len(old) != len(new):
            return None
        for a, b in zip(old, new, strict=True):
            inner = "<locals>" in a.co_qualname or (not _is_function(a) and _outside(a) == _outside(b))
            if not inner and a != b and _place(a) not in self._functions:
                return None
        return {_place(a): b for a, b in zip(old, new, strict=True)}

    def attempt(
        self, session: Any, fault: Fault, new: dict[Any, CodeType], tests: list[str], limit: float
    ) -> str | None:
        """Returns how the tests detected the fault ("failed" or "too long"), or None if they passed.

        "anew": the fault needs a fresh import.
        """
        (self._tree / fault.file).write_bytes(faulty(fault))  # for subprocesses of the tests
        child = os.fork()
        if child == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            try:
                self._run(session, new, tests)
            finally:
                os._exit(1)
        ends, ended, status = time.monotonic() + limit, 0, 0
        while not ended and time.monotonic() < ends:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
        for left in Path(tempfile.gettempdir()).iterdir():
            shutil.rmtree(left, ignore_errors=True)
        (self._tree / fault.file).write_bytes((ROOT / fault.file).read_bytes())
        ways = {0: None, _ANEW: "anew", -signal.SIGALRM: "too long"}
        return ways.get(os.waitstatus_to_exitcode(status), "failed") if ended else "too long"

    def _run(self, session: Any, new: dict[Any, CodeType], tests: list[str]) -> None:
        """In the child: swap in the faulty code, run tests until one fails, and exit with the result as exit code."""
        for place, code in new.items():
            for function in self._functions.get(place, ()):
                try:
                    function.__code__ = code
                except ValueError:  # the free variables differ
                    os._exit(_ANEW)
        items = {item.nodeid: item for item in session.items}
        chosen = [items[test] for test in tests if test in items]
        for item, following in zip(chosen, [*chosen[1:], None], strict=False):
            signal.setitimer(signal.ITIMER_REAL, 20 + 10 * self._covered.seconds.get(item.nodeid, 1))  # kills the child
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                os._exit(1)
        os._exit(0)


def run(
    work: Path, chosen: list[Fault], also: list[str], jobs: int, share: float
) -> dict[Fault, tuple[str | None, int]]:
    """Try faults in `jobs` processes: how each was found, and how many tests were tried. Ctrl-C keeps what is done."""
    places = [work / f"part-{number}" for number in range(jobs)]
    for number, place in enumerate(places):
        place.mkdir(exist_ok=True)
        (place / "faults.json").write_text(json.dumps(chosen[number::jobs]))
        (place / "tried.jsonl").write_text("")
    command = [sys.executable, "-u", __file__, "part", "--share", str(share), "--also", *also, "--work"]
    running = [subprocess.Popen([*command, str(place)]) for place in places]
    with contextlib.suppress(KeyboardInterrupt):
        codes = [each.wait() for each in running]
        if any(codes):
            raise SystemExit("a part failed, so there is no result")
    lines = [json.loads(line) for place in places for line in (place / "tried.jsonl").read_text().splitlines()]
    return {Fault(*fault): (how, tests) for fault, how, tests in lines}


def _part(work: Path, also: list[str], share: float) -> None:
    """The work of one process. work: its own folder."""
    import pytest

    covered, tree = Coverage(work.parent, share), copy_tree(work / "tree")
    chosen = [Fault(*each) for each in json.loads((work / "faults.json").read_text())]
    os.chdir(tree)
    os.environ.update(environment(tree))
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary, (work / "tried.jsonl").open("a") as tried:
        os.environ["TMPDIR"] = temporary
        tempfile.tempdir = None
        sys.path[:0] = [str(tree), str(tree / "cli")]
        files = {*also, *(test.partition("::")[0] for test in covered.seconds)}
        trial = Trial(tree, covered, chosen, also, tried)
        pytest.main(["-q", "-s", "-p", "no:cacheprovider", *sorted(filter(os.path.exists, files))], [trial])


def _note(record: dict[str, Any], tried: dict[Fault, tuple[str | None, int]], *, same: bool) -> None:
    """Add results to the record. For faults already in it, note only a changed result, as "again".

    same: package and tests are those of the first attempt, only more tests were tried: a changed result replaces it.
    """
    for fault, (how, tests) in tried.items():
        entry = record.setdefault(key(fault), {"line": fault.line, "kind": fault.kind, "found": how, "tests": tests})
        if entry["found"] != how:
            entry |= {"found" if same else "again": how, "tests": tests}


def _row(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and scores: of the run, with later `again` runs included, and each without equivalent faults."""
    found = sum(bool(entry["found"]) for entry in entries)
    mended = sum(bool(entry["found"] or entry.get("again")) for entry in entries)
    same = sum(_equivalent(entry) for entry in entries)
    shares = {"score": found, "after_mending": mended}
    row = {"faults": len(entries), "found": found, "equivalent": same, "mended": mended - found}
    row |= {name: round(value / len(entries), 3) for name, value in shares.items()}
    return row | {f"{name}_without_equivalent": round(n / max(1, len(entries) - same), 3) for name, n in shares.items()}


def _alive(entry: dict[str, Any]) -> bool:
    """Whether no test has found a fault that changes anything."""
    return not (entry["found"] or entry.get("again") or _equivalent(entry))


def _equivalent(entry: dict[str, Any]) -> bool:
    return not (entry["found"] or entry.get("again")) and str(entry.get("judgment", "")).startswith("equivalent")


def write(result: dict[str, Any]) -> None:
    """Write the record: scores by folder, and all faults."""
    import record

    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, entry in result["faults"].items():
        for folder in (name.partition("\n")[0].split("/")[1], "all"):
            rows[folder].append(entry)
    folders = {name: _row(entries) for name, entries in sorted(rows.items())}
    scores = {name: folders["all"][name] for name in folders["all"] if "score" in name or "mending" in name}
    record.write("mutation", {"run": result["run"], **scores, "folders": folders, **result})


def _begun(options: argparse.Namespace) -> dict[str, Any]:
    """A new record without faults, but with the judgments and scores of earlier records."""
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"faults": {}}
    judgments = old.get("judgments", {})
    judgments |= {name: entry["judgment"] for name, entry in old["faults"].items() if entry.get("judgment")}
    before = [*old.get("before", []), {**old["run"], **old["folders"]["all"]}] if "run" in old else []
    run = {"seed": options.seed, "count": options.count, "commit": _commit()}
    return {"run": run, "before": before, "judgments": judgments, "faults": {}}


def _commit() -> str:
    """The commit of the package and its tests, with "-dirty" for uncommitted changes to them."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    changed = ["git", "diff", "--quiet", "HEAD", "--", "bigr_repr", "cli", "tests", "pyproject.toml"]
    dirty = subprocess.run(changed, cwd=ROOT, check=False).returncode
    return found.stdout.decode().strip() + ("-dirty" if dirty else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["cover", "record", "run", "again", "part"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the copies of the tree and the coverage")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, each with a copy of the tree")
    parser.add_argument("--also", nargs="*", default=[], help="test files to try first, whatever lines they cover")
    parser.add_argument("--share", type=float, default=SHARE, help="fraction of the tests' time to spend per fault")
    options, others = parser.parse_known_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.task == "cover":
        return cover(work, others)
    if options.task == "record":
        import pytest

        sys.exit(pytest.main(["-p", "no:cacheprovider", *others], [Recorder(work / "seconds.json")]))
    if options.task == "part":
        return _part(work, options.also, options.share)
    every = all_faults()
    if options.task == "run":
        result = _begun(options)
        chosen = random.Random(options.seed).sample(every, options.count)
    else:
        result = {name: old for name, old in json.loads(RESULT.read_text()).items() if name in _KEPT}
        left = {name for name, entry in result["faults"].items() if _alive(entry)}
        chosen = [fault for fault in every if key(fault) in left]
    same = options.task == "run" or result["run"]["commit"] == _commit()
    _note(result["faults"], run(work, chosen, options.also, options.jobs, options.share), same=same)
    result["run"]["tried"] = len(result["faults"])
    for name, entry in result["faults"].items():
        if not (entry["found"] or entry.get("again")):
            entry.setdefault("judgment", result["judgments"].get(name, ""))
    write(result)


if __name__ == "__main__":
    main()
