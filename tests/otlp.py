"""A collector on loopback: takes OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """What has come: the raw requests, and the spans in them."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)
    status: int = 200

    def take(self, path: str, body: bytes) -> None:
        """Decode one request."""
        self.paths.append(path)
        self.bodies.append(body)
        found = ExportTraceServiceRequest.FromString(body)
        for batch in found.resource_spans:
            self.resources.append(attributes(batch.resource))
            for scope in batch.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> Any:
        """Return the one span of that name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def roots(self) -> list[Any]:
        """Return the spans of whole calls."""
        return [span for span in self.spans if "http.route" in attributes(span)]


def attributes(holder: Any) -> dict[str, Any]:
    """Return a span's or a resource's attributes."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes
    }


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.status == 200:
                collector.take(self.path, body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
