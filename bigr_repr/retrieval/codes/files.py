"""Writes and reads codes as one Parquet or NumPy file. Knows nothing of search."""

# n rows (images)

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import BIT_ORDER, code_bytes
from bigr_repr.embed.dataset.schema import METADATA_KEY, Recipe, check_texts
from bigr_repr.features.extract import encode_codes
from bigr_repr.images.find import escape_path, find_images
from bigr_repr.images.inputs import Pictures
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.ids import id_array
from bigr_repr.retrieval.codes.provenance import BITS, parse_provenance, provenance_of
from bigr_repr.system.files import HashedFile, replacing, sha256_of
from bigr_repr.system.sums import sealed, unsealed

__all__ = ["CodeFile", "export_data_codes", "export_image_codes", "read_codes"]

SUFFIXES: Final = (".parquet", ".npz", ".npy")
_WRITTEN: Final[dict[str, Any]] = {"compression": {"path": "zstd", "code": "none"}, "write_page_checksum": True}
_OURS: Final = {
    b"PARQUET:field_id": b"45236"
}  # of the column code: marks files that record the provenance of their codes
_FILES: Final = 512  # images encoded between writes
_DIGEST: Final = re.compile(rb"[0-9a-fA-F]{64}")
_LONGEST: Final = 1 << 34  # maximum bytes of codes to read into memory


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeFile:
    """The result of read_codes: ids (None for .npy), codes uint8 (n, bytes), and the recorded provenance, or None."""

    ids: list[str] | None
    codes: NDArray[np.uint8]
    n_bits: int
    provenance: Mapping[str, Any] | None


def export_data_codes(source: DataCodes, out: PathLike) -> int:
    """Write the codes of an embedding data set to a file, as export_image_codes does; returns the number of rows."""
    batches = ((rows.ids.to_pylist(), rows.codes) for rows in source.batches())
    return _write(Path(out), batches, source.n_bits, source.provenance)


