# SPDX-License-Identifier: GPL-2.0-or-later
"""mutations.py plants its bugs at places of the source, which changes: each is still there, once."""

import pytest
from mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_place_is_there(mutation: Mutation) -> None:
    assert (ROOT / "native" / mutation.file).read_text().count(mutation.right) == 1
