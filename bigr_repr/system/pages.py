"""Self-contained HTML pages: Jinja templates, one style, files embedded as data URLs. Knows nothing of the content.

A result page loads nothing and runs no script, so that it still looks the same as a mail attachment years later.
Templates extend `page.html`, which provides the shared style, and fill its blocks `title`, `style` and `body`. Every
value is escaped.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL import Image

__all__ = ["TOKENS", "data_url", "picture_url", "render"]

TOKENS: Final = Path(__file__).with_name("tokens.css")  # color, type and spacing


def render(template: Path, *more: Path, **values: Any) -> str:
    """The page rendered from a template file and values. more: additional folders of templates that it extends.

    Raises jinja2.UndefinedError for a name that the template uses but values lack.
    """
    return _environment((template.parent, *more)).get_template(template.name).render(values)


def data_url(data: bytes, media_type: str) -> str:
    """A file as a URL that contains its content, such as "data:image/png;base64,…"."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def picture_url(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    """A picture as a URL that contains it. form: "PNG", "JPEG" or "WEBP"; options: of Pillow's writer for it."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return data_url(file.getvalue(), f"image/{form.lower()}")


@cache
def _environment(folders: tuple[Path, ...]) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([*folders, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
