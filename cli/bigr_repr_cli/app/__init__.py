"""`bigr-repr app`: the drawing commands on a page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.draw.sampling import load_for_sampling
from bigr_repr_cli.options import Compile, Computed, Device, Model, Precision

MISSING = "the page needs Gradio; install it with: pip install 'bigr-repr[app]'"


def command(
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder in which every picture is kept.")] = Path("drawn"),
    device: Device = "auto",
    precision: Precision = Computed.float32,
    compile: Compile = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on, ::1 too; 0.0.0.0 lets every machine of the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="BIGR_REPR_PASSWORD",
            show_envvar=True,
            help=r"Ask for this password before anything else; any user name is accepted \[default: none].",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help=r"Refuse photographs of more pixels than this \[default: 50,000,000].")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Paint with the mouse: inpaint, outpaint, enrich, generate and interpolate on a page in the browser.

    The page is served from this machine and sends nothing anywhere. Ctrl-C ends it.
    """
    try:
        from bigr_repr_cli.app.server import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError(MISSING) from error
    from bigr_repr_cli.app.studio import Studio

    pre = load_for_sampling(model, device, precision, compile)
    studio = Studio(pre, out) if max_pixels is None else Studio(pre, out, max_pixels=max_pixels)
    serve(studio, host, port, browser=browser, password=password)
