"""The outside of the package: its public names, which module may import which, and how fast it answers."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import resource
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from public_signatures import GOLDEN, public_files, signatures

import bigr_repr

PACKAGE = Path(bigr_repr.__file__).parent

PUBLIC = [
    "__version__",
    "BiGR",
    "BigrFeatures",
    "BinaryAutoencoder",
    "FeatureExtractor",
    "Features",
    "GeneratorConfig",
    "HammingIndex",
    "ImageError",
    "ModelConfig",
    "Neighbors",
    "Pasting",
    "Pretrained",
    "SamplingSettings",
    "TokenizerConfig",
    "as_timm",
    "edit",
    "edit_photo",
    "embed_images",
    "encode_codes",
    "enrich",
    "enrich_photo",
    "export_model",
    "extract_features",
    "generate",
    "inpaint",
    "inpaint_photo",
    "interpolate",
    "load",
    "load_exported",
    "load_official",
    "outpaint",
    "outpaint_photo",
    "preset",
    "read_embeddings",
    "save",
]

# Each folder or module of the package, and which others it may import. Data flows one way, so there are no circles.
EVERYWHERE = {"_typing", "_version", "options", "system"}
ALLOWED: dict[str, set[str]] = {
    "_typing": set(),
    "_version": set(),
    "config": set(),
    "codes": set(),
    "options": {"config"},
    "system": set(),
    "images": set(),
    "captions": {"images"},
    "datasets": {"images", "captions"},
    "models": {"config"},
    "checkpoints": {"config", "models"},
    "features": {"config", "codes", "images", "models", "checkpoints"},
    "embed": {"config", "codes", "images", "checkpoints", "features"},
    "retrieval": {"config", "codes", "images", "checkpoints", "features", "embed"},
    "sampling": {"config", "codes", "images", "models", "checkpoints"},
    "painting": {"images", "checkpoints", "sampling"},
    "evaluate": {
        "config",
        "codes",
        "images",
        "captions",
        "datasets",
        "models",
        "checkpoints",
        "features",
        "embed",
        "retrieval",
    },
    "serve": {"config", "codes", "images", "models", "checkpoints", "features", "retrieval"},
    "integrations": {"codes", "images", "models", "checkpoints", "features"},
    "train": {"config", "codes", "images", "datasets", "models", "checkpoints", "sampling"},
}
# The same for the rooms inside the larger folders.
ALLOWED_INSIDE: dict[str, dict[str, set[str]]] = {
    "embed": {
        "dataset": set(),
        "inputs": {"dataset"},
        "engines": {"dataset", "inputs"},
        "options": {"engines"},
        "precision": {"dataset", "inputs", "engines", "options"},
        "job": {"dataset", "inputs", "options"},
        "run": {"dataset", "inputs", "engines", "options", "job"},
        "estimate": {"dataset", "job", "options", "run"},
    },
    "retrieval": {
        "codes": set(),
        "index": {"codes"},
        "stores": {"codes", "index"},
        "results": {"codes", "index", "stores"},
        "build": {"codes", "index"},
        "near_duplicates": {"index"},
        "update": {"codes", "index"},
        "merge": {"codes", "index"},
        "sharding": {"build", "codes", "index", "stores"},
        "queries": {"codes"},
        "request": {"codes", "index", "stores"},
        "search": {"codes", "index", "stores", "results", "queries", "request"},
    },
    "evaluate": {
        "data": set(),
        "representations": set(),
        "metrics": {"data"},
        "probes": {"data", "metrics"},
        "runs": {"data", "representations", "metrics", "probes"},
        "reports": {"data", "representations", "metrics", "probes", "runs"},
    },
}
MODULES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted(PACKAGE.rglob("*.py"))
]
PACKAGES = [module for module in MODULES if (PACKAGE.parent / module.replace(".", "/")).is_dir()]


@cache
def _tree(file: Path) -> list[ast.AST]:
    """All nodes of a file."""
    return list(ast.walk(ast.parse(file.read_text())))


@cache
def _imports(module: str) -> set[str]:
    """Modules of the package that a module imports, also inside functions and for type checkers only."""
    path = PACKAGE.parent / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in _tree(file):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bigr_repr"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("bigr_repr")}
    return found - {module}


def test_public_names_are_pinned() -> None:
    assert sorted(bigr_repr.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    assert (getattr(bigr_repr, name).__doc__ or "").strip()


SIGNATURES: dict[str, list[str]] = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("file", [*SIGNATURES])
def test_public_names_keep_their_parameters_and_defaults(file: str) -> None:
    """Another default is another meaning: tell users in the changelog, and run tests/public_signatures.py."""
    assert signatures(file, public_files()[file]) == SIGNATURES[file]


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="extract_features"):
        bigr_repr.extract_feature  # noqa: B018


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.count(".") == 1])
def test_packages_hand_out_what_their_stub_names(package: str) -> None:
    """From each folder one imports its main names, and none of them is hidden by a module of that name."""
    handed = importlib.import_module(package)
    assert handed.__all__
    for name in handed.__all__:
        value = getattr(handed, name)
        assert not isinstance(value, types.ModuleType)
        if callable(value) and value.__module__.startswith("bigr_repr"):
            assert (value.__doc__ or "").strip(), name


def test_no_module_hides_a_function_of_its_name() -> None:
    for module in MODULES:
        parent, _, name = module.rpartition(".")
        if parent:
            assert name not in getattr(importlib.import_module(parent), "__all__", []), module


def test_names_that_the_text_gives_exist() -> None:
    """Docstrings and comments name parts of the package as one would import them."""
    text = "\n".join(file.read_text() for file in sorted(PACKAGE.rglob("*.py")))
    wrong = []
    for name in sorted(set(re.findall(r"\bbigr_repr(?:\.\w+)+", text))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            wrong.append(name)
    assert not wrong


ROOT = PACKAGE.parent
PAGES = sorted(
    str(page.relative_to(ROOT)) for part in ("*.md", "docs/**/*.md", "*/README.md") for page in ROOT.glob(part)
)


@cache
def _listed() -> list[str]:
    """Files of the repository; none if it is not one."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return listed.splitlines()


