"""What a large file costs a worker: its memory before, at most and after, and the time it takes.

    python -m tests.load.upload_bench [MiB]

The file goes up and comes down again through one worker, over loopback, into a local folder.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.load import targets

LIMIT = 120  # seconds for one step
PIECE = os.urandom(1024 * 1024)
BOUNDARY = "0123456789abcdef"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def pieces(count: int) -> Iterator[bytes]:
    """Yield the form, a MiB at a time."""
    yield HEAD
    for _ in range(count):
        yield PIECE
    yield TAIL


def ask(port: int, key: str, method: str, path: str, **more: Any) -> http.client.HTTPResponse:
    """Send one request and return the answer, its body unread."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    headers = {"Authorization": f"Bearer {key}"} | more.pop("headers", {})
    connection.request(method, path, headers=headers, **more)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return answer


def upload(port: int, key: str, count: int) -> str:
    """Upload a file of so many MiB; return its id."""
    length = str(len(HEAD) + count * len(PIECE) + len(TAIL))
    headers = {"Content-Type": FORM, "Content-Length": length}
    answer = ask(port, key, "POST", "/v1/files", body=pieces(count), headers=headers)
    made = json.loads(answer.read())
    assert made["bytes"] == count * len(PIECE)
    return str(made["id"])


def download(port: int, key: str, file_id: str, count: int) -> None:
    """Download it, and compare."""
    found, expected = hashlib.sha256(), hashlib.sha256()
    answer = ask(port, key, "GET", f"/v1/files/{file_id}/content")
    while piece := answer.read(1024 * 1024):
        found.update(piece)
    for _ in range(count):
        expected.update(PIECE)
    assert found.digest() == expected.digest()


def measured(worker: targets.Target, act: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Act; return what came of it, and the figures of the row."""
    before = worker.rss()
    worker.forget_peak()
    began, cpu = time.perf_counter(), worker.cpu()
    result = act()
    took, cpu = time.perf_counter() - began, worker.cpu() - cpu
    figures = (before, worker.peak(), worker.rss(), took, cpu)
    return result, [f"{figure:.1f}" for figure in figures]


def main(count: int) -> None:
    """Measure, print one table."""
    table = Table(title=f"One file of {count} MiB through one worker")
    for column in ("way", "RSS before, MB", "at most", "after", "seconds", "CPU seconds"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with (
        targets.simulator() as ollama,
        targets.installation() as (env, key),
        targets.gateway("one", env, ollama, max_file_bytes=count << 20) as one,
    ):
        download(one.port, key, upload(one.port, key, 1), 1)  # what is loaded at first use
        file_id, row = measured(one, lambda: upload(one.port, key, count))
        table.add_row("up", *row)
        _, row = measured(one, lambda: download(one.port, key, file_id, count))
        table.add_row("down", *row)
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
