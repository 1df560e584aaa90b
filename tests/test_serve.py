"""The HTTP API: its answers are the library's, and what is hostile, too large or foreign is refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import re
import tarfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient
from PIL import Image
from test_retrieval_shards import built_in_this_process
from tiny_model import picture, tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.embed.run import embed_images
from bigr_repr.retrieval import (
    Filter,
    HammingIndex,
    Region,
    build_index,
    build_shards,
    decode_codes,
    find_together,
    push,
    search_images,
    sharding,
)
from bigr_repr.retrieval.index.grouping import group_hits
from bigr_repr.retrieval.update import remove_images
from bigr_repr.serve import Access, Limits, Service, create_app

BASE = "http://127.0.0.1"
TOKEN = "a token of sufficient length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pre: Pretrained) -> Path:
    """pictures/, and two indexes of them: bits (with vectors) and itq (of block 2)."""
    root = tmp_path_factory.mktemp("served")
    write_pictures(root / "pictures", 40)
    embed_images(root / "pictures", root / "embeddings", model=pre, layers=[2], codes=True)
    build_index(root / "embeddings", root / "bits", binarizer="bits", vectors="float32")
    build_index(root / "embeddings", root / "sign", binarizer="sign", vectors="float32")
    return root


@pytest.fixture(scope="module")
def client(folder: Path, pre: Pretrained) -> Iterator[TestClient]:
    with _client(Service(pre, index=folder / "bits", images=folder / "pictures")) as opened:
        yield opened


def _client(service: Service, access: Access | None = None) -> TestClient:
    return TestClient(create_app(service, access), base_url=BASE)


def encoded(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        return base64.b64encode(image.read_bytes()).decode()
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# ---- what it answers


@pytest.mark.parametrize("as_listed", [lambda x: x, lambda x: {"image": x}, lambda x: f"data:image/png;base64,{x}"])
def test_embeddings_are_extract_features(client: TestClient, pre: Pretrained, folder: Path, as_listed: Any) -> None:
    files = sorted((folder / "pictures").iterdir())[:5]
    wanted = br.extract_features(files, model=pre, layer=[1, -1])
    body = {"input": [as_listed(encoded(file)) for file in files], "model": "tiny-random", "layer": [1, -1]}
    got = client.post("/v1/embeddings", json=body).json()
    assert [(each["index"], each["layer"]) for each in got["data"]] == [(i, n) for i in range(5) for n in (1, -1)]
    for layer in (1, -1):
        mine = np.array([each["embedding"] for each in got["data"] if each["layer"] == layer], np.float32)
        np.testing.assert_allclose(mine, wanted[layer], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "pool", "mirror"), [("1+3", "grid2", True), (2, "max", False)])
def test_an_index_of_other_pools_is_searched_by_pictures_read_alike(
    pre: Pretrained, folder: Path, tmp_path: Path, layer: int | str, pool: str, mirror: bool
) -> None:
    embed_images(folder / "pictures", tmp_path / "data", model=pre, layers=[layer], pool=pool, mirror=mirror)
    build_index(tmp_path / "data", tmp_path / "index", vectors="float32")
    asked = sorted((folder / "pictures").iterdir())[5]
    library = search_images(HammingIndex.load(tmp_path / "index"), [asked], 3, rescore=2, model=pre).found
    with _client(Service(pre, index=tmp_path / "index")) as client:
        body = {"image": encoded(asked), "k": 3, "rescore": 2}
        hits = _found(client.post("/search", json=body).json())
        code = client.post("/codes", json={"input": encoded(asked), "of": "index"}).json()["codes"][0]
        plain = client.post("/v1/embeddings", json={"input": encoded(asked), "layer": 1}).json()["data"][0]
    assert hits[0] == ("00005.png", pytest.approx(0, abs=1e-6))
    assert [id for id, _ in hits] == list(library.ids[0])
    assert base64.b64decode(code) == HammingIndex.load(tmp_path / "index").rows.codes[5].tobytes()
    expected = br.extract_features(asked, model=pre, layer=1)[0]
    np.testing.assert_allclose(plain["embedding"], expected, atol=1e-5)


def test_encodings_hold_the_same_vector(client: TestClient) -> None:
    def ask(form: str) -> Any:
        body = {"input": encoded(picture(1)), "encoding_format": form, "layer": 2}
        return client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]

    floats = np.array(ask("float"), np.float32)
    assert (np.frombuffer(base64.b64decode(ask("base64")), "<f4") == floats).all()
    assert (np.array(ask("ubinary"), np.uint8) == to_bytes(floats > 0)).all()


def test_the_default_layer_is_the_indexs(client: TestClient) -> None:
    got = client.post("/v1/embeddings", json={"input": encoded(picture(1))}).json()
    assert got["data"][0]["layer"] == 2


def test_codes_are_encode_codes_bit_for_bit_whatever_the_batch(
    client: TestClient, pre: Pretrained, folder: Path
) -> None:
    files = sorted((folder / "pictures").iterdir())[:9]
    wanted = br.encode_codes(files, model=pre)
    together = client.post("/codes", json={"input": [encoded(file) for file in files]}).json()
    alone = [client.post("/codes", json={"input": encoded(file)}).json()["codes"][0] for file in files]
    assert together["codes"] == alone == [base64.b64encode(code.tobytes()).decode() for code in wanted]
    assert (together["n_bits"], together["bits_per_token"]) == (192, 12)


def _found(answer: Any) -> list[tuple[str, float]]:
    return [(hit["id"], hit["distance"]) for hit in answer["hits"]]


@pytest.mark.parametrize("index", ["bits", "sign"])
@pytest.mark.parametrize("options", [{}, {"rescore": 2}, {"region": {"x": 0, "y": 0.25, "w": 0.5, "h": 0.5}}])
def test_search_is_the_librarys(pre: Pretrained, folder: Path, index: str, options: dict[str, Any]) -> None:
    query = sorted((folder / "pictures").iterdir())[7]
    opened = HammingIndex.load(folder / index)
    region = Region(x=0, y=1, w=2, h=2) if "region" in options else None
    wanted = search_images(opened, [query], 6, rescore=options.get("rescore", 0), region=region, model=pre).found
    with _client(Service(pre, index=folder / index)) as client:
        by_picture = client.post("/search", json={"image": encoded(query), "k": 6, **options}).json()
        by_id = client.post("/search", json={"id": "00007.png", "k": 6, **options}).json()
        by_row = client.post("/search", json={"row": 7, "k": 6, **options}).json()
    assert [id for id, _ in _found(by_picture)] == list(wanted.ids[0])
    np.testing.assert_allclose([each for _, each in _found(by_picture)], wanted.distances[0], atol=1e-6)
    assert _found(by_picture)[0][0] == "00007.png"
    assert [hit["row"] for hit in by_id["hits"]] == [hit["row"] for hit in by_row["hits"]]
    assert [id for id, _ in _found(by_id)] == list(wanted.ids[0])


@pytest.mark.parametrize("index", ["bits", "sign"])
def test_the_indexs_codes_find_their_pictures(pre: Pretrained, folder: Path, index: str) -> None:
    with _client(Service(pre, index=folder / index)) as client:
        body = {"input": encoded(folder / "pictures" / "00011.png"), "of": "index"}
        code = client.post("/codes", json=body).json()["codes"][0]
        found = client.post("/search", json={"code": code, "k": 1}).json()
    assert _found(found) == [("00011.png", 0)]
    assert found["code"] == code


def test_a_radius_is_the_largest_distance(client: TestClient) -> None:
    every = _found(client.post("/search", json={"id": "00003.png", "k": 40}).json())
    radius = every[5][1]
    near = _found(client.post("/search", json={"id": "00003.png", "k": 40, "radius": radius}).json())
    assert near == [hit for hit in every if hit[1] <= radius]
    assert len(every) == 40


def test_filters_and_later_pages_are_the_librarys(folder: Path, pre: Pretrained, tmp_path: Path) -> None:
    index = HammingIndex.load(folder / "bits")
    names = index.ids.to_pylist()
    labels = [["cat", None, "dog"][row % 3] for row in range(len(names))]
    plain = HammingIndex.build(index.rows.codes, ids=names, columns={"label": labels, "x": [float("nan")] * len(names)})
    plain.save(tmp_path / "index")
    with _client(Service(pre, index=tmp_path / "index")) as client:
        assert client.get("/about").json()["columns"] == {"label": "text", "x": "number"}
        for filters in (
            {"where": 'label = "cat"'},
            {"match": "*1.png"},
            {"ids": names[3:9]},
            {"where": "label is null"},
        ):
            body = {"row": 5, "k": 4, "offset": 1, "radius": plain.n_bits, **filters}
            hits = client.post("/search", json=body).json()["hits"]
            wanted = plain.find(plain.rows.codes[5], 4, where=Filter(**filters), offset=1)  # type: ignore[arg-type]
            assert [hit["row"] for hit in hits] == wanted.rows[0].tolist()
            assert [hit["columns"] for hit in hits] == [{"label": labels[row], "x": None} for row in wanted.rows[0]]
        assert client.post("/search", json={"row": 0, "where": 'label = "cow"'}).json()["hits"] == []


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/search", b"{", "the body is not JSON: "),
        ("/search", b"", "the body: is required"),
        ("/search", b"{}", "give one of image, code, id, row and queries; found none"),
        ("/search", b'{"row": 0, "k": 0}', "k: input should be greater than or equal to 1"),
        ("/search", b'{"row": 0, "color": 1}', "color: there is no such field; see /docs"),
        ("/codes", b"{}", "input: is required"),
        ("/search", b'{"row": 0, "where": "label = 3"}', "column 'label' is not in this index: its columns are path"),
        ("/search", b'{"row": 0, "where": "x = (select 1)"}', "where: "),
        ("/search", b'{"row": 0, "ids": [1]}', "ids are names in this index, not numbers such as 1"),
    ],
)
def test_errors_are_worded_for_their_reader(client: TestClient, path: str, body: bytes, said: str) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    message = answer.json()["error"]["message"]
    assert 400 <= answer.status_code < 500
    assert message.startswith(said)
    assert "Value error" not in message
    assert "\n" not in message


def test_decoded_codes_are_the_tokenizers_pictures(client: TestClient, pre: Pretrained, folder: Path) -> None:
    file = folder / "pictures" / "00002.png"
    code = br.encode_codes(file, model=pre)
    wanted = decode_codes(pre, code)[0]
    by_code = client.post("/decode", json={"codes": [base64.b64encode(code.tobytes()).decode()]}).json()["images"]
    by_picture = client.post("/decode", json={"image": encoded(file)}).json()["images"]
    shown = client.get("/image/2?decoded=true").content
    for data in (*(base64.b64decode(each.partition(",")[2]) for each in by_code + by_picture), shown):
        assert np.abs(np.asarray(Image.open(io.BytesIO(data)), int) - wanted).max() <= 1


def test_photographs_are_shown_anew_encoded(client: TestClient) -> None:
    hit = client.post("/search", json={"id": "00004.png", "k": 1}).json()["hits"][0]
    answer = client.get(hit["image"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (320, 320)


def test_photographs_in_a_tar_file_are_shown(tmp_path: Path, pre: Pretrained) -> None:
    write_pictures(tmp_path / "pictures", 3)
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for file in sorted((tmp_path / "pictures").iterdir()):
            tar.add(file, file.name)
    embed_images(tmp_path / "pictures.tar", tmp_path / "embeddings", model=pre, layers=[2], codes=True)
    build_index(tmp_path / "embeddings", tmp_path / "index", binarizer="bits")
    with _client(Service(pre, index=tmp_path / "index", images=tmp_path / "pictures.tar")) as client:
        assert [client.get(f"/image/{row}").status_code for row in range(4)] == [200, 200, 200, 404]


@pytest.mark.parametrize("id", ["../embeddings/secret.png", "/etc/hostname", "link.png", "gone.png", "pictures"])
def test_no_file_outside_the_folder_of_pictures_is_shown(tmp_path: Path, pre: Pretrained, id: str) -> None:
    (tmp_path / "embeddings").mkdir()
    picture(0).save(tmp_path / "embeddings" / "secret.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "embeddings" / "secret.png")
    HammingIndex.build(np.zeros((1, 24), np.uint8), ids=[id]).save(tmp_path / "index")
    with _client(Service(pre, index=tmp_path / "index", images=tmp_path / "pictures")) as client:
        assert client.get("/image/0").status_code == 404


def test_metrics_count_and_the_api_describes_itself(client: TestClient) -> None:
    client.post("/codes", json={"input": encoded(picture(1))})
    text = client.get("/metrics").text
    assert re.search(r'bigr_requests_total\{path="/codes",status="200"\} [1-9]', text)
    assert re.search(r"bigr_pictures_total [1-9]", text)
    assert "bigr_index_rows 40.0" in text
    assert {"/v1/embeddings", "/codes", "/search", "/decode", "/image/{row}"} <= set(
        client.get("/openapi.json").json()["paths"]
    )
    assert client.get("/ready").json() == {"status": "ready"}


@pytest.mark.slow
def test_nothing_is_kept_of_a_request_once_it_is_answered(folder: Path, pre: Pretrained) -> None:
    """Objects that live are counted: what is kept of one kind of request grows with every stretch of them."""
    service = Service(pre, index=folder / "bits", images=folder / "pictures")
    image, grown = encoded(picture(1)), []
    with _client(service) as client:

        def ask(number: int) -> None:
            client.post("/v1/embeddings", json={"input": image, "layer": 2})
            client.post("/search", json={"image": image, "k": 5})
            client.post("/search", json={"row": number % 40, "where": f"path like '%{number % 6}%'"})
            client.post("/codes", json={"input": f"AAAA{number}"})
            client.post(f"/nowhere/{number}")
            client.get(f"/image/{number % 40}?version={number}")
            client.get(f"/image/{number % 40}")
            client.get(f"/image/{number % 40}?decoded=true")

        for stretch in range(4):
            gc.collect()
            before, lines = len(gc.get_objects()), service.metrics.text().count(b"\n")
            for number in range(25):
                ask(25 * stretch + number)
            gc.collect()
            grown.append(len(gc.get_objects()) - before)
        assert service.metrics.text().count(b"\n") == lines
    assert min(grown) < 20, grown


def test_without_an_index_only_search_is_missing(pre: Pretrained) -> None:
    with _client(Service(pre)) as client:
        assert client.post("/codes", json={"input": encoded(picture(1))}).status_code == 200
        assert client.post("/search", json={"id": "x"}).json()["error"]["code"] == "no-index"


# ---- what it refuses

BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0" + bytes(32)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"input": "http://169.254.169.254/latest"}, 400),
        ("/v1/embeddings", {"input": "file:///etc/hostname"}, 400),
        ("/v1/embeddings", {"input": "data:image/svg+xml,<svg/>"}, 400),
        ("/v1/embeddings", {"input": "%%%"}, 400),
        ("/v1/embeddings", {"input": base64.b64encode(b"no picture").decode()}, 415),
        ("/v1/embeddings", {"input": base64.b64encode(BOMB).decode()}, 400),
        ("/v1/embeddings", {"input": encoded(picture(0)), "layer": 99}, 400),
        ("/v1/embeddings", {"input": encoded(picture(0)), "model": "gpt"}, 404),
        ("/v1/embeddings", {"input": []}, 413),
        ("/v1/embeddings", {"input": [encoded(picture(0))] * 33}, 413),
        ("/v1/embeddings", {"input": encoded(picture(0)), "unknown": 1}, 422),
        ("/codes", {"input": encoded(picture(0))[:200]}, 400),
        ("/search", {"id": "no such"}, 404),
        ("/search", {"row": 40}, 404),
        ("/search", {"row": 0, "version": "other"}, 410),
        ("/search", {"row": 0, "id": "00000.png"}, 422),
        ("/search", {}, 422),
        ("/search", {"row": 0, "k": 10**9}, 422),
        ("/search", {"row": 0, "region": {"x": 0.5, "y": 0, "w": 0.9, "h": 1}}, 400),
        ("/search", {"row": 0, "rescore": 2, "region": {"x": 0, "y": 0, "w": 1, "h": 1}}, 400),
        ("/search", {"row": 0, "effort": 3}, 400),
        ("/search", {"code": "AAAA"}, 400),
        ("/decode", {"codes": ["AAAA"]}, 400),
        ("/decode", {"codes": ["%"]}, 400),
    ],
)
def test_wrong_requests_are_refused_in_one_line_without_paths(
    client: TestClient, folder: Path, path: str, body: Any, status: int
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message
    assert "\n" not in message
    assert not re.search(r"(/\w+){2}", message), message
    assert str(folder) not in answer.text


def test_too_many_pixels_and_too_large_bodies_are_refused(pre: Pretrained) -> None:
    with _client(Service(pre, limits=Limits(pixels=1000, body_bytes=20_000))) as client:
        assert client.post("/codes", json={"input": encoded(picture(0))}).status_code == 413
        assert client.post("/codes", content=b"x" * 20_001).status_code == 413
        assert client.post("/codes", content=iter([b"x" * 10_000] * 3)).status_code == 413
        assert client.post("/codes", content=b"{").status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "192.168.0.5"])
def test_unknown_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_this_machines_names_are_known(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_other_sites_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    for answer in (
        client.post("/search", json={"row": 0}, headers=headers),
        client.get("/image/0", headers=headers),
        client.options("/search", headers=headers),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_link_to_the_page_may_be_followed(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 403
    same = {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1"}
    assert client.post("/search", json={"row": 0}, headers=same).status_code == 200


def test_every_answer_forbids_foreign_content(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/nothing"), client.get("/health", headers={"Host": "evil.example"})):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ValueError, match="--token-file"):
        Access(host="0.0.0.0")
    with pytest.raises(ValueError, match="16"):
        Access(host="0.0.0.0", token="short")
    access = Access(host="0.0.0.0", token=TOKEN, allowed_hosts=("images.example",))
    assert [access.allows(host) for host in ("192.168.0.5", "images.example", "evil.example")] == [True, True, False]


def test_a_token_opens_and_its_cookie_too(pre: Pretrained, folder: Path) -> None:
    with _client(Service(pre, index=folder / "bits"), Access(token=TOKEN)) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 200
        for path in ("/metrics", "/image/0?decoded=true", "/about", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 401
        wrong = {"Authorization": f"Bearer {TOKEN[:-1]}"}
        assert client.post("/search", json={"row": 0}, headers=wrong).status_code == 401
        assert client.post("/session", headers=wrong).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/search", json={"row": 0}, headers=right).status_code == 200
        signed = client.post("/session", headers=right).headers["set-cookie"]
        assert "HttpOnly" in signed
        assert "SameSite=strict" in signed
        assert TOKEN not in signed
        assert client.get("/image/0?decoded=true").status_code == 200


# ---- many at once


def test_more_than_the_queue_holds_are_told_to_try_again(pre: Pretrained) -> None:
    with _client(Service(pre, limits=Limits(waiting=2))) as client:
        answer = client.post("/codes", json={"input": [encoded(picture(0))] * 3})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert client.post("/codes", json={"input": [encoded(picture(0))] * 2}).status_code == 200


@pytest.mark.slow
def test_more_requests_than_allowed_and_slow_ones_are_refused(pre: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(pre, limits=Limits(requests=1, seconds=1.0))
    entered = threading.Event()

    async def slow(*args: Any) -> Any:
        entered.set()
        await asyncio.sleep(30)

    monkeypatch.setattr(service, "encode", slow)
    with _client(service) as client:
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/codes", json={"input": "AAAA"}).status_code)
        )
        thread.start()
        assert entered.wait(10)
        busy = client.get("/health")
        thread.join()
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        assert answers == [504]
        assert client.get("/health").status_code == 200


def test_an_index_is_replaced_without_a_wrong_answer(tmp_path: Path, pre: Pretrained) -> None:
    """Each answer is wholly of the old index or of the new one, and addresses of the old one stay valid."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (50, 24), np.uint8)
    old, new = [f"old-{i}" for i in range(50)], [f"new-{i}" for i in range(50)]
    HammingIndex.build(codes, ids=old, bits_per_token=12).save(tmp_path / "index")
    with _client(Service(pre, index=tmp_path / "index", poll_seconds=0.02)) as client:
        first = client.post("/search", json={"row": 0}).json()
        HammingIndex.build(codes[::-1], ids=new, bits_per_token=12).save(tmp_path / "index")
        until = time.monotonic() + 60
        while (now := client.post("/search", json={"row": 0, "k": 50}).json())["version"] == first["version"]:
            assert {hit["id"] for hit in now["hits"]} == set(old)
            assert time.monotonic() < until
        assert {hit["id"] for hit in now["hits"]} == set(new)
        again = client.post("/search", json={"row": 0, "version": first["version"]}).json()
        assert again == first
        (tmp_path / "index" / "index.json").write_text("{}")
        while not re.search(r'reloads_total\{outcome="failed"\} [1-9]', client.get("/metrics").text):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert client.post("/search", json={"row": 0, "k": 50}).json() == now


