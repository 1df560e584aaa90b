"""Shards that are not what was written: never read as other numbers, found by --verify, and embedded again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbeddingSet, EmbedSummary, embed_images, read_embeddings
from bigr_repr.embed.dataset import parts
from bigr_repr.embed.dataset.damage import damage_named
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.system.filesystems import explained


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    files = write_pictures(folder, 11)
    files[3].write_bytes(b"no picture")
    files[9].write_bytes(files[1].read_bytes())
    return folder


def run(photos: Path, out: Path, pre: Pretrained, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "codes": True, "unit_size": 4, "batch_size": 3, "decode_timeout": None}
    return embed_images(photos, out, model=pre, **{**usual, **options})


def rows(out: Path) -> list[tuple[str, bytes, bytes]]:
    data = read_embeddings(out)
    assert data.codes is not None
    pairs = zip(data.paths, data.vectors, data.codes, strict=True)
    return [(path, vector.tobytes(), code.tobytes()) for path, vector, code in pairs]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def middle_of_vectors(file: Path) -> int:
    """Where the page of vectors has its middle."""
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema.startswith("embedding")
    return int(column.data_page_offset + column.total_compressed_size // 2)


def test_no_flipped_byte_is_read_as_another_number(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre)
    whole, shard = rows(tmp_path / "out"), tmp_path / "out" / "part-00001.parquet"
    content, found = shard.read_bytes(), 0
    for place in random.Random(0).sample(range(len(content)), 80):
        flip(shard, place)
        try:
            assert rows(tmp_path / "out") == whole
        except ValueError as error:
            found += 1
            assert "part-00001.parquet" in str(error)  # noqa: PT017
        shard.write_bytes(content)
    assert found > 20


def test_a_footer_that_says_otherwise_is_refused_though_it_has_no_checksum(
    pre: Pretrained, photos: Path, tmp_path: Path
) -> None:
    run(photos, tmp_path / "out", pre)
    shard = tmp_path / "out" / "part-00001.parquet"
    table = pq.read_table(shard)
    bytes_for_text = table.set_column(0, "path", table.column("path").cast(pa.binary()))
    pq.write_table(bytes_for_text.replace_schema_metadata(table.schema.metadata), shard)
    with pytest.raises(
        ValueError, match=r"part-00001.parquet: damaged, its column path has type binary instead of text"
    ):
        read_embeddings(tmp_path / "out")
    made = {**table.schema.metadata, METADATA_KEY: table.schema.metadata[METADATA_KEY].replace(b"avg", b"max")}
    pq.write_table(table.replace_schema_metadata(made), shard)
    with pytest.raises(
        ValueError, match=r"part-00001.parquet: damaged, its provenance has changed since it was written"
    ):
        read_embeddings(tmp_path / "out")


@pytest.mark.parametrize("dedup", [None, "exact"])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_damaged_is_embedded_again(
    pre: Pretrained, photos: Path, tmp_path: Path, known: bool, dedup: str | None
) -> None:
    out = tmp_path / "out"
    first = run(photos, out, pre, dedup=dedup)
    whole, shards = rows(out), [file.read_bytes() for file in sorted(out.glob("part-*"))]
    if not known:  # as an earlier version wrote it
        for record in (out / "_run" / "units").glob("*.json"):
            content = json.loads(record.read_text())
            del content["sha256"], content["record_sha256"]
            record.write_text(json.dumps(content))
    assert run(photos, out, pre, dedup=dedup, verify=True).embedded == 0
    for number in (0, 2):
        part = out / f"part-0000{number}.parquet"
        flip(part, middle_of_vectors(part))
    assert run(photos, out, pre, dedup=dedup).embedded == 0  # sizes are right, and nobody has read them
    again = run(photos, out, pre, dedup=dedup, verify=True)
    assert (again.rows, again.failures, again.duplicates) == (first.rows, first.failures, first.duplicates)
    assert 0 < again.embedded <= 8
    assert rows(out) == whole
    if known:  # else what means nothing may differ
        assert [file.read_bytes() for file in sorted(out.glob("part-*"))] == shards


def test_what_a_reader_found_damaged_is_embedded_again_by_the_same_command(
    pre: Pretrained, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(photos, out, pre)
    whole, content = rows(out), (out / "part-00001.parquet").read_bytes()
    flip(out / "part-00001.parquet", middle_of_vectors(out / "part-00001.parquet"))
    with pytest.raises(ValueError, match=r"part-00001.parquet: damaged .* repeating the bigr-repr embed command"):
        read_embeddings(out)
    assert run(photos, out, pre).embedded == 4
    assert (rows(out), (out / "part-00001.parquet").read_bytes()) == (whole, content)
    assert run(photos, out, pre).embedded == 0
    assert not list((out / "_run").glob("damaged-*"))


def test_damage_where_nothing_can_be_noted_names_verify(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre)
    (tmp_path / "copy").mkdir()
    part = tmp_path / "copy" / "part-00000.parquet"
    part.write_bytes((tmp_path / "out" / part.name).read_bytes())
    flip(part, middle_of_vectors(part))
    with pytest.raises(ValueError, match=r"copy/part-00000.parquet: damaged .*--verify"):
        read_embeddings(tmp_path / "copy")


def test_a_damaged_list_of_inputs_is_named(pre: Pretrained, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", pre)
    listed = tmp_path / "out" / "_run" / "inputs.parquet"
    flip(listed, 40)
    with pytest.raises(ValueError, match=r"inputs.parquet: damaged .*overwrite"):
        run(photos, tmp_path / "out", pre)


def test_a_finished_data_set_is_opened_by_its_list_of_parts(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a part that is not the one listed is opened itself."""
    out, opened = tmp_path / "out", []
    run(photos, out, pre)
    alone = read_embeddings(out)
    plain = parts.pq.ParquetFile
    monkeypatch.setattr(
        parts.pq, "ParquetFile", lambda file, **how: opened.append(Path(file).name) or plain(file, **how)
    )
    whole = EmbeddingSet(out)
    assert (opened, whole.rows, whole.rows_of_files) == ([], 10, [3, 4, 3])
    (out / "_run" / "parts.parquet").unlink()
    listed = EmbeddingSet(out)
    assert (sorted(opened), listed.rows_of_files) == (
        ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"],
        [3, 4, 3],
    )
    assert whole.schema.equals(listed.schema)
    assert read_embeddings(out).paths == alone.paths


@pytest.mark.parametrize("remedy", ["repair it", "start again with overwrite"])
def test_what_a_store_refuses_is_not_damage(tmp_path: Path, remedy: str) -> None:
    part, run = tmp_path / "part-00001.parquet", tmp_path / "_run"
    run.mkdir()
    with pytest.raises(OSError, match="HTTP status 429"), damage_named(part, run, remedy), explained("s3://b/part"):
        raise OSError("AWS Error UNKNOWN: HTTP status 429, too many requests")
    assert not list(run.iterdir())
    with pytest.raises(ValueError, match=f"damaged .*CRC checksum.*{remedy}"), damage_named(part, None, remedy):
        raise OSError("could not verify page integrity, CRC checksum verification failed")
