"""Pages of the site that are made from the code when the site is built, so they cannot drift from it.

The command reference comes from the typer parser, the API reference from the packages' `__all__`, the import diagram
from the source, and the examples from examples/. README.md and its neighbors become pages too, and a link from any page
to a file of the repository leads to a copy of that file.
"""

from __future__ import annotations

import ast
import importlib
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from imports import drawing, parts
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Pages that stay at the root of the repository, where people look for them.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks/commands.md",
    "examples/README.md": "examples/photographs.md",
}
API_PACKAGES = [
    "config",
    "checkpoints",
    "models",
    "images",
    "captions",
    "datasets",
    "features",
    "embed",
    "retrieval",
    "sampling",
    "painting",
    "evaluate",
    "train",
    "serve",
    "integrations",
]
API_MODULES = ["codes"]
FENCES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def command_pages() -> dict[str, str]:
    """The command reference: one page per command of the first level, as `typer utils docs` writes it."""
    tool = [sys.executable, "-m", "typer", "bigr_repr_cli.main", "utils", "docs", "--name", "bigr-repr"]
    text = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    head, *sections = re.split(r"^## (?=`bigr-repr )", text, flags=re.MULTILINE)
    pages: dict[str, str] = {}
    for section in sections:
        title = section.partition("\n")[0].strip("`").split()
        name = f"commands/bigr-repr-{title[1]}.md"
        pages[name] = pages[name] + f"\n## {section}" if name in pages else f"# {section}"
    found = [(name, page.partition("\n")[2].strip().partition("\n")[0]) for name, page in pages.items()]
    listed = "".join(
        f"| [`bigr-repr {Path(name).stem.removeprefix('bigr-repr-')}`]({Path(name).name}) | {first} |\n"
        for name, first in found
    )
    general = head.partition("\n")[2].partition("**Commands**")[0]
    return {"commands/index.md": f"# Commands\n{general}\n| command | |\n|---|---|\n{listed}", **pages}


def api_pages() -> dict[str, str]:
    """The API reference: a page for the names of `bigr_repr`, and one for each package and public module."""
    pages = {"api/bigr_repr.md": _names("bigr_repr")}
    pages |= {f"api/{name}.md": _names(f"bigr_repr.{name}") for name in API_PACKAGES}
    pages |= {
        f"api/{name}.md": f"# bigr_repr.{name}\n\n::: bigr_repr.{name}\n    options:\n      show_root_heading: false\n"
        for name in API_MODULES
    }
    return pages


def _names(package: str) -> str:
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if not name.startswith("__")]
    summary = (module.__doc__ or "").strip()
    return f"# {package}\n\n{summary}\n\n" + "".join(f"::: {package}.{name}\n\n" for name in names)


def example_pages() -> dict[str, str]:
    """The scripts of examples/, each with the docstring as its text."""
    pages = {}
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text()
        text = ast.get_docstring(ast.parse(source)) or ""
        code = source.split('"""', 2)[2].strip()
        title, _, rest = text.partition("\n")
        pages[f"examples/{file.stem}.md"] = (
            f'# {title.rstrip(".")}\n\n{rest.strip()}\n\n```python title="examples/{file.name}"\n{code}\n```\n'
        )
    return pages


def _target(link: str, source: str) -> tuple[str, str]:
    """What a link of a file means: the path in the repository, and the address within the site."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if path in ROOT_PAGES:
        return path, ROOT_PAGES[path]
    if path.startswith("docs/"):
        return path, path.removeprefix("docs/")
    name = Path(path)
    if name.parent.name == "examples" and name.suffix == ".py":
        return path, f"examples/{name.stem}.md"
    return path, f"repository/{path}.md" if name.suffix in FENCES or not name.suffix else f"repository/{path}"


def _source_of(page: str) -> str:
    return next((file for file, uri in ROOT_PAGES.items() if uri == page), f"docs/{page}")


def _with_site_links(text: str, page: str) -> str:
    """The text of a page, its links to files of the repository turned into links within the site."""
    source, here = _source_of(page), posixpath.dirname(page) or "."
    return LINK.sub(lambda match: posixpath.relpath(_target(match[1], source)[1], here), text)


def _repository_files(pages: dict[str, str]) -> dict[str, str | bytes]:
    """Copies of the files that pages link to: pictures as they are, source as a page."""
    copies: dict[str, str | bytes] = {}
    for source, text in pages.items():
        for link in LINK.findall(text):
            path, uri = _target(link, source)
            if not uri.startswith("repository/") or not (ROOT / path).is_file():
                continue  # a link to nothing: mkdocs says so
            if uri.endswith(".md"):
                fence = FENCES.get(Path(path).suffix, "text")
                copies[uri] = f"# {path}\n\n```{fence}\n{(ROOT / path).read_text().rstrip()}\n```\n"
            else:
                copies[uri] = (ROOT / path).read_bytes()
    return copies


def on_config(config: Any) -> Any:
    """Complete the navigation with the pages that are made here."""
    made = {"Commands": command_pages(), "API": api_pages(), "Examples": example_pages()}
    for entry in config.nav:
        for title, pages in made.items():
            if title in entry:
                entry[title] = [*(entry[title] or []), *pages]
    config.extra["made"] = {uri: text for pages in made.values() for uri, text in pages.items()}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here, and the files that pages link to."""
    texts = {file: (ROOT / file).read_text() for file in ROOT_PAGES}
    made: dict[str, str | bytes] = dict(config.extra.pop("made"))
    made |= {uri: texts[file] for file, uri in ROOT_PAGES.items()}
    texts |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    made |= _repository_files(texts)
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Resolve links to the repository, and draw the import diagram where a page asks for it."""
    uri = page.file.src_uri
    if uri.startswith(("commands/", "api/", "repository/")) or (
        uri.startswith("examples/") and uri not in ROOT_PAGES.values()
    ):
        return markdown
    markdown = _with_site_links(markdown, uri)
    if uri == "design.md":
        markdown = markdown.replace("<!-- import diagram -->", drawing(parts(ROOT / "bigr_repr")))
    return markdown
