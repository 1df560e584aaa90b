"""S3 functions that pyarrow lacks, through boto3 if installed: paged listings, and keys with an empty part.

Objects such as `data//a.jpg`, which pyarrow refuses to read, are read by signed URLs. Credentials and endpoints come
from the usual environment variables and files.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from bigr_repr.system.http import HttpFile

_SECONDS: Final = 6 * 3600  # validity of a URL; reading a tar file may take long


def needs_signing(path: str) -> bool:
    """Whether bucket/key is one that pyarrow refuses."""
    return "//" in path.rstrip("/")


class SignedFileSystem:
    """A read-only file system for bucket/key, as far as ObjectPath needs it.

    endpoint: of a store other than Amazon's. process: connections are not shared with a forked child.

    Raises ImportError without boto3.
    """

    def __init__(self, endpoint: str | None, process: int) -> None:
        self._client = _client(endpoint, process)

    def open_input_file(self, path: str) -> HttpFile:
        """An object opened for reading, with seek() and read_at()."""
        bucket, _, key = path.partition("/")
        url = self._client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, _SECONDS)
        return HttpFile(url, f"s3://{path}")

    def get_file_info(self, path: str) -> Any:
        """Whether there is such an object, its size, and its time."""
        try:
            return self.open_input_file(path).info()
        except FileNotFoundError:
            return SimpleNamespace(is_file=False, type=None, size=0, mtime_ns=0)

    def open_output_stream(self, path: str) -> Any:
        """Raises PermissionError: such keys are read-only."""
        raise PermissionError(f"s3://{path}: keys with an empty part cannot be written; remove the //")


class Page(NamedTuple):
    """A page of a listing, in byte order, with a trailing slash on names that have objects below.

    following: token to request the next page; None: this was the last.
    """

    names: list[str]
    following: str | None


def page_of(path: str, endpoint: str | None, process: int, following: str | None) -> Page:
    """A page of the direct children of bucket/key, at most a thousand names.  Raises ImportError without boto3."""
    bucket, _, key = path.partition("/")
    prefix = f"{key.rstrip('/')}/" if key else ""
    more = {"ContinuationToken": following} if following else {}
    answer = _client(endpoint, process).list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", **more)
    found = [each["Key"] for each in answer.get("Contents", ())]
    found += [each["Prefix"] for each in answer.get("CommonPrefixes", ())]
    names = [name.removeprefix(prefix) for name in found if name != prefix]
    return Page(sorted(names, key=str.encode), answer.get("NextContinuationToken"))


def has_pages(path: str) -> bool:
    """Whether page_of lists bucket/key in order: boto3 is installed, and it is not a directory bucket."""
    ordered = not path.partition("/")[0].endswith("--x-s3")  # the suffix that S3 reserves for directory buckets
    return ordered and importlib.util.find_spec("boto3") is not None


@lru_cache(4)
def _client(endpoint: str | None, process: int) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise ImportError("keys with an empty part (//) are read with boto3: pip install boto3") from None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    style = {"addressing_style": "path" if endpoint else "auto"}
    session = boto3.Session()
    signature = UNSIGNED if session.get_credentials() is None else "s3v4"  # public buckets need none
    return session.client(
        "s3", endpoint_url=endpoint, region_name=region, config=Config(signature_version=signature, s3=style)
    )
