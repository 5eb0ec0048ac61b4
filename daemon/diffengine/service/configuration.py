# SPDX-License-Identifier: GPL-2.0-or-later
"""diffengine.toml: how the daemon is set. docs/service.md has the keys; systemd/diffengine.toml is the default file."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from diffengine.engine import EngineOptions
from diffengine.errors import DiffengineError
from diffengine.settings import CheckedTable, check_whole, engine_options, read_policies, read_toml
from diffengine.settings.checked import MOST_MIB

CONFIGURATION = Path("/etc/diffengine/diffengine.toml")
SOCKET = Path("/run/diffengine/status.sock")
DESCRIBED_IN = "docs/service.md"
# Whoever may change settings may not make them grow without end.
MOST_DOMAINS = 1024
MOST_PORT = 65535
MOST_GRACE_S = 86_400
Values = dict[str, Any]


class ConfigurationError(DiffengineError):
    """Settings that can't be used; the message names keys, values and what is allowed."""

    exit_code = 2


@dataclass(frozen=True)
class Identity:
    """Whom a domain's table means. domid: as the host counts now. uuid, name: "" if the host does not say."""

    domid: int
    uuid: str = ""
    name: str = ""


@dataclass(frozen=True)
class DomainSettings:
    """trust_group: whom it may share and patch with; None: nobody, zero pages excepted. log_dirty: what it writes is
    known from the hypervisor's log, which a save or migration needs for itself. grace_s: left alone for so long after
    its OS began to run."""

    enabled: bool
    trust_group: str | None
    min_resident_mib: float
    log_dirty: bool = False
    grace_s: float = 30.0


NOTHING_SAID = DomainSettings(enabled=False, trust_group=None, min_resident_mib=0.0)


@dataclass(frozen=True)
class MetricsSettings:
    """Where Prometheus reads: a unix socket, or a port of 127.0.0.1; neither: nowhere."""

    path: Path | None = None
    port: int = 0


@dataclass(frozen=True)
class Configuration:
    """Everything that can be set. others: domains without a table. domains: by UUID (lower case) or name. libvirt_uri:
    None: Xen's, where libvirt serves it. min_available_mib: of dom0's memory, below which the store takes nothing more.

    values: what it was read from.
    """

    engine: EngineOptions
    others: DomainSettings
    domains: Mapping[str, DomainSettings]
    socket_path: Path
    socket_group: str
    metrics: MetricsSettings
    libvirt_uri: str | None
    min_available_mib: float
    values: Values = field(compare=False, repr=False)

    def domain(self, identity: Identity) -> DomainSettings:
        """The table by UUID, else by name, else what holds for all others."""
        for key in (identity.uuid.lower(), identity.name):
            if key and key in self.domains:
                return self.domains[key]
        return self.others


def read_configuration(path: Path, seed: int = 0) -> Configuration:
    """Reads and checks a whole file. Raises ConfigurationError. seed: of all the engine's hashes."""
    try:
        values = read_toml(path, ConfigurationError, DESCRIBED_IN)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: no such file; name one with --config, or begin with a copy of systemd/diffengine.toml"
        ) from error
    return configuration(values, seed, str(path))


def configuration(values: Values, seed: int = 0, where: str = "settings") -> Configuration:
    """From values as TOML gives them."""
    return check_whole(where, values, lambda top: _configuration(top, seed), ConfigurationError)


def with_change(current: Configuration, domain: str | None, key: str, value: Any) -> Configuration:
    """The same with one key of [engine], or of a domain's table, set anew; all of it is checked as a file is.

    value: None takes the key out, so that the default holds.
    """
    values = deepcopy(current.values)
    table = values.setdefault("engine", {})
    if domain is not None:
        tables = values.setdefault("domain", {})
        known = {each.lower() if is_uuid(each) else each: each for each in tables}
        wanted = domain.lower() if is_uuid(domain) else domain
        table = tables.setdefault(known.get(wanted, wanted), {})
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
    return configuration(values, current.engine.seed)


def _configuration(top: CheckedTable, seed: int) -> Configuration:
    policies = read_policies(top.table("policies"))
    others = top.table("domains")
    default = _domain(others, NOTHING_SAID, named=False)
    socket, libvirt, dom0 = top.table("socket"), top.table("libvirt"), top.table("dom0")
    path = socket.text("path", str(SOCKET)) or str(SOCKET)
    if not path.startswith("/"):
        socket.refuse("path", "a path that begins with /")
    result = Configuration(
        engine=engine_options(top.table("engine"), policies, seed),
        others=default,
        domains=_domains(top.table("domain"), default),
        socket_path=Path(path),
        socket_group=socket.text("group", "diffengine") or "diffengine",
        metrics=_metrics(top.table("metrics")),
        libvirt_uri=libvirt.text("uri"),
        min_available_mib=dom0.number("min_available_mib", 64, 0, MOST_MIB, " MiB"),
        values=top.values,
    )
    socket.finish()
    libvirt.finish()
    dom0.finish()
    top.finish()
    return result


def _metrics(table: CheckedTable) -> MetricsSettings:
    """From other hosts nothing is to be seen: what is saved tells what guests have in common."""
    text = table.text("listen")
    table.finish()
    if text is None:
        return MetricsSettings()
    host, _, port = text.rpartition(":")
    if text.startswith("unix:/"):
        return MetricsSettings(path=Path(text.removeprefix("unix:")))
    if host == "127.0.0.1" and port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= MOST_PORT:
        return MetricsSettings(port=int(port))
    table.refuse("listen", "unix:/PATH or 127.0.0.1:PORT")
    return MetricsSettings()


def _domains(tables: CheckedTable, default: DomainSettings) -> dict[str, DomainSettings]:
    """One table for each domain: to have one means to be worked on, unless it says otherwise."""
    found: dict[str, DomainSettings] = {}
    if len(tables.values) > MOST_DOMAINS:
        tables.errors.append(f"[domain]: must be at most {MOST_DOMAINS} tables; there are {len(tables.values)}")
        return found
    for name in list(tables.values):
        table = tables.table(name)
        table.where = f'[domain."{name}"]'
        key = name.lower() if is_uuid(name) else name
        if key in found:
            tables.errors.append(f"{table.where}: must be one table for each UUID")
        found[key] = _domain(table, replace(default, enabled=True), named=True)
    return found


def _domain(table: CheckedTable, default: DomainSettings, named: bool) -> DomainSettings:
    settings = DomainSettings(
        enabled=table.flag("enabled", default.enabled),
        trust_group=table.text("trust_group") if named else None,
        min_resident_mib=table.number("min_resident_mib", default.min_resident_mib, 0, MOST_MIB, " MiB"),
        log_dirty=table.flag("log_dirty", default.log_dirty),
        grace_s=table.number("grace_s", default.grace_s, 0, MOST_GRACE_S, " seconds"),
    )
    table.finish()
    return settings


def domain_words(values: Values, where: str) -> Values:
    """Single keys of a domain's table, said elsewhere than in the file: the same. Raises ConfigurationError."""

    def read(table: CheckedTable) -> None:
        table.where = where
        _domain(table, NOTHING_SAID, named=True)

    check_whole("settings", values, read, ConfigurationError)
    return {key: value for key, value in values.items() if value is not None}


def with_words(settings: DomainSettings, words: Values) -> DomainSettings:
    """What was said of single keys holds instead. words: as domain_words() gives them."""
    return replace(settings, **words)


def is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
