# SPDX-License-Identifier: GPL-2.0-or-later
"""What answers at a socket that is somebody else's."""

import pytest

from diffengine.service.client import DaemonError, result_of


@pytest.mark.parametrize("line", [b"220 mail\n", b"[]\n", b"3\n", b"{}\n", b'{"error": "no"}\n', b"\xff\n"])
def test_an_answer_of_another_program_is_refused(line: bytes) -> None:
    with pytest.raises(DaemonError, match="no diffengine daemon"):
        result_of(line)


def test_an_answer_is_its_result_or_its_error() -> None:
    assert result_of(b'{"result": 3}') == 3
    with pytest.raises(DaemonError, match="^not now$"):
        result_of(b'{"error": {"message": "not now"}}')
    with pytest.raises(DaemonError, match="has ended"):
        result_of(b"")
