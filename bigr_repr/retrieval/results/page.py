"""A search as one self-contained HTML file: photographs, decoded codes, and where the bits differ. Knows no index.

No script, no font, no link: the page reads the same from a mail attachment in ten years. Its three views are radio
buttons and style rules.
"""

# h w token grid

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.results.views import HitView, SearchView
from bigr_repr.system.files import replacing

__all__ = ["save_page", "search_page"]

_STYLE: Final = """
:root { --paper: #f6f4ef; --card: #fffdf9; --ink: #23211d; --soft: #7a756b; --line: #e3ded3; --accent: #b4532a;
  --bar: #e9e3d7; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --paper: #171614; --card: #211f1c; --ink: #ece7dd; --soft: #9b9488;
  --line: #35322d; --accent: #e58a5b; --bar: #35322d } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; padding: 40px 24px 64px }
main { max-width: 1240px; margin: auto }
header { display: flex; flex-wrap: wrap; gap: 12px 32px; align-items: flex-end; justify-content: space-between;
  margin-bottom: 28px }
h1 { font: 600 27px/1.2 ui-serif, Georgia, serif; letter-spacing: -.01em; overflow-wrap: anywhere }
header p, .note { color: var(--soft) }
input[type=radio] { position: absolute; opacity: 0 }
nav { display: flex; border: 1px solid var(--line); border-radius: 999px; overflow: hidden; background: var(--card) }
nav label { padding: 6px 16px; cursor: pointer; font-size: 14px; color: var(--soft); white-space: nowrap }
#photo:checked ~ main label[for=photo], #decoded:checked ~ main label[for=decoded],
#bits:checked ~ main label[for=bits] { background: var(--accent); color: #fff }
#photo:focus-visible ~ main label[for=photo], #decoded:focus-visible ~ main label[for=decoded],
#bits:focus-visible ~ main label[for=bits] { outline: 2px solid var(--ink); outline-offset: -3px }
section { margin-bottom: 56px }
.results { display: grid; grid-template-columns: 280px 1fr; gap: 32px; align-items: start }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 20px }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden }
.query { position: sticky; top: 24px; border-color: var(--accent); border-width: 2px }
.frame { position: relative; aspect-ratio: 1; background: var(--bar) }
.frame > * { position: absolute; inset: 0; width: 100%; height: 100%; display: none; object-fit: cover }
.decoded, .bits, .under { image-rendering: pixelated }
.missing { place-items: center; text-align: center; padding: 16px; color: var(--soft); font-size: 13px }
#photo:checked ~ main .photo, #decoded:checked ~ main .decoded, #bits:checked ~ main .bits,
#bits:checked ~ main .under, .frame > .region { display: block }
#photo:checked ~ main .missing.photo, #decoded:checked ~ main .missing.decoded,
#bits:checked ~ main .missing.bits { display: grid }
.under { filter: grayscale(1) contrast(.6) brightness(1.3) }
.region { inset: auto; border: 2px solid var(--accent); box-shadow: 0 0 0 1px #fff8; border-radius: 3px }
figcaption { padding: 10px 12px 12px; font-size: 13px }
.id { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; direction: rtl;
  text-align: left }
.id bdi { direction: ltr }
.query .id { white-space: normal; overflow-wrap: anywhere; direction: ltr }
.numbers { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: 8px; color: var(--soft);
  font-variant-numeric: tabular-nums }
.bar { height: 4px; border-radius: 2px; background: var(--bar); margin-top: 8px; overflow: hidden }
.bar i { display: block; height: 100%; background: var(--accent) }
@media (max-width: 760px) { body { padding: 24px 16px } .results { grid-template-columns: 1fr }
  .query { position: static } }
"""
_VIEWS: Final = (("photo", "Photographs"), ("decoded", "Decoded from bits"), ("bits", "Where bits differ"))