@cache
def _generated() -> set[str]:
    """Pages that docs/hooks makes when the site is built, so that guides can link to them."""
    import typer
    from bigr_repr_cli.main import app

    commands: dict[str, object] = vars(typer.main.get_command(app))["commands"]
    names = {f"bigr-repr-{name.split()[0]}" for name in commands} | {"index"}
    api = {module.split(".")[1] for module in MODULES if module.count(".") == 1} | {"bigr_repr"}
    return {f"docs/commands/{name}.md" for name in names} | {f"docs/api/{name}.md" for name in api}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_in_the_repository(page: str) -> None:
    if not (listed := _listed()):
        pytest.skip("not a git repository")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    files = [((ROOT / page).parent / link).resolve().relative_to(ROOT.resolve()) for link in links]
    there = [*listed, *_generated()]
    assert not [str(file) for file in files if not any(f"{each}/".startswith(f"{file}/") for each in there)]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_the_readme_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = (ROOT / "README.md").read_text().partition("Extras, as in")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)` \(", listed)) == extras.keys() - {"dev", "docs"}


def test_light_requirements_are_those_of_the_package() -> None:
    """requirements-cpu.txt is what pyproject.toml states, with FAISS for the CPU."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    light = [line for line in (ROOT / "requirements-cpu.txt").read_text().splitlines() if not line.startswith("#")]
    assert light == [each.partition(";")[0].strip() for each in stated if not each.startswith("faiss-gpu")]


def test_the_version_is_stated_once() -> None:
    assert f"\nversion: {bigr_repr.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_imports_point_downward_only() -> None:
    wrong = []
    for module in MODULES[1:]:
        part = module.split(".")[1]
        for target in _imports(module):
            theirs = target.split(".")[1] if "." in target else "the package itself"
            if theirs not in ALLOWED[part] | EVERYWHERE | {part}:
                wrong.append(f"{module} imports {target}")
    assert not wrong


@pytest.mark.parametrize("package", ALLOWED_INSIDE)
def test_imports_point_downward_inside(package: str) -> None:
    allowed, wrong = ALLOWED_INSIDE[package], []
    for module in MODULES:
        if module.startswith(f"bigr_repr.{package}."):
            room = module.split(".")[2]
            theirs = {name.split(".")[2] for name in _imports(module) if name.startswith(f"bigr_repr.{package}.")}
            wrong += [f"{module} imports from {other}" for other in theirs - allowed[room] - {room}]
    assert not wrong


def test_no_two_modules_import_each_other() -> None:
    """Not even by way of others: what is left when modules without imports are taken away, again and again."""
    left = {module: _imports(module) & set(MODULES) - {"bigr_repr"} for module in MODULES}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_every_folder_is_a_package() -> None:
    """A folder without `__init__.py` imports all the same, but type checkers and documentation do not find it."""
    assert not [str(file) for file in PACKAGE.rglob("*.py") if not (file.parent / "__init__.py").is_file()]


def test_the_root_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def _nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """What of these kinds there is in the package and its command line."""
    for file in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        yield from ((file, node) for node in _tree(file) if isinstance(node, kinds))


def test_no_two_classes_have_the_same_name() -> None:
    """Not even where an underscore tells them apart."""
    places: dict[str, list[str]] = {}
    for file, node in _nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        places.setdefault(node.name.lstrip("_"), []).append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not {name: listed for name, listed in places.items() if len(listed) > 1}


def _dataclasses(file: Path) -> dict[str, tuple[set[str], bool]]:
    """Of a module's dataclasses the flags that differ from the default, and whether one has an array as a field."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            for each in map(ast.unparse, node.decorator_list):
                if re.match(r"dataclass\b", each):
                    fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
                    arrays = any(re.match(r"NDArray|Tensor|torch\.Tensor", ast.unparse(field)) for field in fields)
                    found[node.name] = set(re.findall(r"frozen=True|kw_only=True|eq=False", each)), arrays
    return found


CHANGE = {"LocalEngine", "_ActorState", "_Painter", "_Recorder", "_Server"}  # while they work
GIVEN_IN_ORDER = {
    "ExportedModel", "FolderOpener", "Heads", "Labeled", "LocalEngine", "Plan", "Pretrained", "Run", "Setup", "Source",
    "StoreOpener", "UnitRecord",
}  # fmt: skip


@pytest.mark.parametrize(
    "file", [str(file.relative_to(ROOT)) for file in sorted((ROOT / "bigr_repr").rglob("*.py")) if _dataclasses(file)]
)
def test_dataclasses_keep_what_they_were_given(file: str) -> None:
    """Nothing assigns to a field later, fields have names in calls, and arrays are not compared by `==`."""
    for name, (flags, arrays) in _dataclasses(ROOT / file).items():
        assert ("frozen=True" in flags) == (name not in CHANGE)
        if not name.startswith("_"):
            assert ("kw_only=True" in flags) == (name not in GIVEN_IN_ORDER)
            assert "eq=False" in flags or not arrays


def test_functions_fit_on_a_screen() -> None:
    """At most forty lines, the signature and the docstring included."""
    long = [
        f"{file.name}:{node.lineno} {node.name}"
        for file, node in _nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 40
    ]
    assert not long


def test_nothing_imports_the_command_line() -> None:
    assert not [file for file in PACKAGE.rglob("*.py") if "bigr_repr_cli" in file.read_text()]


HEAVY = ("torch", "faiss", "sklearn", "timm", "pyarrow", "pandas", "accelerate", "fastapi")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import bigr_repr", HEAVY),
        ("import bigr_repr_cli.main", HEAVY),
        pytest.param(
            "import bigr_repr.evaluate, bigr_repr.train.run, bigr_repr.sampling, bigr_repr.embed",
            ("faiss",),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_imports_leave_heavy_libraries_alone(code: str, heavy: tuple[str, ...]) -> None:
    check = f"import sys; {code}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "most"), [(["-c", "import bigr_repr"], 0.5), (["-m", "bigr_repr_cli", "--help"], 3.0)]
)
def test_answers_at_once(command: list[str], most: float) -> None:
    """In less than so many times what importing typer and rich takes: 0.15 s on two idle cores of an AMD EPYC."""

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, one after the other: other work slows both of a pair down alike.
    libraries = ["-c", "import typer.rich_utils, rich.markdown, rich.progress"]
    assert median(seconds(*command) / seconds(*libraries) for _ in range(9)) < most


@pytest.mark.slow
def test_every_benchmark_imports() -> None:
    """They are run by hand and far between: what they take from the package must still be there."""
    folder = PACKAGE.parent / "benchmarks"
    names = sorted(file.stem for file in folder.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
