"""A real S3 server on this machine, for tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "pictures"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment that leads to of an S3 server with one bucket, in a process of its own."""
    address, process = _started()
    try:
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        process.terminate()
        process.wait()


def _started() -> tuple[str, subprocess.Popen[bytes]]:
    """A server that has a bucket, and its address. Another one where its port is taken by then."""
    for _ in range(5):
        address = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=60).close()
            except OSError:
                time.sleep(0.05)
            else:
                return address, process
    raise AssertionError("the S3 server does not start")
