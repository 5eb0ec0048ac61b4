# SPDX-License-Identifier: GPL-2.0-or-later
"""What Prometheus reads of a daemon that works, and whether the dashboard asks for what there is."""

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon_host import Loop, Parts, daemon_parts, loop
from diffengine.service.configuration import ConfigurationError, MetricsSettings, configuration
from diffengine.service.metrics import MOST_CONNECTIONS, MetricsServer, exposition
from diffengine.service.server import SocketError

DOCS = Path(__file__).parents[2] / "docs"
DEADLINE_S = 240.0
Samples = dict[str, list[tuple[dict[str, str], float]]]
# What Prometheus and Grafana add themselves.
ADDED_LABELS = {"instance", "job"}


@pytest.fixture(scope="module")
def on() -> Iterator[Loop]:
    with loop() as made:
        yield made


@pytest.fixture(scope="module")
def parts(on: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with daemon_parts(tmp_path_factory.mktemp("socket") / "status.sock", on) as made:
        yield made


@contextmanager
def served(on: Loop, parts: Parts, settings: MetricsSettings) -> Iterator[None]:
    server = MetricsServer(settings, "no-such-group", exposition(lambda: parts.worker.snapshot))
    on.run(server.start())
    try:
        yield
    finally:
        on.run(server.close())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def samples_of(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.fixture(scope="module")
def samples(on: Loop, parts: Parts) -> Samples:
    """After a whole sweep, so that there are reasons, and with pages that are out."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (parts.worker.snapshot.domains[0].reasons and parts.worker.snapshot.status.evicted_pages):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        parts.worker.submit(lambda operations: operations.refresh()).result(60)
    parts.worker.submit(lambda operations: operations.pause(None)).result(60)
    port = free_port()
    with (
        served(on, parts, MetricsSettings(port=port)),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return samples_of(answer.read().decode())


def test_metrics_say_what_the_status_socket_says(parts: Parts, samples: Samples) -> None:
    snapshot = parts.worker.snapshot
    memory = samples["diffengine_memory_saved_bytes"][0][1]
    assert memory == snapshot.status.memory.saved
    assert samples["diffengine_info"][0][0] == {"version": snapshot.status.version, "host": "machine"}
    assert samples["diffengine_paused"] == [({}, 1.0)]
    assert samples["diffengine_evictions_total"][0][1] == snapshot.status.evictions > 0
    by_technique = {labels["technique"]: value for labels, value in samples["diffengine_saved_by_bytes"]}
    assert by_technique == snapshot.status.saved_by
    for labels, value in samples["diffengine_domain_memory_bytes"]:
        assert labels["name"] in ("web", "db") and value == 1100 * 4096
    reasons = {labels["reason"] for labels, _ in samples["diffengine_domain_reasons_pages"]}
    assert reasons == set().union(*(domain.reasons or {} for domain in snapshot.domains))
    standing = [labels["standing"] for labels, _ in samples["diffengine_domain_standing"]]
    assert standing == [domain.standing for domain in snapshot.domains]


def test_every_metric_is_described(samples: Samples) -> None:
    described = (DOCS / "service.md").read_text().split("## Metrics")[1]
    for name in samples:
        short = re.sub(r"^diffengine_(memory_)?", "", name).removesuffix("_bytes").removesuffix("_total")
        assert name in described or f"`{short}`" in described, name


def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(samples: Samples) -> None:
    dashboard = json.loads((DOCS / "grafana/diffengine.json").read_text())
    queries = expressions(dashboard)
    assert len(queries) > 15
    for query in queries:
        names = re.findall(r"\bdiffengine_\w+", query)
        assert names, query
        known = ADDED_LABELS.union(*(samples[name][0][0] for name in names))
        used = re.findall(r"(\w+)\s*=~?\s*\"", query) + re.findall(r"label_values\(\w+, (\w+)\)", query)
        for listed in re.findall(r"by \(([^)]*)\)", query):
            used += [label.strip() for label in listed.split(",")]
        assert set(used) <= known, query
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            name = re.findall(r"\bdiffengine_\w+", target["expr"])[0]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(samples[name][0][0]), target


def test_a_unix_socket_serves_it_and_nonsense_harms_nobody(on: Loop, parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with served(on, parts, MetricsSettings(path=path)):
        assert path.stat().st_mode & 0o777 == 0o660
        idle = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(MOST_CONNECTIONS - 1)]
        try:
            for each in idle:
                each.connect(str(path))
            assert ask(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
            idle.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            idle[-1].connect(str(path))
            said = b""
            with suppress(OSError):  # it may hang up before it is asked
                said = ask(path, b"GET /metrics HTTP/1.1\r\n\r\n")
            assert said == b""
        finally:
            for each in idle:
                each.close()
        # The server hears of their end when it gets to it.
        deadline_s = time.monotonic() + DEADLINE_S
        while not ask(path, b"GET / HTTP/1.1\r\n\r\n"):
            assert time.monotonic() < deadline_s
        assert ask(path, b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405")
        assert ask(path, b"GET /../etc/passwd HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")
        assert ask(path, b"\xff\r\n\r\n").startswith(b"HTTP/1.1 405")
        with suppress(OSError):  # it may hang up before all of that is sent
            assert ask(path, b"x" * 100_000) == b""
        assert ask(path, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert not path.exists()


def test_it_listens_only_where_nobody_from_outside_comes() -> None:
    assert configuration({}).metrics == MetricsSettings()
    assert configuration({"metrics": {"listen": "127.0.0.1:9741"}}).metrics.port == 9741
    assert configuration({"metrics": {"listen": "unix:/run/x"}}).metrics.path == Path("/run/x")
    for wrong in ("0.0.0.0:9741", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:", ":9741", "unix:x", "x", 3):
        with pytest.raises(ConfigurationError, match=r"\[metrics\] listen"):
            configuration({"metrics": {"listen": wrong}})


def test_a_place_that_cannot_be_had_is_said_and_what_is_there_stays(on: Loop, parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    text = exposition(lambda: parts.worker.snapshot)
    with served(on, parts, MetricsSettings(path=path)):
        second = MetricsServer(MetricsSettings(path=tmp_path / "nowhere" / "metrics.sock"), "no-such-group", text)
        with pytest.raises(SocketError, match="nowhere"):
            on.run(second.start())
        on.run(second.close())
        second = MetricsServer(MetricsSettings(path=path), "no-such-group", text)
        with pytest.raises(SocketError):
            on.run(second.start())
        on.run(second.close())
        assert ask(path, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
