"""Checks for a Ray cluster and connects to it. Knows nothing of the work that is done there."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def require_cluster(address: str | None) -> None:
    """Fail early if Ray or the cluster is missing.

    address: as in connected. Raises ImportError, which says what to install, without Ray; ConnectionError if nothing
    listens at the address, where Ray itself would wait for minutes.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray, which is not installed: pip install 'bigr-repr[ray]'") from error
    if not ray.is_initialized():
        _reach(_address(address))


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster; if it is opened here, it ends with the block.

    address: as in ray.init; None: RAY_ADDRESS, or else a cluster of only this machine, for this block.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(address)
    own = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield
    finally:
        ray.shutdown()


def last_line(error: Exception) -> str:
    """Ray's message about a lost process, in one line without colors."""
    return re.sub(r"\x1b\[\d+m", "", str(error).strip().splitlines()[-1])[:200]


def _address(given: str | None) -> str:
    return given or os.environ.get("RAY_ADDRESS") or "local"


def _reach(address: str) -> None:
    if found := re.fullmatch(r"(?:ray://)?\[?([^\]]+?)\]?:(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        except OSError as error:
            raise ConnectionError(
                f"ray_address={address}: no Ray cluster answers ({error}); start one with: ray start --head"
            ) from error
