"""Which test runs which line of the package, from one run of the suite under coverage. Runs no mutants."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from faults import ROOT, Fault, depending, naming_tests

SHARE = 0.1  # time limit for the tests of one fault, as a fraction of the whole suite's time


class Recorder:
    """A pytest plugin: tells coverage which test is running, and records the duration of each test that passes."""

    def __init__(self, file: Path) -> None:
        self._file, self._seconds = file, defaultdict[str, float](float)
        self._failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        import coverage

        os.environ["MUTATION_TEST"] = nodeid  # for subprocesses of the test
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
    """Run the suite, or a part of it, once under coverage in a copy of the tree. Fills work/covered-N."""
    place = work / f"covered-{len(list(work.glob('covered-*')))}"
    tree = copy_tree(place / "tree")
    (place / "coverage.ini").write_text(
        f"[run]\nsource = {tree}/bigr_repr\ndata_file = {place}/.coverage\nparallel = true\npatch = subprocess\n"
        "context = ${MUTATION_TEST-}\ndisable_warnings = no-data-collected\n"
    )
    mutation = Path(__file__).with_name("mutation.py")
    python = [sys.executable, "-m", "coverage", "run", f"--rcfile={place}/coverage.ini", str(mutation), "record"]
    subprocess.run([*python, "--work", str(place), *options], cwd=tree, env=environment(tree), check=False)
    combine = [sys.executable, "-m", "coverage", "combine", "-q", f"--rcfile={place}/coverage.ini"]
    subprocess.run(combine, cwd=place, check=True)


def copy_tree(tree: Path) -> Path:
    """Copy the working tree, so that faults can be put into the copy."""
    tree.mkdir(parents=True, exist_ok=True)
    files = "git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read"
    subprocess.run(f"{files} | tar -x -C {shlex.quote(str(tree))}", shell=True, cwd=ROOT, check=True)
    return tree


def environment(tree: Path) -> dict[str, str]:
    """Environment variables for processes that import the package from a copy of the tree."""
    paths = os.pathsep.join([str(tree), str(tree / "cli"), str(Path(__file__).parent)])
    return os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Coverage:
    """The tests that ran each line of a file, and the seconds of all tests. Tracks lines that have moved since."""

    def __init__(self, work: Path, share: float = SHARE) -> None:
        import coverage

        self._share = share
        self.seconds: dict[str, float] = {}
        self._covered: list[tuple[Path, coverage.CoverageData, set[str]]] = []
        for place in sorted(work.glob("covered-*")):
            seconds = json.loads((place / "seconds.json").read_text())
            self.seconds |= seconds
            data = coverage.CoverageData(str(place / ".coverage"))
            data.read()
            self._covered.append((place / "tree", data, set(seconds)))

    @lru_cache  # noqa: B019
    def _lines(self, file: str) -> dict[int, set[str]]:
        found: dict[int, set[str]] = defaultdict(set)
        for tree, data, tests in self._covered:
            old = tree / file
            if old.exists():
                ran = data.contexts_by_lineno(str(old))
                texts = old.read_text().splitlines(), (ROOT / file).read_text().splitlines()
                blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
                for new, line in {b + i + 1: a + i + 1 for a, b, size in blocks for i in range(size)}.items():
                    found[new] |= tests & set(ran.get(line, []))
        return found

    @cached_property
    def _ran(self) -> Counter[str]:
        """How many lines of the package each test runs."""
        each = (
            data.contexts_by_lineno(file).values() for _, data, _ in self._covered for file in data.measured_files()
        )
        return Counter(test for lines in each for tests in lines for test in tests)

    def tests(self, fault: Fault) -> list[str]:
        """Tests to try, the most promising first.

        These are the tests that ran the line or, for code that runs at import, tests that depend on it. If they exceed
        the time limit, tests that run little code outside the file are preferred.
        """
        lines = self._lines(fault.file)
        used, names = depending(fault)
        named = set[str]().union(*(naming_tests().get(name, ()) for name in names))
        depend = set[str]().union(*(lines.get(line, ()) for line in used))
        depend |= {test for test in self.seconds if test.partition("[")[0] in named}
        chosen = lines.get(fault.line) or depend or set().union(*lines.values())
        here = Counter(test for tests in lines.values() for test in tests)

        def focus(test: str) -> float:
            """The fraction of the lines a test runs that are in this file."""
            return max(1, here[test]) / max(1, self._ran[test])

        tests, spent, most = list[str](), 0.0, self._share * sum(self.seconds.values())
        for test in sorted(chosen, key=lambda test: (-focus(test), test)):
            if not tests or spent + self.seconds[test] <= most:
                tests.append(test)
                spent += self.seconds[test]
        files: dict[str, list[str]] = defaultdict(list)  # grouped by test file, so that fixtures are created once
        for test in sorted(tests, key=self.seconds.__getitem__):
            files[test.partition("::")[0]].append(test)
        cost = {file: sum(map(self.seconds.__getitem__, each)) / sum(map(focus, each)) for file, each in files.items()}
        return [test for file in sorted(files, key=cost.__getitem__) for test in files[file]]
