# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is sent to a daemon by one who may only look: it answers the next request, and nothing has changed."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon_host import Line, Parts, daemon_parts, loop
from socket_nonsense import METHODS, NAMES, answered, likely_line, state

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "id": JSON, "method": st.sampled_from(METHODS)},
    optional={"params": st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3)},
)
LINES = st.one_of(
    st.binary(max_size=300),
    JSON.map(lambda value: json.dumps(value).encode()),
    REQUESTS.map(lambda value: json.dumps(value).encode()),
    st.integers(0, 1 << 32).map(lambda seed: likely_line(random.Random(seed))),
)
FEW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("socket") / "status.sock"


@pytest.fixture(scope="module")
def parts(socket_path: Path) -> Iterator[Parts]:
    with loop() as on, daemon_parts(socket_path, on, may_change=frozenset()) as made:
        yield made


@FEW
@given(lines=st.lists(LINES, min_size=1, max_size=4))
def test_nonsense_is_answered_and_changes_nothing(parts: Parts, socket_path: Path, lines: list[bytes]) -> None:
    before: tuple[Any, ...] = state(parts)
    with closing(Line(socket_path)) as line:
        assert all(answered(line, each.replace(b"\n", b" ")) for each in lines)
    assert state(parts) == before
