"""The outside of the package: its public names, which module may import which, and how fast it answers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import bigr_repr

PACKAGE = Path(bigr_repr.__file__).parent

PUBLIC = [
    "BiGR",
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
    "edit",
    "edit_photo",
    "embed_images",
    "encode_codes",
    "enrich",
    "enrich_photo",
    "extract_features",
    "generate",
    "inpaint",
    "inpaint_photo",
    "interpolate",
    "load",
    "load_official",
    "outpaint",
    "outpaint_photo",
    "preset",
    "read_embeddings",
    "save",
]

# What is not in `bigr_repr` itself, and is found without knowing the modules of a part.
BEGINNINGS = [
    "embed.export",
    "evaluate.bench",
    "evaluate.bench_generation",
    "evaluate.bench_retrieval",
    "evaluate.generation_quality",
    "evaluate.knn",
    "evaluate.label_retrieval",
    "evaluate.linear_probe",
    "evaluate.open_data",
    "evaluate.run_suite",
    "evaluate.write_reports",
    "retrieval.build_index",
    "retrieval.fit_binariser",
    "sampling.sample_codes",
]

# Each part of the package and the parts it may import. Data flows one way: nothing may import a part that uses it.
COMMON = {"_typing"}  # what all may import
ALLOWED = {
    "_typing": set(),
    "config": set(),
    "codes": set(),
    "images": set(),
    "models": {"config"},
    "datasets": {"images"},
    "checkpoints": {"config", "images", "models"},
    "extractor": {"config", "codes", "models", "checkpoints"},
    "features": {"config", "codes", "images", "checkpoints", "extractor"},
    "embed": {"config", "codes", "images", "checkpoints", "extractor"},
    "retrieval": {"config", "codes", "images", "checkpoints", "extractor", "features", "embed"},
    "sampling": {"config", "codes", "models", "checkpoints", "images"},
    "evaluate": {"codes", "images", "datasets", "models", "checkpoints", "extractor", "features", "embed", "retrieval"},
    "train": {"config", "codes", "images", "datasets", "models", "checkpoints", "sampling"},
}
# Private modules belong to the part that they were split from.
PART_OF = {
    "_ahead": "images",
    "_architecture": "checkpoints",
    "_class_names": "images",
    "_differences": "config",
    "_durable": "images",
    "_objects": "images",
    "_guard": "images",
    "_open": "images",
    "_paths": "images",
    "_pixels": "features",
    "_placement": "checkpoints",
    "_processes": "images",
    "_weights": "checkpoints",
    "catalog": "checkpoints",
    "released": "checkpoints",
}


def _part(module: str) -> str:
    name = module.split(".")[1]
    return PART_OF.get(name, name)


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bigr_repr"):
            found |= {
                f"{node.module}.{alias.name}" if node.module == "bigr_repr" else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("bigr_repr")}
    return found


def test_public_names_are_pinned() -> None:
    assert sorted(bigr_repr.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    assert (getattr(bigr_repr, name).__doc__ or "").strip()


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="extract_features"):
        bigr_repr.extract_feature  # noqa: B018


@pytest.mark.parametrize("name", BEGINNINGS)
def test_packages_hand_out_what_one_begins_with(name: str) -> None:
    part, function = name.split(".")
    package = importlib.import_module(f"bigr_repr.{part}")
    assert function in package.__all__
    assert callable(getattr(package, function))  # and no module of that name
    assert (getattr(package, function).__doc__ or "").strip()


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


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_what_a_page_links_to_is_in_the_repository(page: str) -> None:
    root = PACKAGE.parent
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if len(listed) < 2:
        pytest.skip("not a git repository")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (root / page).read_text())
    files = [((root / page).parent / link).resolve().relative_to(root.resolve()) for link in links]
    assert not [str(file) for file in files if not any(f"{each}/".startswith(f"{file}/") for each in listed)]


def test_imports_point_downward_only() -> None:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent == PACKAGE and file.name == "__init__.py":
            continue
        relative = file.relative_to(PACKAGE.parent).with_suffix("")
        part = _part(".".join(relative.parts))
        for module in _imports(file):
            target = _part(module) if "." in module else "the package itself"
            if target not in ALLOWED[part] | COMMON | {part} and module != "bigr_repr.__version__":
                wrong.append(f"{'.'.join(relative.parts)} imports {module}")
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    assert not [file for file in PACKAGE.rglob("*.py") if "bigr_repr_cli" in file.read_text()]


HEAVY = ("torch", "faiss", "sklearn", "timm", "pyarrow", "pandas", "accelerate")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import bigr_repr", HEAVY),
        ("import bigr_repr_cli.main", HEAVY),
        ("import bigr_repr.evaluate, bigr_repr.train.run, bigr_repr.sampling, bigr_repr.embed", ("faiss",)),
    ],
)
def test_imports_leave_heavy_libraries_alone(code: str, heavy: tuple[str, ...]) -> None:
    check = f"import sys; {code}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["-c", "import bigr_repr"], ["-m", "bigr_repr_cli", "--help"]])
def test_answers_at_once(command: list[str]) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, and the best of several: other work on the machine does not count.
    assert min(seconds() for _ in range(5)) < 0.5


def test_every_benchmark_imports() -> None:
    """They are run by hand and far between: what they take from the package must still be there."""
    folder = PACKAGE.parent / "benchmarks"
    names = sorted(file.stem for file in folder.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
