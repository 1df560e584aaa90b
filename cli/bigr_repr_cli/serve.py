"""`bigr-repr serve`: embeddings, codes and search over HTTP, and a search page."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Device, Model, Searching

if TYPE_CHECKING:
    from bigr_repr.serve.settings import Limits

MISSING = "serving needs FastAPI and uvicorn; install them with: pip install 'bigr-repr[serve]'"


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach requires a token.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000
    token_file: Annotated[Path | None, typer.Option(help="File with the token that clients must send.")] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name by which clients may address this server. May be repeated."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Limits on what the server accepts."""

    max_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request, in megabytes.")] = 16
    max_pixels: Annotated[int, typer.Option(min=1, help="Maximum size of a picture, in pixels.")] = 50_000_000
    max_images: Annotated[int, typer.Option(min=1, help="Maximum number of pictures per request.")] = 32
    max_requests: Annotated[
        int, typer.Option(min=1, help="Maximum number of concurrent requests; others are told to try again.")
    ] = 256
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per batch of the network.")] = 32
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit per request, in seconds.")] = 30.0

    def limits(self) -> Limits:
        """The library's equivalent.  Raises BadParameter for a time that is no number of seconds."""
        from bigr_repr.serve.settings import LONGEST_SECONDS, Limits

        if not self.timeout <= LONGEST_SECONDS:
            raise typer.BadParameter(
                f"{self.timeout} is not at most {LONGEST_SECONDS}; give a time in seconds", param_hint="--timeout"
            )
        return Limits(
            body_bytes=self.max_body << 20, pixels=self.max_pixels, images=self.max_images,
            requests=self.max_requests, batch=self.batch_size, seconds=self.timeout,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchedOptions:
    """What to search, and where its pictures are."""

    index: Annotated[
        str | None,
        typer.Option(
            help="Index folder to search, or a store that it was pushed to (lancedb:DIR, milvus:URI); may be "
            r"replaced while the server runs \[default: none]."
        ),
    ] = None
    name: Annotated[str, typer.Option(help="Name of the index in a store.")] = "images"
    processes: Searching = 1
    images: Annotated[
        Path | None,
        typer.Option(help=r"Folder, tar or Parquet file that was embedded \[default: the current folder]."),
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(help=r"Column of that Parquet file with encoded images \[default: as it was embedded]."),
    ] = None

    def check(self) -> None:
        """Raise BadParameter for options that do not fit the index or belong to one and none is given."""
        from bigr_repr_cli.search.report import check_place

        if self.index is not None:
            check_place(self.index, self.name, self.processes)
            return
        usual = SearchedOptions()
        for option in ("name", "processes", "images", "image_column"):
            if getattr(self, option) != getattr(usual, option):
                raise typer.BadParameter(
                    "applies only to an index; name one with --index, or leave it out",
                    param_hint=f"--{option.replace('_', '-')}",
                )


@flattened
def command(
    *,
    searched: SearchedOptions,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    listen: ListenOptions,
    most: LimitOptions,
) -> None:
    """Serve embeddings, codes and search over HTTP, with a search page at /.

    The server accepts connections from this machine only, unless you give --host. Press Ctrl-C to finish current
    requests and stop.
    """
    try:
        from bigr_repr.serve import Access, Service, create_app, read_token, run_server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ImportError(MISSING) from error
    from bigr_repr.features.exported.model import open_model

    searched.check()
    token = None if listen.token_file is None else read_token(listen.token_file)
    access = Access(host=listen.host, token=token, allowed_hosts=tuple(listen.allow_host or ()))
    limits = most.limits()
    service = Service(
        open_model(model), index=searched.index, name=searched.name, images=searched.images,
        image_column=searched.image_column, processes=searched.processes, device=device, limits=limits,
    )  # fmt: skip
    what = service.pre.config.name + (
        "" if searched.index is None else f" and {service.rows:,} rows of {searched.index}"
    )
    with closing(service):
        run_server(
            create_app(service, access), access, service.limits, listen.port,
            begun=lambda url: typer.echo(f"{what} at {url}; press Ctrl-C to stop", err=True),
        )  # fmt: skip
