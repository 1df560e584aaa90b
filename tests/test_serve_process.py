"""`bigr-repr serve` as a process: it says where it listens, and ends without losing a request."""

from __future__ import annotations

import base64
import http.client
import io
import json
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from bigr_repr_cli.main import app
from forks import COMMAND, start
from tiny_model import picture, tiny_model
from typer.testing import CliRunner

import bigr_repr as br

pytestmark = pytest.mark.slow


def _post(port: int, body: bytes, statuses: list[int], signaled: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/codes")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:100])
    signaled.wait(60)  # the rest follows when the server has been told to end
    connection.send(body[100:])
    statuses.append(connection.getresponse().status)
    connection.close()


def test_a_signal_ends_it_after_the_requests_it_has(tmp_path: Path) -> None:
    br.save(tiny_model(), tmp_path / "model")
    file = io.BytesIO()
    picture(0).save(file, "PNG")
    body = json.dumps({"input": [base64.b64encode(file.getvalue()).decode()] * 8}).encode()
    with start(COMMAND, ["serve", "--port", 0, "--model", tmp_path / "model"]) as process:
        address = process.stderr.readline()
        port = int(address.split("http://127.0.0.1:")[1].partition(";")[0])
        statuses: list[int] = []
        signaled = threading.Event()
        threads = [threading.Thread(target=_post, args=(port, body, statuses, signaled)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while _in_progress(port) < 4:
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        signaled.set()
        for thread in threads:
            thread.join()
        rest = process.stderr.read()
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert statuses == [200] * 4
    assert not rest
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()


def _in_progress(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return round(float(text.partition("\nbigr_requests_in_progress ")[2].split()[0])) - 1  # without this one


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--index", "nowhere"], "no index here"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    assert done.exit_code == 1
    assert said in str(done.exception)