def test_another_models_index_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="weights_sha256"):
        Service(tiny_model(seed=1), index=folder / "bits")


# ---- several queries, groups, stores


def test_several_queries_are_one(client: TestClient, folder: Path) -> None:
    index = HammingIndex.load(folder / "bits")
    weights = [1, 0.5, -1]
    body = [{"id": "00003.png", "weight": 1}, {"row": 7, "weight": 0.5}, {"image": encoded(picture(11)), "weight": -1}]
    for more in ({}, {"match": "*1*"}, {"radius": 4000.0}, {"region": {"x": 0, "y": 0, "w": 0.5, "h": 1}}):
        found = client.post("/search", json={"queries": body, "k": 6, **more}).json()
        region = Region.of_fractions(0, 0, 0.5, 1, index.token_layout()) if "region" in more else None
        truth = find_together(
            index, index.rows.codes[[3, 7, 11]], weights, 6, region=region, radius=more.get("radius"),  # type: ignore[arg-type]
            where=Filter(match=more.get("match")),  # type: ignore[arg-type]
        )  # fmt: skip
        assert [hit["row"] for hit in found["hits"]] == truth.rows[0].tolist()
        assert found["code"] is None
    for wrong, said in (
        ({"queries": [{"row": 1, "weight": -1}]}, "at least one above 0"),
        ({"queries": [{"row": 1, "id": "x"}]}, "queries.0: give one of image, code, id and row; found id, row"),
        ({"queries": [{"row": 1}], "row": 2}, "found row, queries"),
        ({"queries": [{"row": 1, "weight": float("nan")}]}, "queries.0.weight"),
        ({"queries": [{"row": 1}] * 33}, "33 items are outside 1..32"),
        ({"queries": [{"row": 4000}]}, "no such row"),
    ):
        answer = client.post("/search", content=json.dumps(wrong), headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert said in answer.json()["error"]["message"]


def test_hits_are_grouped_under_nearer_ones(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 12)
    for number in (3, 4):
        (tmp_path / "pictures" / f"again{number}.png").write_bytes((tmp_path / "pictures" / "00003.png").read_bytes())
    embed_images(tmp_path / "pictures", tmp_path / "data", model=pre, codes=True, layers=[2])
    index = build_index(tmp_path / "data", tmp_path / "index", binarizer="bits")
    with _client(Service(pre, index=tmp_path / "index", images=tmp_path / "pictures")) as opened:
        found = opened.post("/search", json={"id": "00003.png", "k": 4, "group": 0}).json()
        first = found["hits"][0]
        assert [first["id"], *(each["id"] for each in first["members"])] == ["00003.png", "again3.png", "again4.png"]
        assert len(found["hits"]) == 4
        assert len({hit["row"] for hit in found["hits"]} | {each["row"] for each in first["members"]}) == 6
        assert opened.get(first["members"][0]["image"]).status_code == 200
        again = opened.post("/search", json={"id": "00003.png", "k": 3, "group": 0, "offset": 1}).json()
        assert again["hits"] == found["hits"][1:]
        assert opened.post("/search", json={"row": 1, "group": index.n_bits + 1}).status_code == 400


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_index_in_shards_is_served_and_followed(
    processes: int, folder: Path, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_built_here", built_in_this_process)
    data = tmp_path / "data"
    embed_images(folder / "pictures", data, model=pre, layers=[2], codes=True, unit_size=10)
    one = build_index(data, tmp_path / "one", binarizer="bits")
    build_shards(data, tmp_path / "shards", 3, binarizer="bits")
    served = Service(pre, index=tmp_path / "shards", images=folder / "pictures", processes=processes, poll_seconds=0.05)
    with _client(served) as opened:
        about = opened.get("/about").json()
        assert (about["rows"], about["together"], about["decodable"], about["rescore"]) == (len(one), True, True, True)
        first = opened.post("/search", json={"image": encoded(picture(9)), "k": 5}).json()
        assert first["hits"][0]["id"] == "00009.png"
        assert [hit["row"] for hit in first["hits"]] == one.find(one.rows.codes[9], 5).rows[0].tolist()
        part = opened.post("/search", json={"row": 39, "k": 4, "region": {"x": 0, "y": 0, "w": 0.5, "h": 0.5}}).json()
        side = one.token_layout().width // 2
        wanted = one.find_region(one.tokens[39], Region(x=0, y=0, w=side, h=side), 4)
        assert [hit["row"] for hit in part["hits"]] == wanted.rows[0].tolist()
        asked = {"queries": [{"row": 1}, {"id": "00030.png", "weight": -0.5}], "k": 4, "group": 2}
        assert len(opened.post("/search", json=asked).json()["hits"]) == 4
        rescored = opened.post("/search", json={"row": 25, "k": 3, "rescore": 4}).json()
        assert (rescored["metric"], rescored["hits"][0]["row"]) == ("cosine", 25)
        assert opened.get("/image/35?decoded=true").status_code == 200
        remove_images(tmp_path / "shards", ["00009.png"])
        until = time.monotonic() + 60
        while opened.get("/about").json()["rows"] == len(one) and time.monotonic() < until:
            time.sleep(0.05)
        assert opened.post("/search", json={"id": "00009.png"}).status_code == 404


@pytest.mark.filterwarnings("ignore")  # the back ends warn about each other's and their own internals
@pytest.mark.parametrize("kind", ["lancedb", pytest.param("milvus", marks=pytest.mark.slow)])  # it starts a server
def test_a_store_is_served(kind: str, folder: Path, pre: Pretrained, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lancedb" if kind == "lancedb" else "milvus_lite")
    index = HammingIndex.load(folder / "bits")
    place = f"{kind}:{tmp_path / ('store' if kind == 'lancedb' else 'm.db')}"
    push(index, place)
    with _client(Service(pre, index=place, images=folder / "pictures", poll_seconds=0.05)) as opened:
        about = opened.get("/about").json()
        assert (about["rows"], about["kind"], about["pictures"], about["together"]) == (40, "flat", True, False)
        for query in ({"image": encoded(picture(9))}, {"id": "00009.png"}, {"row": 9}, {"row": 9, "match": "*1*"}):
            found = opened.post("/search", json={"k": 5, **query}).json()
            truth = index.find(index.rows.codes[9], 5, where=Filter(match=query.get("match")))  # type: ignore[arg-type]
            assert [hit["distance"] for hit in found["hits"]] == truth.distances[0].tolist()
            assert found["hits"][0]["id"] == truth.ids[0][0]
        assert opened.get("/image/9").content == opened.get(f"/image/9?version={about['version']}").content
        assert opened.get("/image/9").status_code == 200
        part = {"x": 0, "y": 0, "w": 1, "h": 1}
        for refused in ({"queries": [{"row": 1}]}, {"row": 1, "rescore": 3}, {"row": 1, "region": part}):
            assert opened.post("/search", json=refused).status_code == 400
        grouped = opened.post("/search", json={"row": 9, "k": 3, "group": index.n_bits // 3}).json()["hits"]
        theirs = group_hits(index, lambda k: index.find(index.rows.codes[9], k), 3, index.n_bits // 3)
        assert [hit["distance"] for hit in grouped] == theirs.found.distances[0].tolist()
        assert [[each["row"] for each in hit["members"]] for hit in grouped] == [
            [row for row, _ in members] for members in theirs.members[0]
        ]
        assert opened.get("/image/9?decoded=true").status_code == 400
        assert opened.post("/search", json={"id": "none.png"}).status_code == 404
        index.remove(["00009.png"])
        push(index, place)
        until = time.monotonic() + 60
        while opened.get("/about").json()["rows"] == 40 and time.monotonic() < until:
            time.sleep(0.05)
        assert opened.get("/about").json()["rows"] == 39
        assert opened.post("/search", json={"id": "00009.png"}).status_code == 404
        assert opened.post("/search", json={"row": 9, "k": 1}).json()["hits"][0]["id"] == "00010.png"
