"""Option values that several commands take. Knows nothing of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from bigr_repr.retrieval import Region, TokenLayout


def parse_layers(values: list[str]) -> list[int | str]:
    """Layers out of options such as "12", "-1", "mid" and "4,8,12". Raises BadParameter for anything else."""
    layers: list[int | str] = []
    for part in ",".join(values).split(","):
        text = part.strip()
        if text != "mid" and not text.removeprefix("-").isdecimal():
            raise typer.BadParameter(f'{text!r} is neither a whole number nor "mid"', param_hint="--layer")
        layers.append("mid" if text == "mid" else int(text))
    return layers


def parse_region(value: str, layout: TokenLayout | None) -> Region:
    """A region out of "2,2,4,4" (tokens) or "0.25,0.25,0.5,0.5" (shares of the side). Raises BadParameter.

    Raises ValueError for an index without tokenizer codes.
    """
    from bigr_repr.retrieval import Region

    parts = value.split(",")
    shares = any("." in part for part in parts)
    try:
        x, y, w, h = (float(part) if shares else int(part) for part in parts)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not x,y,w,h, as 2,2,4,4", param_hint="--region") from None
    if layout is None:
        raise ValueError("this index holds no tokenizer codes, which regions need; embed with --codes, build again")
    return Region.of_fractions(x, y, w, h, layout) if shares else Region(x=int(x), y=int(y), w=int(w), h=int(h))
