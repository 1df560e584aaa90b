"""`bigr-repr index`: build, info and push."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Indexes of binary codes: build one of an embedding data set, look at it.")
Kind = StrEnum("Kind", ["flat", "ivf", "hnsw", "hash"])
Codes = StrEnum("Codes", ["bits", "sign", "median", "pca", "rotation", "itq"])
Kept = StrEnum("Kept", ["float16", "float32", "none"])


@app.command()
def build(
    embeddings: Annotated[str, typer.Argument(help="A folder or URL that bigr-repr embed wrote to.")],
    out: Annotated[Path, typer.Option(help="Folder for the index; an index there is replaced.")] = Path("index"),
    codes: Annotated[
        Codes, typer.Option(help="bits: the tokenizer's own (embed --codes); else how features become bits.")
    ] = Codes.sign,
    n_bits: Annotated[int | None, typer.Option("--bits", min=1, help="Bits of a code, for pca, rotation, itq.")] = None,
    layer: Annotated[int | None, typer.Option(help="Whose vectors, if EMBEDDINGS has several layers.")] = None,
    kind: Annotated[Kind, typer.Option(help="flat is exact; the others are faster from about a million images.")] = (
        Kind.flat
    ),
    effort: Annotated[
        int | None, typer.Option(min=0, help="Of a search; by default the least with --target-recall.")
    ] = None,
    target_recall: Annotated[float, typer.Option(min=0.01, max=1, help="Recall@10 that effort is chosen for.")] = 0.95,
    lists: Annotated[int | None, typer.Option(min=1, help="ivf: lists; by default twice the root of the rows.")] = None,
    links: Annotated[int, typer.Option(min=2, help="hnsw: links of a node.")] = 16,
    build_effort: Annotated[int, typer.Option(min=1, help="hnsw: codes in view while a node is linked.")] = 80,
    hash_bits: Annotated[int | None, typer.Option(min=1, help="hash: bits of a key.")] = None,
    tables: Annotated[int, typer.Option(min=1, help="hash: tables; 1 for a single hash.")] = 4,
    vectors: Annotated[Kept, typer.Option(help="What to keep the vectors as, for --rescore.")] = Kept.float16,
    seed: Annotated[int, typer.Option(help="Of fits, clusterings and samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Build an index of an embedding data set, in chunks: its vectors need not fit into memory.

    An approximate index is measured against exact search before it is written.
    """
    from bigr_repr.retrieval import IndexSettings, build_index
    from bigr_repr_cli.index_report import print_index
    from bigr_repr_cli.progress import counting_progress

    settings = IndexSettings(
        kind=kind, effort=effort, target_recall=target_recall, lists=lists, links=links, build_effort=build_effort,
        hash_bits=hash_bits, tables=tables, seed=seed,
    )  # fmt: skip
    with counting_progress("indexing") as on_progress:
        built = build_index(
            embeddings, out, binariser=codes, n_bits=n_bits, layer=layer, kind=settings,
            vectors=None if vectors == Kept.none else vectors, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    print_index(built, out, as_json=as_json)


@app.command()
def info(
    index: Annotated[Path, typer.Argument(help="Index folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all files and check them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Show an index: size, kind, origin, what can be searched, and its self-check."""
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr_cli.index_report import print_index

    print_index(HammingIndex.load(index, memory_map=not verify), index, as_json=as_json)
    if verify and not as_json:
        typer.echo("all files are as they were written")


@app.command()
def push(
    index: Annotated[Path, typer.Argument(help="Index folder.")],
    to: Annotated[str, typer.Option(help="lancedb:DIR (also s3://…), or milvus:URI (a server, or a file *.db).")],
    name: Annotated[str, typer.Option(help="Of the index there; one with this name is replaced.")] = "images",
    kind: Annotated[str, typer.Option(help="flat is exact; ivf searches lists.")] = "flat",
) -> None:
    """Copy an index's codes to a store, to be searched from there by the same command."""
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.stores import push as push_index

    pushed = push_index(HammingIndex.load(index), to, name, kind=kind)
    typer.echo(f"{len(pushed):,} codes of {pushed.n_bits:,} bits: {to}, {name}")
    typer.echo(f"search them with: bigr-repr search IMAGE --index {to}{'' if name == 'images' else f' --name {name}'}")
