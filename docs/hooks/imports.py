"""Which parts of a package import which: a diagram for Mermaid, and what there is to count.

    python docs/hooks/imports.py [--diagram] bigr_repr

A part is a folder or a module at the package's root. Imports inside functions and for type checkers count too.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

Arrows = dict[str, set[str]]


def modules(package: Path) -> Arrows:
    """Each module of a package, and the modules of the package that it imports."""
    files = {
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(package.rglob("*.py"))
    }
    found: Arrows = {}
    for module, file in files.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in files else str(node.module) for name in whole}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[module] = (names & files.keys()) - {module}
    return found


def parts(package: Path) -> Arrows:
    """The same for the parts of a package: its folders, and the modules at its root."""
    found: Arrows = {}
    for module, targets in modules(package).items():
        if "." in module:
            theirs = {target.split(".")[1] for target in targets if "." in target}
            here = module.split(".")[1]
            found[here] = found.get(here, set()) | theirs - {here}
    return found


def circles(arrows: Arrows) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others."""
    reach = {name: _reachable(name, arrows) for name in arrows}
    groups = {frozenset({name} | {other for other in reach[name] if name in reach[other]}) for name in arrows}
    return [set(group) for group in groups if len(group) > 1]


def _reachable(start: str, arrows: Arrows) -> set[str]:
    seen: set[str] = set()
    waiting = set(arrows[start])
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= arrows[name] - seen
    return seen


def diagram(arrows: Arrows) -> str:
    """Mermaid's text for the arrows, without those that a longer way implies."""
    lines = ["flowchart TD"]
    for name in sorted(arrows):
        implied = set().union(*(_reachable(target, arrows) for target in arrows[name])) if arrows[name] else set()
        lines += [f"    {name} --> {target}" for target in sorted(arrows[name] - implied)]
    return "\n".join(lines) + "\n"


def counts(package: Path) -> dict[str, str]:
    """What there is to count, by name."""
    every, found = modules(package), parts(package)
    root = [file.stem for file in package.glob("*.py")]
    return {
        "files": str(len(every)),
        "root": f"{len(root)}, {sum(name.startswith('_') and name != '__init__' for name in root)}",
        "parts": str(len(found)),
        "arrows": str(sum(map(len, found.values()))),
        "circles": str(len(circles(every))),
    }


def main() -> None:
    """Print the counts, and with --diagram the diagram."""
    parser = argparse.ArgumentParser(description="Which parts of a package import which.")
    parser.add_argument("package", type=Path)
    parser.add_argument("--diagram", action="store_true", help="also print Mermaid's text")
    given = parser.parse_args()
    package = given.package.resolve()
    for name, value in counts(package).items():
        print(f"{name}: {value}")
    if given.diagram:
        print(diagram(parts(package)), end="")


if __name__ == "__main__":
    main()
