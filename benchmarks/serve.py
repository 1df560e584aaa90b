"""The server under load, compared with extracting the same features in one process: lost and wrong answers, and speed.

    python benchmarks/serve.py --root data

Data: --pictures pictures of tinyimagenet-val.parquet in --root.

`bigr-repr serve` runs as a separate process. 64 clients on loopback send one picture per request: three requests to
/v1/embeddings for every one to /search. One hostile request is sent for every hundred others. Halfway through, the
index folder is replaced by one with other ids. After the load every answer is checked: vectors against
extract_features, and hits against the index state that the answer names. The server's rate in pictures per second is
compared with extract_features on the same files, run before and after in the same process. It is given in wall time,
in which the clients use part of the same cores (the record states how much), and in processor time.

Writes benchmarks/results/serve.json. Expected: 0 lost, 0 wrong, a 4xx for every hostile request, at least 0.85 times
the rate of extract_features, and flat resident memory. Four minutes on 2 cores with --requests 10000; --requests 500 is
a smoke test.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import record
from http_load import Answer, load, post

import bigr_repr as br
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.retrieval import build_index
from bigr_repr.system.threads import cores

LAYER, NEIGHBORS = 12, 10
TOLERANCE = 1e-4  # per entry of a vector: rounding depends on the batch
HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 8
HOSTILE: list[tuple[str, str, bytes, dict[str, str]]] = [  # name, path, body, headers
    ("not JSON", "/v1/embeddings", b"\xff\xfe{", {}),
    ("nested", "/search", b"[" * 100_000, {}),
    ("address", "/v1/embeddings", b'{"input": "http://169.254.169.254/"}', {}),
    ("local file", "/v1/embeddings", b'{"input": "file:///etc/hostname"}', {}),
    ("not base64", "/codes", b'{"input": "\\u0000%%"}', {}),
    ("no picture", "/codes", json.dumps({"input": base64.b64encode(bytes(5000)).decode()}).encode(), {}),
    ("huge header", "/codes", json.dumps({"input": base64.b64encode(HUGE).decode()}).encode(), {}),
    ("body too large", "/codes", b" " * (17 << 20), {}),
    ("too many", "/codes", json.dumps({"input": ["AAAA"] * 5000}).encode(), {}),
    ("huge k", "/search", b'{"row": 0, "k": 1000000000000}', {}),
    ("no row", "/search", b'{"row": 99999999999999999999}', {}),
    ("layer", "/v1/embeddings", b'{"input": "AAAA", "layer": 99}', {}),
    ("foreign host", "/search", b'{"row": 0}', {"Host": "evil.example"}),
    ("foreign page", "/search", b'{"row": 0}', {"Origin": "http://evil.example"}),
    ("climbing", "/static/../../../../etc/hostname", b"", {}),
]  # fmt: skip


@dataclass
class Tally:
    """What the clients observed."""

    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hostile: Counter[str] = field(default_factory=Counter)


class Rate(NamedTuple):
    """Pictures per second of wall time and of processor time; the latter also holds on a busy machine."""

    clock: float
    processor: float

    def rounded(self) -> dict[str, float]:
        """Rounded for the record."""
        return {"clock": round(self.clock, 1), "processor": round(self.processor, 1)}


class Expected:
    """The right answers. vectors: from extract_features; states: ids and distances per picture, of both indexes."""

    def __init__(self, vectors: Any, states: dict[str, Any]) -> None:
        self.vectors, self.states = vectors, states

    def check(self, number: int, path: str, answer: Any) -> str | None:
        """Describe what is wrong with an answer, or return None."""
        if path == "/v1/embeddings":
            off = np.abs(np.array(answer["data"][0]["embedding"], np.float32) - self.vectors[number]).max()
            return None if off <= TOLERANCE else f"vector {number} is off by {off}"
        wanted = self.states["new" if str(answer["hits"][0]["id"]).startswith("new/") else "old"]
        found = ([hit["id"] for hit in answer["hits"]], [hit["distance"] for hit in answer["hits"]])
        return None if found == wanted[number] else f"hits of {number}: {found}, not {wanted[number]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with tinyimagenet-val.parquet")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=1000, help="number of different pictures")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--note", help="note for the record, such as other load on the machine")
    options = parser.parse_args()
    pre = record.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        results = run(pre, options, Path(folder))
    record.write("serve", results, pre)


def run(pre: br.Pretrained, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Prepare, measure the library, put the server under load, and measure the library again."""
    say("pictures and indexes")
    files = write_pictures(options.root, work / "pictures", options.pictures)
    br.embed_images(work / "pictures", work / "embeddings", model=pre, layers=[LAYER], codes=True)
    states = {}
    for name in ("old", "new"):
        index = build_index(work / "embeddings", work / name, binarizer="bits", vectors=None)
        if name == "new":
            ids = [f"new/{id}" for id in index.ids.to_pylist()]
            index = br.HammingIndex.load(work / name)
            index.rows = type(index.rows)(ids=ids_of(ids), codes=index.rows.codes)
            index.save(work / name)
        found = index.search(index.rows.codes, NEIGHBORS)
        states[name] = [(list(a), [float(b) for b in d]) for a, d in zip(found.ids, found.distances, strict=True)]
    say("extract_features")
    before, vectors = library_rate(pre, files)
    say("the server")
    with Server(work, options.model) as server:
        load = drive(server, files, Expected(vectors, states), options, work)
    say("extract_features again")
    after, _ = library_rate(pre, files)
    library = Rate(*(sum(values) / 2 for values in zip(before, after, strict=True)))
    rate: Rate = load.pop("rate")
    ratios = {"clock": rate.clock / library.clock, "processor": rate.processor / library.processor}
    return {
        "note": options.note, "clients": options.clients, "pictures": len(files),
        "library_pictures_per_second": {"before": before.rounded(), "after": after.rounded()},
        "server_pictures_per_second": rate.rounded(),
        "ratio": {name: round(value, 3) for name, value in ratios.items()}, **load,
    }  # fmt: skip


