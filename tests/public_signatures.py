"""Parameters and defaults of public names, read from the source: tests/golden/signatures.json keeps them.

python tests/public_signatures.py    # writes them anew, after a change that the changelog tells users of
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bigr_repr"
GOLDEN = Path(__file__).parent / "golden" / "signatures.json"


def public_files() -> dict[str, list[str]]:
    """Files, relative to the repository, with the public names that they define."""
    found: dict[str, list[str]] = {}
    for stub in sorted(PACKAGE.rglob("__init__.pyi")):
        for module, name in re.findall(r"from (\.[\w.]+) import (\w+) as", stub.read_text()):
            file = stub.parent.joinpath(*module[1:].split(".")).with_suffix(".py")
            if file.exists():
                found.setdefault(str(file.relative_to(PACKAGE.parent)), []).append(name)
    names = [node.name for node in ast.parse((PACKAGE / "codes.py").read_text()).body if isinstance(node, _NAMED)]
    found["bigr_repr/codes.py"] = [name for name in names if not name.startswith("_")]
    return found


_NAMED = ast.FunctionDef | ast.ClassDef


def signatures(file: str, names: list[str]) -> list[str]:
    """Of each name, and of what a class of it shows, its parameters with their defaults."""
    said = []
    for node in ast.parse((PACKAGE.parent / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            said.append(_call(node, node.name))
        elif isinstance(node, ast.ClassDef) and node.name in names:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and (not part.name.startswith("_") or part.name == "__init__"):
                    said.append(_call(part, f"{node.name}.{part.name}"))
                elif isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
                    default = "" if part.value is None else f" = {ast.unparse(_without_words(part.value))}"
                    said.append(f"{node.name}.{ast.unparse(part.target)}{default}")
    return said


def _without_words(value: ast.expr) -> ast.expr:
    """A field's default; of one that documents itself also what is allowed, but not how it is explained."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "option":
        value.args = value.args[:1]
        value.keywords = [each for each in value.keywords if each.arg in ("choices", "least", "most")]
    return value


def _call(node: ast.FunctionDef, name: str) -> str:
    for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
        each.annotation = None
    for star in (node.args.vararg, node.args.kwarg):
        if star is not None:
            star.annotation = None
    return f"{name}({ast.unparse(node.args)})"


if __name__ == "__main__":
    made = {file: signatures(file, names) for file, names in sorted(public_files().items())}
    GOLDEN.write_text(json.dumps({file: said for file, said in made.items() if said}, indent=0) + "\n")
