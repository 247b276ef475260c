"""Spans of several processes meet at one collector; a collector that is away costs nothing but its spans."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger
from tests.servers import free_port

NINE = {"run_id", "step_id", "node_id", "attempt", "order_key", "tokens_in", "tokens_out", "latency_ms", "cost_usd"}
WIDTH = 1000


class Collector:
    """Takes spans over OTLP, as a collector does."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                    spans.extend(
                        {
                            "service": service,
                            "name": span.name,
                            "trace": span.trace_id,
                            "id": span.span_id,
                            "parent": span.parent_span_id,
                            "attributes": {a.key: a.value for a in span.attributes},
                        }
                        for scope in resource.scope_spans
                        for span in scope.spans
                    )
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def named(self, kind: str) -> list[dict[str, Any]]:
        return [span for span in list(self.spans) if span["name"].startswith(kind)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_all_nodes_of_all_workers_are_in_one_trace(cluster: Cluster, collector: Collector) -> None:
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    cluster.coordinator(**otel)
    for _ in range(3):
        cluster.worker(**otel)
    run = cluster.client.submit("fan", {"width": WIDTH})
    run.result(PATIENCE_SECONDS)
    cluster.until(lambda: len(collector.named("run")) == 1, "the run's span has come")
    cluster.until(lambda: len(collector.named("node")) >= WIDTH + 2, "all nodes' spans have come")

    # then each node's span has all nine, is in the one trace, and hangs below its step, and that below the run
    nodes, steps, [top] = collector.named("node"), collector.named("step"), collector.named("run")
    assert len(nodes) == WIDTH + 2
    assert all(span["attributes"].keys() >= NINE for span in nodes)
    assert len({span["trace"] for span in collector.spans}) == 1
    assert {span["parent"] for span in steps} == {top["id"]}
    assert {span["parent"] for span in nodes} <= {span["id"] for span in steps}
    keys = [span["attributes"]["order_key"].string_value for span in nodes if span["name"] == "node leaf"]
    assert len(set(keys)) == WIDTH
    assert len({span["attributes"]["worker"].string_value for span in nodes}) == 3
    assert Counter(span["service"] for span in collector.spans).keys() == {"lockstep-coordinator", "lockstep-worker"}


def test_a_collector_that_is_away_costs_nothing_but_its_spans(cluster: Cluster, ledger: Ledger) -> None:
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    coordinator, worker = cluster.coordinator(**otel), cluster.worker(**otel)
    run = cluster.client.submit("chain", {"steps": 20, "ledger": str(ledger)})
    assert run.result(PATIENCE_SECONDS)["n"] == 20
    assert len(ledger) == 20
    # and nobody waits long for it in the end
    began = time.monotonic()
    cluster.terminate(worker)
    cluster.terminate(coordinator)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