def say(text: str) -> None:
    """Report progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def write_pictures(root: Path, folder: Path, count: int) -> list[Path]:
    """Write evenly spaced pictures of Tiny-ImageNet's validation set as files."""
    table = pq.read_table(root / "tinyimagenet-val.parquet", columns=["image"])["image"]
    folder.mkdir()
    files = []
    for number in range(count):
        value = table[number * len(table) // count].as_py()
        files.append(folder / f"{number:05d}.jpg")
        files[-1].write_bytes(value["bytes"] if isinstance(value, dict) else value)
    return files


def ids_of(ids: list[str]) -> Any:
    """Ids in the type that an index holds."""
    import pyarrow as pa

    return pa.array(ids, pa.large_string())


def library_rate(pre: br.Pretrained, files: list[Path]) -> tuple[Rate, Any]:
    """The rate of extract_features on files in this process, and its vectors."""
    br.extract_features(files[:64], model=pre, layer=LAYER)
    start, used = time.perf_counter(), time.process_time()
    vectors = br.extract_features(files, model=pre, layer=LAYER)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return Rate(len(files) / seconds, len(files) / used), vectors


class Server:
    """`bigr-repr serve` on a free port, with its own index folder."""

    def __init__(self, work: Path, model: str) -> None:
        self.index = work / "index"
        copy_index(work / "old", self.index)
        command = [sys.executable, "-m", "bigr_repr_cli", "serve", "--port", "0", "--model", model, "--timeout", "300"]
        command += ["--index", str(self.index), "--images", str(work / "pictures")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Server:
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if "http://" not in line:
            raise SystemExit(f"the server did not start: {line}{self.process.stderr.read()}")
        self.port = int(line.split("http://")[1].split(";")[0].rpartition(":")[2])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def megabytes(self) -> float:
        """Resident memory of the process and its children."""
        return sum(self._each(lambda folder: int(_field(folder / "status", "VmRSS:")) / 1024))

    def processor_seconds(self) -> float:
        """Processor time of the process and its children so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(self._each(lambda folder: sum(map(int, _stat(folder)[11:13])) / ticks))

    def _each(self, read: Callable[[Path], float]) -> list[float]:
        found = []
        for pid in [str(self.process.pid), *self._children()]:
            with contextlib.suppress(OSError, IndexError):  # a process that has just ended
                found.append(read(Path("/proc") / pid))
        return found

    def _children(self) -> list[str]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [pid for task in tasks for pid in (task / "children").read_text().split()]


def _field(file: Path, name: str) -> str:
    return file.read_text().split(name)[1].split()[0]


def _stat(folder: Path) -> list[str]:
    return (folder / "stat").read_text().rpartition(")")[2].split()


def copy_index(source: Path, target: Path) -> None:
    """Save an index over one that may be in use."""
    br.HammingIndex.load(source).save(target)


def drive(server: Server, files: list[Path], expected: Expected, options: argparse.Namespace, work: Path) -> Any:
    """Send all requests, replace the index halfway, and check the answers once all have arrived."""
    requests, answers = prepared(files), list[Answer]()
    memory: list[tuple[float, int, float]] = []
    finished = threading.Event()
    tally = Tally()

    def watch() -> None:
        swapped, asked, last = False, 0, False
        while not last:
            last, done = finished.wait(0.25), len(answers)
            memory.append((time.perf_counter() - start, done, server.megabytes()))
            while asked * 100 + 50 <= done:
                _hostile(server.port, asked % len(HOSTILE), tally)
                asked += 1
            if not swapped and done > options.requests / 2:
                copy_index(work / "new", server.index)
                swapped = True
                say(f"the index is replaced after {done} answers")

    list(load(server.port, range(64), requests, options.clients))  # warms up
    start, used, own = time.perf_counter(), server.processor_seconds(), time.process_time()
    watcher = threading.Thread(target=watch)
    watcher.start()
    for answer in load(server.port, range(options.requests), requests, options.clients):
        answers.append(answer)
    seconds, used, own = time.perf_counter() - start, server.processor_seconds() - used, time.process_time() - own
    finished.set()
    watcher.join()
    judge(answers, expected, len(files), tally)
    rate = Rate(len(tally.seconds) / seconds, len(tally.seconds) / used)
    shares = {"server": used / seconds / cores(), "clients": own / seconds / cores()}
    return {
        "rate": rate, "share_of_all_cores": {name: round(share, 3) for name, share in shares.items()},
        **summary(tally, memory, seconds, options.requests),
    }  # fmt: skip


def asked(number: int, pictures: int) -> tuple[str, int]:
    """The path of a request, and the number of its picture."""
    return "/search" if number % 4 == 3 else "/v1/embeddings", number % pictures


def prepared(files: list[Path]) -> Callable[[int], bytes]:
    """Prepare all requests before the load. Returns a function from a number to its request."""
    pictures = [base64.b64encode(file.read_bytes()).decode() for file in files]
    ready = {
        "/search": [post("/search", json.dumps({"image": text, "k": NEIGHBORS}).encode()) for text in pictures],
        "/v1/embeddings": [post("/v1/embeddings", json.dumps({"input": text}).encode()) for text in pictures],
    }

    def request_of(number: int) -> bytes:
        path, which = asked(number, len(files))
        return ready[path][which]

    return request_of


def judge(answers: list[Answer], expected: Expected, pictures: int, tally: Tally) -> None:
    """Check every answer, and tally the results."""
    for answer in answers:
        path, which = asked(answer.number, pictures)
        if answer.status != 200:
            tally.lost.append(f"{answer.status}: {answer.body[:200]!r}")
            continue
        tally.seconds.append(answer.seconds)
        found = json.loads(answer.body)
        tally.versions[found.get("version", "none")] += 1
        if problem := expected.check(which, path, found):
            tally.wrong.append(problem)


def _hostile(port: int, kind: int, tally: Tally) -> None:
    name, path, body, headers = HOSTILE[kind]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        tally.hostile[f"{name}: {type(error).__name__}"] += 1
    else:
        tally.hostile[f"{name}: {status}"] += 1
    finally:
        connection.close()


def summary(tally: Tally, memory: list[tuple[float, int, float]], seconds: float, requests: int) -> dict[str, Any]:
    """The results of the load, for the record."""
    later = memory[len(memory) // 5 :]  # after the first fifth: allocators and decoders have started
    slope = float(np.polyfit([done for _, done, _ in later], [size for *_, size in later], 1)[0]) * 1000
    refused = sum(count for name, count in tally.hostile.items() if name.rpartition(": ")[2].startswith("4"))
    return {
        "requests": requests, "answered": len(tally.seconds), "seconds": round(seconds, 2),
        "lost": len(tally.lost), "wrong": len(tally.wrong), "examples": [*tally.lost[:3], *tally.wrong[:3]],
        "hostile": sum(tally.hostile.values()), "hostile_answered_4xx": refused,
        "hostile_kinds": dict(sorted(tally.hostile.items())), "index_versions": len(tally.versions) - 1,
        "p50_ms": round(1000 * float(np.percentile(tally.seconds, 50)), 1),
        "p99_ms": round(1000 * float(np.percentile(tally.seconds, 99)), 1),
        "resident_mb": {"first": round(memory[0][2]), "last": round(memory[-1][2])},
        "resident_mb_per_1000_requests": round(slope, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
