"""`bigr-repr index`: build, info, update, remove and push."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.options import Bits, CodeKind, Codes, Engine, Json, RayAddress, StoredLayer
from bigr_repr_cli.parse import parse_duration, stored_layer

app = typer.Typer(
    no_args_is_help=True,
    help="Build, inspect, update and copy indexes of binary codes.",
)
IndexKind = StrEnum("IndexKind", ["flat", "ivf", "hnsw", "hash"])
StoredVectors = StrEnum("StoredVectors", ["float16", "float32", "none"])
StoreKind = StrEnum("StoreKind", ["flat", "ivf"])


Index = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder written by bigr-repr index build.")]


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What kind of index to build: the fields of IndexSettings."""

    kind: Annotated[
        IndexKind,
        typer.Option(
            help="flat: exact search; ivf (lists of similar codes), hnsw (a graph) and hash (tables): "
            "approximate, and faster from about a million images."
        ),
    ] = IndexKind.flat
    effort: Annotated[
        int | None,
        typer.Option(
            "--effort",
            "--nprobe",
            "--efSearch",
            min=0,
            help="Search effort. ivf: lists searched; hnsw: size of the candidate list; hash: bits of a key that "
            "may differ "
            r"\[default: the smallest that reaches --target-recall].",
        ),
    ] = None
    target_recall: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Share of the 10 nearest codes that a search with default effort should find."
        ),
    ] = 0.95
    lists: Annotated[
        int | None,
        typer.Option(
            "--lists",
            "--nlist",
            min=1,
            help="ivf: number of lists "
            r"\[default: twice the square root of the number of codes, fewer if codes are long].",
        ),
    ] = None
    links: Annotated[int, typer.Option("--links", "--M", min=2, help="hnsw: links per code.")] = 16
    build_effort: Annotated[
        int,
        typer.Option(
            "--build-effort",
            "--efConstruction",
            min=1,
            help="hnsw: size of the candidate list during the build; larger is better but slower.",
        ),
    ] = 80
    hash_bits: Annotated[
        int | None,
        typer.Option(min=1, help=r"hash: bits of a table's key \[default: about one code per key]."),
    ] = None
    tables: Annotated[int, typer.Option(min=1, help="hash: number of tables, each with its own key.")] = 4
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**31 - 1, help="Random seed for the fit of binarizers and lists, and for its sample."),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """What to store for each image, and how to make its code."""

    vectors: Annotated[
        StoredVectors,
        typer.Option(help="Number type of stored vectors, for search --rescore; none: do not store them."),
    ] = StoredVectors.float16
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Column of the data set to keep, for search --where. May be repeated; label is always kept."),
    ] = None
    like: Annotated[
        Path | None,
        typer.Option(
            help=r"Index whose binarizer to reuse, so that both can be merged and share queries \[default: fit one "
            "on this data set]."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How many shards to build, and how many at a time."""

    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Split one data set, by whole files, into this many shards that are searched as one index; "
            r"existing shards are not rebuilt \[default: no shards].",
        ),
    ] = None
    processes: Annotated[int, typer.Option(min=1, help="Shards to build at the same time.")] = 1
    engine: Annotated[
        Engine,
        typer.Option(
            help="Where to build shards. local: processes on this machine; ray: all cores of a Ray cluster, whose "
            "machines must be able to access EMBEDDINGS and OUT."
        ),
    ] = Engine.local
    ray_address: RayAddress = None


@app.command()
@flattened
def build(
    embeddings: Annotated[
        list[str],
        typer.Argument(
            metavar="EMBEDDINGS...", help="Folders or URLs written by bigr-repr embed with the same settings."
        ),
    ],
    kind: IndexOptions,
    rows: KeepOptions,
    cut: ShardOptions,
    out: Annotated[Path, typer.Option(help="Folder to write the index into; an index there is replaced.")] = Path(
        "index"
    ),
    codes: CodeKind = Codes.sign,
    n_bits: Bits = None,
    layer: StoredLayer = None,
    as_json: Json = False,
) -> None:
    """Build an index from embedding data sets, in chunks: their vectors need not fit into memory.

    An approximate index is compared with exact search before it is written.
    """
    from bigr_repr.retrieval import IndexSettings, build_index
    from bigr_repr_cli.progress import counting_progress
    from bigr_repr_cli.search.index_report import print_index, warn_of_missed_target

    settings = IndexSettings(**values_of(kind))
    _check(kind, rows, cut, codes, n_bits)
    how: dict[str, Any] = {
        "binarizer": codes if rows.like is None else _binarizer_of(rows.like), "n_bits": n_bits,
        "layer": stored_layer(layer), "kind": settings, "seed": settings.seed, "keep": rows.keep or (),
        "vectors": None if rows.vectors == StoredVectors.none else rows.vectors,
    }  # fmt: skip
    if cut.shards is not None:
        _build_shards(embeddings, out, cut, how, as_json=as_json)
        return
    with counting_progress("indexing") as on_progress:
        built = build_index(embeddings, out, on_progress=on_progress, **how)
    print_index(built, out, as_json=as_json)
    warn_of_missed_target(built)


_OF_KINDS = {"lists": "ivf", "links": "hnsw", "build_effort": "hnsw", "hash_bits": "hash", "tables": "hash"}


def _check(kind: IndexOptions, rows: KeepOptions, cut: ShardOptions, codes: Codes, n_bits: int | None) -> None:
    """Raise BadParameter for options without effect."""
    given, usual = values_of(kind, cut), values_of(IndexOptions(), ShardOptions())
    changed = {name for name in given if given[name] != usual[name]}

    def refuse(names: Iterable[str], why: str) -> None:
        if hint := [f"--{name.replace('_', '-')}" for name in names if name in changed]:
            raise typer.BadParameter(why, param_hint=hint)

    for name, its in _OF_KINDS.items():
        if its != kind.kind:
            refuse([name], f"applies only to --kind {its}, and this index is {kind.kind}; leave it out")
    if kind.kind == IndexKind.flat:
        refuse(["effort", "target_recall"], "a flat index is exact: leave it out, or choose another --kind")
    if cut.shards is None:
        refuse(["processes", "engine", "ray_address"], "applies only to shards; say how many with --shards")
    if cut.engine == Engine.ray:
        refuse(["processes"], "a Ray cluster builds one shard per core; leave it out")
    else:
        refuse(["ray_address"], "applies only to --engine ray")
    if rows.like is not None and (codes != Codes.sign or n_bits is not None):
        hint = "--codes" if n_bits is None else "--bits"
        raise typer.BadParameter("--like already determines the codes; leave it out", param_hint=hint)


def _build_shards(embeddings: list[str], out: Path, cut: ShardOptions, how: dict[str, Any], *, as_json: bool) -> None:
    from bigr_repr.retrieval import build_shards
    from bigr_repr_cli.progress import counting_progress
    from bigr_repr_cli.search.index_report import missed_target, warn_of_missed_target

    if len(embeddings) > 1:
        raise typer.BadParameter("shards are built from one data set; give only one", param_hint="--shards")
    with counting_progress("shards") as on_progress:
        built = build_shards(embeddings[0], out, on_progress=on_progress, **values_of(cut), **how)
    if as_json:
        record = {
            "index": str(out),
            "images": len(built),
            "n_bits": built.n_bits,
            "target_missed": missed_target(built),
        }
        typer.echo(json.dumps(record, indent=2))
    else:
        typer.echo(f"{len(built):,} codes of {built.n_bits:,} bits in shards: {out}")
    warn_of_missed_target(built)


def _binarizer_of(index: Path) -> Any:
    """The binarizer of an index."""
    from bigr_repr.retrieval import HammingIndex

    return HammingIndex.load(index).binarizer or "bits"


@app.command()
def merge(
    indexes: Annotated[
        list[Path], typer.Argument(metavar="INDEX...", help="Folders written by bigr-repr index build.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the index into; an index there is replaced.")],
    as_json: Json = False,
) -> None:
    """Merge several indexes into one, of the first one's kind.

    Their codes must be comparable: build the others with --like FIRST. The new index keeps all their data sets.
    """
    from bigr_repr.retrieval import merge_indexes
    from bigr_repr_cli.search.index_report import print_index, warn_of_missed_target

    merged = merge_indexes(indexes, out)
    print_index(merged, out, as_json=as_json)
    warn_of_missed_target(merged)


@app.command()
def info(
    index: Index,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files and verify their checksums.")] = False,
    as_json: Json = False,
) -> None:
    """Show an index: size, kind, provenance, what can be searched, and its self-check."""
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr_cli.search.index_report import print_index

    print_index(HammingIndex.load(index, memory_map=not verify), index, as_json=as_json)
    if verify and not as_json:
        typer.echo("all files are intact")


@app.command()
def update(
    index: Index,
    embeddings: Annotated[
        str | None,
        typer.Argument(
            metavar="[EMBEDDINGS]",
            help=r"One of the index's data sets, or the new location of its only one \[default: all of them].",
        ),
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Data set to add to the index. May be repeated.", metavar="EMBEDDINGS")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring an index up to date with its data sets: add new rows, replace changed ones, remove dropped ones.

    Only new and changed files are read; codes of other rows stay as they are. The time depends on the size of the
    change; when an eighth of all rows has been removed, the index is rewritten. Shards are updated one after the other,
    each with its own files; new files go to the smallest.
    """
    from bigr_repr.retrieval.update import update_index

    done = update_index(index, embeddings, add=add or ())
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(done), indent=2))
        return
    typer.echo(
        f"{done.kept:,} rows kept, {done.dropped:,} dropped, {done.read:,} read from {done.files:,} files: {index}"
    )


