"""File systems for URLs, pyarrow's, fsspec's and our own, and their errors in one line.

Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from bigr_repr.system.http import HttpFileSystem, without_password
from bigr_repr.system.signed import SignedFileSystem, needs_signing

_CONNECT, _REQUEST = 5.0, 10.0  # seconds until there is a connection; seconds without a byte
_TIMES = ("mtime", "LastModified", "last_modified", "created")  # memory:// makes an object anew each time
_ATTEMPTS = 3  # an unreachable server is an error after half a minute


def open_url(url: str) -> tuple[Any, str]:
    """File system and key of a URL."""
    scheme, _, rest = url.partition("://")
    scheme, process = scheme.lower(), os.getpid()  # connections are not shared with a forked child
    if scheme == "s3" and needs_signing(rest):
        return SignedFileSystem(os.environ.get("AWS_ENDPOINT_URL"), process), rest
    if scheme == "s3":
        return _open_s3(rest.partition("/")[0], os.environ.get("AWS_ENDPOINT_URL"), process), rest
    if scheme in ("gs", "gcs"):
        return _open_gcs(process), rest
    if scheme in ("http", "https"):
        return HttpFileSystem(), url
    return _open_fsspec(scheme, process), rest if scheme == "memory" else url


@lru_cache(32)
def _open_s3(bucket: str, endpoint: str | None, process: int) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    if not bucket:
        raise ValueError("s3:// names no bucket; write s3://bucket/key")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = resolve_s3_region(bucket)
    scheme, _, server = (endpoint or "").rpartition("://")
    return S3FileSystem(
        region=region or "us-east-1", endpoint_override=server.rstrip("/") or None, scheme=scheme or None,
        connect_timeout=_CONNECT, request_timeout=_REQUEST, allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )  # fmt: skip


@lru_cache(1)
def _open_gcs(process: int) -> Any:
    from pyarrow.fs import GcsFileSystem

    return GcsFileSystem(retry_time_limit=timedelta(seconds=_REQUEST))


@lru_cache(8)
def _open_fsspec(scheme: str, process: int) -> Any:
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    class TimedHandler(FSSpecHandler):  # type: ignore[misc]
        """pyarrow's handler, which knows only one of the names that file systems give to an object's time."""

        @staticmethod
        def _create_file_info(path: str, info: dict[str, Any]) -> Any:
            times = (info.get(name) for name in _TIMES)
            time = next((each for each in times if isinstance(each, datetime | float | int)), None)
            return FSSpecHandler._create_file_info(path, {**info, "mtime": time})

    return PyFileSystem(TimedHandler(fsspec.filesystem(scheme)))


# Errors of file systems, and their remedies.
_REMEDIES = (
    (r"NO_SUCH_BUCKET|NoSuchBucket", FileNotFoundError, "no such bucket; create it first"),
    (r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|[Cc]redential"
     r"|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden|HTTP status 401|authenticat",
     PermissionError, "access refused; check the store's credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
     "GOOGLE_APPLICATION_CREDENTIALS) and the bucket's policy"),
    (r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|[Tt]imed? ?out"
     r"|INTERNAL_FAILURE|HTTP status 5\d\d|Could not connect|Connection was closed|InternalError|SlowDown"
     r"|ServiceUnavailable",
     ConnectionError, "the server does not answer; check AWS_ENDPOINT_URL and the network"),
)  # fmt: skip


class StoreError(OSError):
    """An error of a store or its library that is not one of the usual kinds."""


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Report in one line what went wrong with a URL, without any password in it."""
    try:
        yield
    except Exception as error:  # each file system has errors of its own
        said, url = without_password(" ".join(str(error).split())), without_password(url)
        if said.startswith(url):
            if said == " ".join(str(error).split()):
                raise
            raise type(error)(said) from None
        for pattern, kind, remedy in _REMEDIES:
            if re.search(pattern, said):
                raise kind(f"{url}: {remedy} ({_cause(said)})") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{url}: no such object") from error
        raise (ValueError if isinstance(error, ValueError | ImportError) else StoreError)(
            f"{url}: {said[:300]}"
        ) from error


def _cause(said: str) -> str:
    """The informative part of an AWS error."""
    found = re.search(r"AWS Error .*", said)
    return (found.group() if found else said)[:200]
