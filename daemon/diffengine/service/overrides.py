# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that hold instead of the configuration's while they are said elsewhere: key by key, each checked before it
is used. A key whose value is wrong keeps the value that it had before. Pure functions.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from diffengine.service.configuration import (
    Configuration,
    ConfigurationError,
    Values,
    configuration,
    domain_words,
    is_uuid,
)

# Tables of the whole host that may be overridden; the rest is read when the daemon starts.
HOST_TABLES = ("engine", "domains")


@dataclass(frozen=True, order=True)
class Place:
    """A key. table: one of HOST_TABLES, or "domain" with the UUID of one."""

    table: str
    key: str
    uuid: str = ""


@dataclass(frozen=True)
class Overrides:
    """held: values in use. configuration: the file's with those of the whole host. words: single keys of domains, by
    UUID in lower case. refused: why a key's value is not in use."""

    configuration: Configuration
    held: Mapping[Place, Any] = field(default_factory=dict)
    words: Mapping[str, Values] = field(default_factory=dict)
    refused: Mapping[Place, str] = field(default_factory=dict)


def settle(base: Configuration, held: Mapping[Place, Any], wanted: Mapping[Place, Any]) -> Overrides:
    """The wanted values over the base, as far as they are right. held: what was in use before.

    Raises ConfigurationError if what is held does not go with the base.
    """
    of_host = {place: value for place, value in wanted.items() if place.table in HOST_TABLES}
    held_host, merged, refused = _settle_host(base, held, of_host)
    held_domains: dict[Place, Any] = {}
    for place, value in wanted.items():
        if place.table in HOST_TABLES:
            continue
        why = _wrong_in_domain(place, value)
        if not why:
            held_domains[place] = value
            continue
        refused[place] = why
        if place in held:
            held_domains[place] = held[place]
    words: dict[str, Values] = {}
    for place, value in held_domains.items():
        words.setdefault(place.uuid.lower(), {})[place.key] = value
    return Overrides(merged, held_host | held_domains, words, refused)


def _settle_host(
    base: Configuration, held: Mapping[Place, Any], wanted: Mapping[Place, Any]
) -> tuple[dict[Place, Any], Configuration, dict[Place, str]]:
    """All at once, if all of them are right; else one by one, again while that helps: two watermarks may need each
    other."""
    try:
        return dict(wanted), _merged(base, wanted), {}
    except ConfigurationError:
        pass
    taken = {place: held[place] for place in wanted if place in held}
    merged = _merged(base, taken)
    left = {place: value for place, value in sorted(wanted.items()) if place not in taken or taken[place] != value}
    refused: dict[Place, str] = {}
    while left:
        refused = {}
        for place, value in left.items():
            try:
                merged = _merged(base, taken | {place: value})
            except ConfigurationError as error:
                refused[place] = str(error)
            else:
                taken[place] = value
        if len(refused) == len(left):
            break
        left = {place: left[place] for place in refused}
    return taken, merged, refused


def _merged(base: Configuration, overrides: Mapping[Place, Any]) -> Configuration:
    if not overrides:
        return base
    values = deepcopy(base.values)
    for place, value in overrides.items():
        values.setdefault(place.table, {})[place.key] = value
    return configuration(values, base.engine.seed)


def _wrong_in_domain(place: Place, value: Any) -> str:
    """Why a domain's key can't have the value; "" if it can."""
    if not is_uuid(place.uuid):
        return f"{place.uuid}: must be a domain's UUID"
    try:
        domain_words({place.key: value}, f'[domain."{place.uuid}"]')
    except ConfigurationError as error:
        return str(error)
    return ""
