"""A small hub on loopback: repositories in memory, the routes that publishing and fetching a model take."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token_of_the_double"


@dataclass
class Hub:
    """Repositories: {name: {commit: {path: content}}}; `main` is the newest commit. What `broken` names fails once."""

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def at(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files."""
        found = self.commits.get(repository, [])
        if revision == "main":
            return found[-1] if found else None
        return next(((sha, files) for sha, files in found if sha.startswith(revision)), None)


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _say(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        content = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path}")
        for part in list(self.hub.broken):
            if part in f"{self.command} {path}":
                self.hub.broken.remove(part)
                return self._say(400, {"error": "broken off"})
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return answer(self, body, **match.groupdict())
        return self._say(404, {"error": f"no route {self.command} {path}"}, X_Error_Code="EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = _route  # noqa: N815

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._say(401, {"error": "Invalid username or password."})
        return False

    def create(self, body: bytes) -> None:
        if self._may_write():
            made = json.loads(body)
            name = f"{made.get('organization') or 'user'}/{made['name']}"
            self.hub.commits.setdefault(name, [("0" * 40, {})])
            self._say(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def validate(self, body: bytes) -> None:
        self._say(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, rev: str) -> None:
        if self._may_write():
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._say(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}
            objects.append(each if each["oid"] in self.hub.objects else {**each, "actions": upload})
        self._say(200, {"objects": objects, "transfer": "basic"}, Content_Type="application/vnd.git-lfs+json")

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._say(200)

    def commit(self, body: bytes, repo: str, rev: str) -> None:
        if not self._may_write():
            return
        files = dict(self.hub.commits[repo][-1][1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.objects[entry["value"]["oid"]]
        sha = hashlib.sha1(repr(sorted((name, hashlib.sha256(b).hexdigest()) for name, b in files.items())).encode())
        self.hub.commits[repo].append((sha.hexdigest(), files))
        self._say(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha.hexdigest()}", "commitOid": sha.hexdigest()})

    def _found(self, repo: str, rev: str) -> tuple[str, dict[str, bytes]] | None:
        if repo in self.hub.gated:
            self._say(403, {"error": "gated"}, X_Error_Code="GatedRepo")
            return None
        found = self.hub.at(repo, rev)
        if found is None:
            code = "RevisionNotFound" if repo in self.hub.commits else "RepoNotFound"
            self._say(404, {"error": code}, X_Error_Code=code)
        return found

    def info(self, body: bytes, repo: str, rev: str = "main") -> None:
        if (found := self._found(repo, rev)) is not None:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in found[1].items()]
            self._say(200, {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, rev: str) -> None:
        if (found := self._found(repo, rev)) is not None:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in found[1].items()
            ]
            self._say(200, entries)  # type: ignore[arg-type]

    def file(self, body: bytes, repo: str, rev: str, file: str) -> None:
        if (found := self._found(repo, rev)) is None:
            return
        if file not in found[1]:
            self._say(404, {"error": "no file"}, X_Error_Code="EntryNotFound")
            return
        content = found[1][file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._say(200, content, ETag=etag, X_Repo_Commit=found[0], Accept_Ranges="bytes")


_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", _Answers.create),
    ("POST", r"/api/validate-yaml", _Answers.validate),
    ("POST", rf"/api/models/{_NAME}/preupload/(?P<rev>.+)", _Answers.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Answers.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Answers.store),
    ("POST", rf"/api/models/{_NAME}/commit/(?P<rev>.+)", _Answers.commit),
    ("GET", rf"/api/models/{_NAME}/revision/(?P<rev>.+)", _Answers.info),
    ("GET", rf"/api/models/{_NAME}/tree/(?P<rev>[^/]+).*", _Answers.tree),
    ("GET", rf"/api/models/{_NAME}", _Answers.info),
    ("GET HEAD", rf"/{_NAME}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", _Answers.file),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    handler = type("Answers", (_Answers,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