def export_image_codes(
    images: Pictures,
    out: PathLike,
    pre: Pretrained,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the tokenizer's codes of image files to a file, atomically; returns the number of rows.

    out: *.parquet, with columns path and code and the provenance as metadata; *.npz, with arrays paths, codes, n_bits
    and origin (the provenance, as JSON); or *.npy, only the codes, with their SHA-256 in *.npy.sha256 in the format of
    sha256sum. bigr_repr.codes describes the packing.

    Raises ImageError for the first unreadable picture (bigr-repr embed --codes skips those), ValueError for an unknown
    suffix.
    """
    files = list(find_images(images))  # type: ignore[arg-type]
    recipe = Recipe(config=pre.config, weights=pre.fingerprint, layers=(), codes=True)

    def batches() -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
        for start in range(0, len(files), _FILES):
            part = files[start : start + _FILES]
            yield [escape_path(source.path) for source in part], encode_codes([s.file for s in part], model=pre)
            if on_progress is not None:
                on_progress(start + len(part), len(files))

    return _write(Path(out), batches(), pre.config.code_size, provenance_of(recipe.provenance(), BITS, None))


def read_codes(path: PathLike, n_bits: int | None = None) -> CodeFile:
    """Read a file written by an export. n_bits: needed for a .npy file whose last byte is not full.

    Raises ValueError for a file without codes.
    """
    path = Path(path)
    _suffix(path)
    with path.open("rb") as file:
        try:
            _check_digest(path)
            found = _read_parquet(file) if path.suffix == ".parquet" else _read_numpy(file, path.suffix, n_bits)
        except Exception as error:  # zip, NumPy and Parquet each raise different errors for damage
            said = str(error) or type(error).__name__
            remedy = "write some with: bigr-repr codes"
            raise ValueError(f"{path}: no codes in it, or damaged ({said}); {remedy}") from error
    codes, bits = found.codes, found.n_bits
    if codes.dtype != np.uint8 or codes.ndim != 2 or code_bytes(bits) != codes.shape[1]:
        raise ValueError(f"{path}: an array {codes.shape} of {codes.dtype} is not packed codes of {bits} bits")
    if found.ids is not None and len(found.ids) != len(codes):
        raise ValueError(f"{path}: {len(found.ids)} paths for {len(codes)} codes; write it again")
    return found


def _suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: codes are stored as {', '.join(SUFFIXES)}; choose such a name")


def _write(
    path: Path, batches: Iterator[tuple[list[str], NDArray[np.uint8]]], n_bits: int, provenance: Mapping[str, Any]
) -> int:
    _suffix(path)
    if path.suffix == ".parquet":
        return _write_parquet(path, batches, n_bits, provenance)
    digest = _digest_of(path)
    with replacing(path) as file:  # opened first, so that an unwritable place is found before the work
        parts = list(batches)
        codes = np.concatenate([part for _, part in parts]) if parts else np.empty((0, code_bytes(n_bits)), np.uint8)
        if path.suffix == ".npy":
            hashed = HashedFile(file)  # NumPy does not notice a full disk when it writes to a plain file
            np.save(hashed, codes)
            digest.unlink(missing_ok=True)
        else:
            paths = np.array([name for names, _ in parts for name in names], np.str_)
            recorded = np.str_(json.dumps(dict(provenance)))
            np.savez(file, paths=paths, codes=codes, n_bits=np.int64(n_bits), origin=recorded)
    if path.suffix == ".npy":
        with replacing(digest) as file:
            file.write(f"{hashed.sha256}  {path.name}\n".encode("utf-8", "surrogateescape"))
    return len(codes)


def _digest_of(path: Path) -> Path:
    """The file with an array's SHA-256 in the format of sha256sum: .npy files cannot hold one."""
    return path.with_name(f"{path.name}.sha256")


def _check_digest(path: Path) -> None:
    """Raise ValueError for a changed array; arrays without a digest pass.

    A neighboring file that does not begin with a digest is not ours, and is ignored.
    """
    file = _digest_of(path)
    first = file.read_bytes()[:80].split(maxsplit=1)[:1] if file.is_file() else []
    stated = next((word.decode().lower() for word in first if _DIGEST.fullmatch(word)), None)
    if stated is not None and stated != sha256_of(path):
        raise ValueError(f"its SHA-256 is not the one in {file.name}; if you changed it yourself, remove that file")


def _write_parquet(
    path: Path, batches: Iterator[tuple[list[str], NDArray[np.uint8]]], n_bits: int, provenance: Mapping[str, Any]
) -> int:
    record = {"n_bits": n_bits, "bit_order": BIT_ORDER, "origin": dict(provenance)}
    kind = pa.binary(code_bytes(n_bits))
    code = pa.field("code", kind, nullable=False, metadata=_OURS)
    fields = [pa.field("path", pa.large_string(), nullable=False), code]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(sealed(record))})
    count = 0
    with ExitStack() as stack:
        file = stack.enter_context(replacing(path))
        writer = stack.enter_context(pq.ParquetWriter(file, schema, **_WRITTEN))
        for names, codes in batches:
            packed = pa.FixedSizeBinaryArray.from_buffers(kind, len(codes), [None, pa.py_buffer(codes.tobytes())])
            writer.write_table(pa.table([id_array(names, len(codes)), packed], schema=schema))
            count += len(codes)
    return count


def _read_numpy(file: BinaryIO, suffix: str, n_bits: int | None) -> CodeFile:
    loaded = np.load(file, allow_pickle=False)
    if suffix == ".npy":
        codes, ids, bits, provenance = loaded, None, n_bits or 8 * loaded.shape[-1], None
    else:
        codes, ids, bits = loaded["codes"], loaded["paths"].tolist(), int(loaded["n_bits"])
        provenance = parse_provenance(json.loads(str(loaded["origin"])))
    return CodeFile(ids=ids, codes=codes, n_bits=bits, provenance=provenance)


def _read_parquet(file: BinaryIO) -> CodeFile:
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        schema = parquet.schema_arrow
        kind = schema.field("code").type if "code" in schema.names else None
        if kind is None or not pa.types.is_fixed_size_binary(kind):
            raise ValueError(f"it has columns {schema.names}; a column code of packed bits is needed")
        if parquet.metadata.num_rows * kind.byte_width > _LONGEST:
            raise ValueError(f"{parquet.metadata.num_rows:,} codes are more than are read into memory; split the file")
        ours = _OURS.items() <= (schema.field("code").metadata or {}).items()
        if ours and METADATA_KEY not in (schema.metadata or {}):
            raise ValueError("the record of its codes is missing")
        record = unsealed(json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}")))
        check_texts(schema, "its schema")
        table = parquet.read(columns=["path", "code"]).combine_chunks()
    column = table.column("code").combine_chunks()
    flat = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
    n_bits = record.get("n_bits") or 8 * kind.byte_width
    return CodeFile(
        ids=table.column("path").to_pylist(), codes=flat.reshape(-1, kind.byte_width), n_bits=int(n_bits),
        provenance=parse_provenance(record.get("origin")),
    )  # fmt: skip