@app.command()
def remove(
    index: Index,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Image to remove, by its path as listed. May be repeated.")
    ] = None,
    ids_file: Annotated[
        str | None, typer.Option(help="File of paths to remove, one per line; -: standard input.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove images from an index, by their paths as listed.

    They stay removed until their file in the data set changes.
    """
    from bigr_repr.retrieval.update import remove_images
    from bigr_repr_cli.search.stdin import given_ids, listed_ids

    listed = [*given_ids(ids or []), *([] if ids_file is None else listed_ids(ids_file))]
    if not listed:
        raise typer.BadParameter("name at least one image", param_hint="--id")
    removed, left = remove_images(index, list(dict.fromkeys(listed)))
    if as_json:
        typer.echo(json.dumps({"removed": removed, "images": left}, indent=2))
        return
    typer.echo(f"{removed:,} image{'s' * (removed != 1)} removed, {left:,} left: {index}")


@app.command()
def push(
    index: Index,
    to: Annotated[
        str,
        typer.Option(
            help="Store to copy to: lancedb:DIR (also lancedb:s3://…), or milvus:URI (a server, or a *.db file)."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the index in the store; an existing one is replaced.")] = "images",
    kind: Annotated[
        StoreKind, typer.Option(help="flat: exact search; ivf: approximate, searches only the nearest lists of codes.")
    ] = StoreKind.flat,
    timeout: Annotated[
        str,
        typer.Option(help="How long the store may take for a step, such as writing a few thousand rows: 90s, 10m, 1h."),
    ] = "2m",
) -> None:
    """Copy an index's codes to a vector store, where bigr-repr search can use them."""
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.stores.open import push as push_index

    pushed = push_index(HammingIndex.load(index), to, name, kind=str(kind), timeout=parse_duration(timeout))
    typer.echo(f"{len(pushed):,} codes of {pushed.n_bits:,} bits: {to}, {name}")
    typer.echo(f"search them with: bigr-repr search IMAGE --index {to}{'' if name == 'images' else f' --name {name}'}")
