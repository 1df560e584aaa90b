"""What a run would take: counts are the run's own, bytes and rows come true, and nothing is written."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bigr_repr_cli.main import app
from tiny_model import picture, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.embed import Prices, count_inputs, embed_images, estimate_run
from bigr_repr.embed.estimate import Counted, Measured, Requests, Stored, _Sample, _worked_out
from bigr_repr.images.find import Source

USUAL = {"layers": [2], "codes": True, "batch_size": 8, "unit_size": 16, "decode_timeout": None}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Forty single files, one of them damaged, a tar shard of five and a Parquet file of seven."""
    place = tmp_path_factory.mktemp("mixed")
    files = write_pictures(place / "photos", 40)
    files[7].write_bytes(b"junk")
    encoded = []
    for number in range(7):
        content = io.BytesIO()
        picture(100 + number).save(content, "png")
        encoded.append(content.getvalue())
    pq.write_table(pa.table({"image": encoded}), place / "rows.parquet")
    with tarfile.open(place / "shard.tar", "w") as tar:
        for file in files[:5]:
            tar.add(file, file.name)
    return [str(place / "photos"), str(place / "shard.tar"), str(place / "rows.parquet")]


def test_what_is_counted_is_what_a_run_finds(pre: Pretrained, mixed: list[str], tmp_path: Path) -> None:
    counted = count_inputs(mixed, model=pre, **USUAL)
    done = embed_images(mixed, tmp_path / "out", model=pre, **USUAL)
    assert (counted.images, counted.units) == (done.inputs, done.shards)
    assert (counted.single, counted.tars, counted.tables) == (40, 1, 1)
    assert counted.container_bytes == sum(Path(file).stat().st_size for file in mixed[1:])
    assert counted.stored == Stored()


def test_an_estimate_of_all_images_comes_true(pre: Pretrained, mixed: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = estimate_run(mixed, out, model=pre, sample=1000, prices=Prices(machine_hour=7.0), **USUAL)
    assert not list(tmp_path.iterdir())
    done = embed_images(mixed, out, model=pre, **USUAL)
    assert (found.rows, found.measured.failures) == (done.rows, done.failures)
    written = sum(part.stat().st_size for part in out.glob("part-*.parquet"))
    assert found.output_bytes == pytest.approx(written, rel=0.03)
    singles = sum(file.stat().st_size for file in Path(mixed[0]).iterdir())
    assert found.input_bytes == pytest.approx(singles + found.counted.container_bytes, abs=20)
    assert found.requests == Requests(0, 0)
    assert found.hours == pytest.approx(found.counted.images / found.measured.images_per_second / 3600)
    assert found.money == pytest.approx({"machines": 7 * found.hours, "total": 7 * found.hours})


def test_half_the_hours_on_twice_the_machines_at_the_same_price() -> None:
    counted = Counted(
        images=10_000_000, units=10_000, single=8_000_000, tables=10, tars=10, container_bytes=200 << 20, seconds=1.0,
        stored=Stored(
            single=8_000_000, tables=10, table_bytes=100 << 20, tars=10, tar_bytes=100 << 20, tar_images=1_000
        ),
    )  # fmt: skip
    measured = Measured(
        images=100, failures=1, images_per_second=100.0, single_bytes=1e5, row_bytes=1000.0, shard_bytes=5000.0
    )
    prices = Prices(machine_hour=3.0, million_reads=0.4, million_writes=5.0, gb_read=0.01, gb_month=0.023)
    one, two = (_worked_out(counted, measured, machines, True, prices) for machines in (1, 2))
    assert (one.rows, one.hours) == (9_900_000, pytest.approx(27.7778, rel=1e-4))
    assert two.hours == pytest.approx(one.hours / 2)
    assert two.money["machines"] == pytest.approx(one.money["machines"]) == pytest.approx(83.333, rel=1e-4)
    assert one.output_bytes == 9_900_000 * 1000 + 10_000 * 5000
    assert one.money["rows, a month"] == pytest.approx(one.output_bytes / 1e9 * 0.023)
    # Two requests a single object, one for every 4 MB of Parquet and 8 MB of tar files, seven a unit, and the headers.
    assert one.requests.reads == 2 * 8_000_010 + 1_000 + 25 + 13 + 7 * 10_000
    assert one.requests.writes == 8_001 + 2 * 10_000 + 2 * 10_000
    assert one.money["total"] == pytest.approx(sum(list(one.money.values())[:4]))


def test_every_stretch_is_sampled_as_often() -> None:
    taken = [0] * 10
    for seed in range(400):
        sample = _Sample(64)
        sample._random.seed(seed)
        assert sum(1 for _ in sample.of(Source(str(i), str(i)) for i in range(320))) == 320
        for source in sample.sources:
            taken[int(source.path) // 32] += 1
    assert sum(taken) == 400 * 64
    assert all(1800 < count < 3300 for count in taken)  # 2560 are expected


def test_what_cannot_be_estimated_is_said(pre: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="none of 1 sampled images gave a row"):
        estimate_run(tmp_path, model=pre, **USUAL)
    with pytest.raises(ValueError, match="sample=0"):
        estimate_run(tmp_path, model=pre, sample=0, **USUAL)
    with pytest.raises(ValueError, match=r"gb_month=-1 must be a price"):
        Prices(gb_month=-1)


@pytest.mark.slow
def test_the_command_says_what_is_counted_and_what_is_not(pre: Pretrained, mixed: list[str], tmp_path: Path) -> None:
    save(pre, tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--layer", "2", "--decode-timeout", "0", "--unit-size", "16"]
    plain = CliRunner().invoke(app, ["embed plan", *mixed, *options])
    assert plain.exit_code == 0, plain.output
    assert "images    52, in 40 single files, 1 Parquet file, 1 tar shard" in plain.stdout
    assert "estimated" not in plain.stdout
    unused = ["--sample", "32", "--price-gb-read", "1"]
    idle = CliRunner(env={"COLUMNS": "600"}).invoke(app, ["embed plan", *mixed, *options, *unused])
    assert idle.exit_code == 2
    for part in ("--sample", "--price-gb-read", "has no effect without --estimate"):
        assert part in idle.stderr
    assert "--machines" not in idle.stderr
    priced = ["--estimate", "--sample", "32", "--machines", "2", "--price-machine-hour", "1000"]
    asked = CliRunner().invoke(app, ["embed plan", *mixed, *options, *priced])
    assert asked.exit_code == 0, asked.output
    for part in ("counted, in", "measured with 32 images on this machine", "estimated from both:", "cost, at the"):
        assert part in asked.stdout
    as_json = CliRunner().invoke(app, ["embed plan", *mixed, *options, *priced, "--json"])
    assert json.loads(as_json.stdout)["counted"]["images"] == 52
    assert not (tmp_path / "embeddings").exists()