def search_page(views: Sequence[SearchView]) -> str:
    """The page of one query or several, nearest hits first. Raises ValueError for none."""
    if not views:
        raise ValueError("no search to show")
    decodable = any(view.decoded for view in views)
    shown = _VIEWS if decodable else _VIEWS[:1]
    start = "photo" if any(view.photo or any(hit.photo for hit in view.hits) for view in views) else shown[-1][0]
    radios = "".join(
        f'<input type="radio" name="view" id="{key}"{" checked" if key == start else ""}>' for key, _ in shown
    )
    labels = "".join(f'<label for="{key}">{text}</label>' for key, text in shown)
    title = views[0].name if len(views) == 1 else f"{len(views)} searches"
    buttons = f"<nav>{labels}</nav>" if decodable else ""
    first = views[0]
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)} · search</title><style>{_STYLE}</style>\n"
        f"{radios}<main><header><div><h1>{html.escape(title)}</h1>"
        f"<p>{_found(first)}</p></div>{buttons}</header>\n"
        + "\n".join(_section(view) for view in views)
        + "\n</main></html>\n"
    )


def save_page(views: Sequence[SearchView], path: PathLike) -> None:
    """Write search_page(views) to a file, whole or not at all.  Raises OSError."""
    text = search_page(views)
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _found(view: SearchView) -> str:
    how = "cosine distance of features" if not view.n_bits else f"{view.n_bits:,} bits compared"
    where = " inside the region" if view.region else ""
    return f"the nearest of {view.rows:,} images by {html.escape(view.origin)} · {how}{where}"


def _section(view: SearchView) -> str:
    query = (
        f'<figure class="query"><div class="frame">{_pictures(view.photo, view.decoded, None, view)}</div>'
        f'<figcaption><div class="note">the query</div><div class="id"><bdi>{html.escape(view.name)}</bdi></div>'
        "</figcaption></figure>"
    )
    hits = "".join(_hit(hit, view) for hit in view.hits)
    return f'<section class="results">{query}<div class="hits">{hits}</div></section>'


def _hit(hit: HitView, view: SearchView) -> str:
    heat = None if hit.differing is None else _heat(hit, view)
    name = html.escape(hit.id)
    if view.n_bits:
        # Half of the bits differ between codes that have nothing to do with each other: there the bar is empty.
        same = 100 * (1 - hit.distance / view.n_bits)
        numbers = f"<span>{hit.distance:,.0f} bits</span><span>{same:.1f} % same</span>"
        alike = 1 - 2 * hit.distance / view.n_bits
    else:
        numbers, alike = f"<span>cosine distance</span><span>{hit.distance:.3f}</span>", 1 - hit.distance
    return (
        f'<figure><div class="frame">{_pictures(hit.photo, hit.decoded, heat, view)}</div>'
        f'<figcaption><div class="id" title="{name}"><bdi>{name}</bdi></div><div class="numbers">{numbers}</div>'
        f'<div class="bar"><i style="width:{100 * min(1, max(0, alike)):.1f}%"></i></div></figcaption></figure>'
    )


def _pictures(photo: Image.Image | None, decoded: Image.Image | None, heat: str | None, view: SearchView) -> str:
    parts = [
        f'<img class="photo" alt="" src="{_jpeg(photo)}">'
        if photo
        else '<span class="photo missing">the photograph is not at hand</span>'
    ]
    if decoded:
        source = _png(decoded)
        parts.append(f'<img class="decoded" alt="" src="{source}"><img class="under" alt="" src="{source}">')
    else:
        parts.append('<span class="decoded missing">no code to decode</span>')
    if heat:
        parts.append(f'<img class="bits" alt="" src="{heat}">')
    if view.region:
        x, y, w, h = (100 * value for value in view.region)
        parts.append(f'<i class="region" style="left:{x:g}%;top:{y:g}%;width:{w:g}%;height:{h:g}%"></i>')
    return "".join(parts)


def _heat(hit: HitView, view: SearchView) -> str:
    """A picture of h x w pixels: the redder, the more of a token's bits differ; half of them is as red as it gets."""
    assert hit.differing is not None
    share = np.clip(2 * hit.differing / max(1, view.bits_per_token), 0, 1)[..., None]
    red = np.broadcast_to(np.array([222, 60, 20, 0]), (*hit.differing.shape, 4))
    return _png(Image.fromarray((red + share * np.array([0, 0, 0, 225])).round().astype(np.uint8), "RGBA"))


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
