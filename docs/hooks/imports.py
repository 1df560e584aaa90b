"""Draws which parts of a package import which.

    python docs/hooks/imports.py bigr_repr --svg imports.svg

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


def _reachable(start: str, arrows: Arrows) -> set[str]:
    seen: set[str] = set()
    waiting = set(arrows[start])
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= arrows[name] - seen
    return seen


def direct(arrows: Arrows) -> Arrows:
    """The arrows that no longer way implies."""
    reach = {name: _reachable(name, arrows) for name in arrows}
    return {name: targets - set().union(*(reach[each] for each in targets)) for name, targets in arrows.items()}


def _rows(arrows: Arrows) -> list[list[str]]:
    """The parts in rows, each below all that import it; in a row, each near those that it imports."""
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in heights:
            below = [height(target, (*above, name)) for target in arrows[name] if target not in above]
            heights[name] = 1 + max(below, default=-1)
        return heights[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(height(name) for name in arrows))]
    for name in sorted(arrows):
        rows[heights[name]].append(name)
    place: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda name: sum(place.get(each, 0) for each in arrows[name]) / max(1, len(arrows[name])))
        place |= {name: (i + 0.5) / len(row) for i, name in enumerate(row)}
    return rows[::-1]


def _box(name: str) -> float:
    return 7 * len(name) + 20


def drawing(arrows: Arrows) -> str:
    """An SVG of the parts, each importing only what is below it."""
    rows, width, step = _rows(arrows), 1000, 76
    place = {}
    for depth, row in enumerate(rows):
        gap = (width - sum(map(_box, row))) / len(row)
        x = gap / 2
        for name in row:
            place[name] = x + _box(name) / 2, 24 + step * depth
            x += _box(name) + gap
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {step * len(rows)}" role="img" '
        'font-family="sans-serif" font-size="13"><title>Which part imports which</title>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8893a8"/></marker></defs>',
    ]
    for name, targets in direct(arrows).items():
        for target in sorted(targets):
            (x, y), (to_x, to_y) = place[name], place[target]
            y, to_y = y + 14, to_y - 15
            bend = (to_y - y) / 2
            lines.append(
                f'<path d="M{x:.0f} {y} C{x:.0f} {y + bend} {to_x:.0f} {to_y - bend} {to_x:.0f} {to_y}" fill="none" '
                'stroke="#8893a8" stroke-width="1.2" marker-end="url(#tip)"/>'
            )
    for name, (x, y) in place.items():
        lines.append(
            f'<rect x="{x - _box(name) / 2:.0f}" y="{y - 14}" width="{_box(name):.0f}" height="28" rx="6" '
            'fill="#eef1f8" stroke="#5566a0"/>'
            f'<text x="{x:.0f}" y="{y + 4.5}" text-anchor="middle" fill="#1c2440">{name}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Write the drawing."""
    parser = argparse.ArgumentParser(description="Which parts of a package import which.")
    parser.add_argument("package", type=Path)
    parser.add_argument("--svg", type=Path, required=True, help="the file to draw them into")
    given = parser.parse_args()
    given.svg.write_text(drawing(parts(given.package.resolve())))


if __name__ == "__main__":
    main()
