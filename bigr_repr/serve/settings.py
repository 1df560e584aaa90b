"""A server's limits and access rights. Knows nothing of HTTP or models."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigr_repr._typing import PathLike

_SHORTEST_TOKEN: Final = 16
_LONGEST_TOKEN: Final = 4096
LONGEST_SECONDS: Final = 86_400  # a day; the event loop cannot wait forever


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts and how it batches.

    body_bytes: of one request. pixels: of one picture (width x height). images: pictures or codes in one request.
    requests: admitted at once; further ones get status 429. waiting: pictures, searches or photographs in a queue; a
    request that does not fit gets 429. pending_bytes: total size of bodies held at once. neighbors: maximum k.
    seconds: for one request, including its upload, and for a connection to begin one. decode_seconds: for one picture.
    batch: pictures per batch of the network. wait_seconds: how long a picture waits for others while the network is
    free; 0: not at all, because the next batch fills up while it runs.

    Raises ValueError for a number out of range: at least 1, times 0.001 s to a day, wait_seconds from 0.
    """

    body_bytes: int = 16 << 20
    pixels: int = 50_000_000
    images: int = 32
    requests: int = 256
    waiting: int = 1024
    pending_bytes: int = 256 << 20
    neighbors: int = 1000
    seconds: float = 30.0
    decode_seconds: float = 10.0
    batch: int = 32
    wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("seconds"):
                least = 0 if name == "wait_seconds" else 0.001
                if not least <= value <= LONGEST_SECONDS:
                    raise ValueError(f"{name}={value} is outside {least}..{LONGEST_SECONDS}; give a time in seconds")
            elif not value >= 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where a server listens and who may use it.

    host: address to listen on. token: callers must present it; required unless host is a loopback address.
    allowed_hosts: further host names of the server, such as a reverse proxy's. password: requested by HTTP basic
    authentication, with any user name, instead of a token. anyone: whoever can reach the host may use it.

    Raises ValueError for a host with a port, scheme or brackets, for one that is not loopback without any of these, or
    for a short token.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    password: str | None = None
    anyone: bool = False

    def __post_init__(self) -> None:
        if _address(self.host) is None and (found := re.search(r"[:/\[\]]", self.host)):
            raise ValueError(
                f"host={self.host!r} is not an address or a host name, because of its {found[0]!r}: give only the "
                "address, without a scheme or brackets, and its port with --port"
            )
        if self.token is None and self.password is None and not self.anyone and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} lets other machines in, so a token is required: write one of {_SHORTEST_TOKEN} "
                "characters or more to a file and pass it with --token-file"
            )
        if self.token is not None and not (
            _SHORTEST_TOKEN <= len(self.token) <= _LONGEST_TOKEN and self.token.isascii() and self.token.isprintable()
        ):
            raise ValueError(
                f"the token must be {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII characters on one line; it "
                f"has {len(self.token)} characters"
            )

    def allows(self, host: str) -> bool:
        """Whether a request may name this host, without port.

        Names other than the server's own are refused, so that a foreign page cannot reach it by pointing its own name
        at this address (DNS rebinding). Plain IP addresses cannot be redirected.
        """
        name = host.lower().rstrip(".").removeprefix("[").removesuffix("]")
        known = {"localhost", self.host.lower(), *(each.lower() for each in self.allowed_hosts)}
        return name in known or is_loopback(name) or (not is_loopback(self.host) and _address(name) is not None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def read_token(file: PathLike) -> str:
    """The token in a file, without the line end.  Raises OSError, or ValueError for a file that is not text."""
    with Path(file).open("rb") as opened:
        data = opened.read(_LONGEST_TOKEN + 2)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: the token is not ASCII text; write {_SHORTEST_TOKEN} characters or more") from error
