"""`bigr-repr app`: pages in the browser to draw, search and look inside."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.draw.sampling import load_for_sampling
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Compile, Computed, Device, Model, Precision

MISSING = "the page needs FastAPI and uvicorn; install them with: pip install 'bigr-repr[app]'"


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Where the pages are served, and to whom."""

    host: Annotated[
        str, typer.Option(help="Address to listen on, ::1 too; 0.0.0.0 lets every machine of the network in.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 7860
    password: Annotated[
        str | None,
        typer.Option(
            envvar="BIGR_REPR_PASSWORD",
            show_envvar=True,
            help=r"Password that the page asks for first; any user name is accepted \[default: none].",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name of this page, such as a proxy's. May be repeated."),
    ] = None
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True


@dataclass(frozen=True, kw_only=True)
class OpenedOptions:
    """What the pages work on."""

    out: Annotated[Path, typer.Option(help="Folder in which every picture is kept.")] = Path("drawn")
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help=r"Refuse photographs of more pixels than this \[default: 50,000,000].")
    ] = None
    search: Annotated[
        Path | None,
        typer.Option(help=r"Index folder, or folder of pictures, to search \[default: chosen on the page]."),
    ] = None
    images: Annotated[
        Path | None, typer.Option(help=r"Folder of an index's pictures \[default: the current folder].")
    ] = None


@flattened
def command(
    *,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    precision: Precision = Computed.float32,
    compile: Compile = False,
    opened: OpenedOptions,
    page: PageOptions,
) -> None:
    """Draw, search and look inside the model on pages in the browser.

    Draw: inpaint, outpaint, enrich, generate and interpolate with the mouse or the keyboard. Search: an index, or any
    folder of pictures. Look inside: what the tokens of a picture contain, and how one is unmasked. The pages are served
    from this machine and send nothing elsewhere. Press Ctrl-C to stop.
    """
    if opened.images is not None and opened.search is None:
        raise typer.BadParameter(
            f"{opened.images} is of no use without an index; name it: --search INDEX", param_hint="--images"
        )
    try:
        from bigr_repr_cli.app.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ImportError(MISSING) from error
    from bigr_repr_cli.app.studio import MAX_PIXELS, Studio

    pre = load_for_sampling(model, device, precision, compile)
    rounded = precision not in (Computed.float32, Computed.fp32)
    exact = partial(load_for_sampling, model, device, Computed.float32, False) if rounded else None
    studio = Studio(pre, opened.out, max_pixels=opened.max_pixels or MAX_PIXELS, load_exact=exact)
    serve(
        studio, page.host, page.port, browser=page.browser, password=page.password, search=opened.search,
        images=opened.images, allow_hosts=tuple(page.allow_host or ()),
    )  # fmt: skip
