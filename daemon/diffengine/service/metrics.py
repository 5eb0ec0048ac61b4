# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon tells of itself, for Prometheus. docs/service.md has the names: those of docs/socket.md, with units.

Off unless `[metrics] listen` says where. Who connects can only look, as over the status socket.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields

from diffengine.errors import DiffengineError
from diffengine.service.configuration import MetricsSettings
from diffengine.service.server import SocketError, listen
from diffengine.service.snapshot import DomainStatus, Memory, Snapshot, Status

LOG = logging.getLogger("diffengine")
MOST_REQUEST_BYTES = 8192
MOST_CONNECTIONS = 8
# Of one request, however slowly it is written or read.
REQUEST_S = 10.0
US_PER_S = 1_000_000
QUANTILES = {"p50": "0.5", "p99": "0.99"}


class MetricsError(DiffengineError):
    """What is missing for metrics."""


class _Collector:
    """A Prometheus collector: families of the snapshot that there is when it is asked."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[object]:
        snapshot = self._snapshot()
        yield from _status_families(snapshot.status)
        yield from _domain_families(snapshot.domains)


def exposition(snapshot: Callable[[], Snapshot]) -> Callable[[], bytes]:
    """Makes the text that Prometheus reads. Raises MetricsError if prometheus-client is not installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise MetricsError("[metrics] needs the package prometheus-client: pip install diffengine[metrics]") from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))  # type: ignore[arg-type]
    return lambda: bytes(generate_latest(registry))


def _gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> object:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily, name, text, samples)


def _counter(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> object:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily, name, text, samples)


def _filled(
    kind: Callable[..., "object"], name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> object:
    found = list(samples)
    family = kind("diffengine_" + name, text, labels=list(found[0][0]) if found else [])
    for labels, value in found:
        family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
    return family


def _one(value: float) -> list[tuple[dict[str, str], float]]:
    return [({}, float(value))]


def _by(label: str, values: Mapping[str, float]) -> list[tuple[dict[str, str], float]]:
    return [({label: name}, float(value)) for name, value in values.items()]


def _quantiles(values: Mapping[str, float]) -> list[tuple[dict[str, str], float]]:
    return [({"quantile": QUANTILES[name]}, us / US_PER_S) for name, us in values.items()]


def _status_families(status: Status) -> Iterator[object]:
    yield _gauge("info", "Version and kind of host.", [({"version": status.version, "host": status.host}, 1.0)])
    yield _gauge("paused", "1: the whole engine is paused.", _one(status.paused))
    yield _gauge("freeing", "1: memory is being freed for another domain.", _one(status.freeing))
    for field in fields(Memory):
        text = f"memory.{field.name} of status."
        yield _gauge(f"memory_{field.name}_bytes", text, _one(getattr(status.memory, field.name)))
    yield _gauge("saved_by_bytes", "Saved by technique, before costs.", _by("technique", status.saved_by))
    yield _gauge("pages", "Pages of domains that are worked on, by place.", _by("place", status.pages))
    yield _gauge("domains", "Domains on the host.", _one(status.domains))
    yield _gauge("domains_worked_on", "Domains that are worked on.", _one(status.domains_worked_on))
    yield _gauge("evicted_pages", "Pages that are out.", _one(status.evicted_pages))
    yield _counter("evictions", "Pages evicted since the pager began.", _one(status.evictions))
    yield _counter("refaults", "Evicted pages that came back since the pager began.", _one(status.refaults))
    yield _counter("touches", "Watched pages that were touched since the pager began.", _one(status.touches))
    yield _counter("corrupt", "Pages that could not be rebuilt.", _one(status.corrupt))
    yield _counter("sweeps", "Visits to all pages.", _one(status.sweeps))
    yield _counter("cycles", "Sweeps that looked at all hashes.", _one(status.cycles))
    yield _counter("cpu_seconds", "CPU time of the engine.", _one(status.cpu_s))
    yield _gauge("fault_seconds", "A guest's fault, from event to answer.", _quantiles(status.fault_us))
    yield _gauge("rebuild_seconds", "Rebuilding a page.", _quantiles(status.rebuild_us))


def _domain_families(domains: tuple[DomainStatus, ...]) -> Iterator[object]:
    def each(value: Callable[[DomainStatus], float]) -> list[tuple[dict[str, str], float]]:
        return [(_labels(domain), float(value(domain))) for domain in domains]

    def each_by(label: str, values: Callable[[DomainStatus], Mapping[str, int]]) -> list[tuple[dict[str, str], float]]:
        return [
            ({**_labels(domain), label: name}, float(value))
            for domain in domains
            for name, value in values(domain).items()
        ]

    yield _gauge("domain_memory_bytes", "What the domain has.", each(lambda domain: domain.memory_bytes))
    text = "Never evicted below."
    yield _gauge("domain_min_resident_bytes", text, each(lambda domain: domain.min_resident_bytes))
    text = "1 for how it is dealt with: worked_on, or why it is left alone."
    yield _gauge("domain_standing", text, each_by("standing", lambda domain: {domain.standing: 1}))
    text = "Saved by technique, before costs."
    yield _gauge("domain_saved_by_bytes", text, each_by("technique", lambda domain: domain.saved_by))
    yield _gauge("domain_pages", "Pages by place.", each_by("place", lambda domain: domain.pages))
    text = "What kept pages from being saved at the latest sweep."
    yield _gauge("domain_reasons_pages", text, each_by("reason", lambda domain: domain.reasons or {}))
    text = "Evicted pages that came back since the engine took it."
    yield _counter("domain_refaults", text, each(lambda domain: domain.refaults))
    text = "Watched pages that were touched since the engine took it."
    yield _counter("domain_touches", text, each(lambda domain: domain.touches))


def _labels(domain: DomainStatus) -> dict[str, str]:
    return {"domain": str(domain.domid), "uuid": domain.uuid, "name": domain.name}


class MetricsServer:
    """Answers every GET of /metrics, from `start` to `close`, on the control loop."""

    def __init__(self, settings: MetricsSettings, group: str, text: Callable[[], bytes]) -> None:
        self._settings = settings
        self._group = group
        self._text = text
        self._serving = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises SocketError."""
        listening = _listen(self._settings, self._group)
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=MOST_REQUEST_BYTES)

    async def close(self) -> None:
        """Also after a start that failed: what stands at the path is then somebody else's."""
        if self._server is None:
            return
        self._server.close()
        if self._settings.path:
            self._settings.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving += 1
        try:
            if self._serving <= MOST_CONNECTIONS:
                async with asyncio.timeout(REQUEST_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
                    writer.write_eof()
                    # What closes first would take the answer with it.
                    await reader.read()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            pass  # it went, was slow, or sent nonsense
        except Exception:
            LOG.exception("metrics: a defect; please report it")
        finally:
            self._serving -= 1
            with suppress(OSError):
                writer.transport.abort()

    def _answer(self, untrusted_request: bytes) -> bytes:
        words = untrusted_request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] != b"GET":
            return _http("405 Method Not Allowed", b"GET /metrics\n")
        if words[1].split(b"?", 1)[0] not in (b"/metrics", b"/"):
            return _http("404 Not Found", b"GET /metrics\n")
        return _http("200 OK", self._text())


def _http(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    return (head + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n").encode() + body


def _listen(settings: MetricsSettings, group: str) -> socket.socket:
    if settings.path:
        return listen(settings.path, group)
    try:
        return socket.create_server(("127.0.0.1", settings.port))
    except OSError as error:
        raise SocketError(f"127.0.0.1:{settings.port}: {error.strerror}; set another [metrics] listen") from error
