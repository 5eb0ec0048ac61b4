# SPDX-License-Identifier: GPL-2.0-or-later
"""Which Clock state allows which technique: a table, apart from how states come about (clock.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from diffengine.array_enum import ArrayEnum


class State(ArrayEnum):
    """The paper's Clock states (section 4.2 there)."""

    C1 = 0  # modified since the last visit
    C2 = 1  # not modified, but perhaps referenced
    C3 = 2  # not touched since the last visit
    C4 = 3  # C3 for several visits in a row, at least a sharing cycle


class Technique(StrEnum):
    """What may be done with a page.

    REFERENCE: it may be evicted so that a similar page becomes a patch against it. In the paper a reference stays
    resident; here it is an object of the store, which no guest can change.
    """

    SHARE = "share"
    REFERENCE = "reference"
    PATCH = "patch"
    COMPRESS = "compress"
    SWAP = "swap"


@dataclass(frozen=True)
class Policy:
    """For each state what is allowed, in order of preference: `compress` before `patch` compresses what it can."""

    name: str
    allowed: Mapping[State, tuple[Technique, ...]]

    def allows(self, technique: Technique) -> NDArray[np.bool_]:
        """By state number: is the technique allowed."""
        return np.array([technique in self.allowed.get(state, ()) for state in State])

    def uses(self, technique: Technique) -> bool:
        return bool(self.allows(technique).any())

    @property
    def evicts(self) -> bool:
        return self.uses(Technique.PATCH) or self.uses(Technique.COMPRESS)

    def compresses_first(self, state: State) -> bool:
        """Whether a page in this state is patched only if it can't be compressed."""
        order = self.allowed.get(state, ())
        if Technique.COMPRESS not in order:
            return False
        return Technique.PATCH not in order or order.index(Technique.COMPRESS) < order.index(Technique.PATCH)


SHARE, REFERENCE, PATCH, COMPRESS, SWAP = Technique
EVERYTHING = (SHARE, REFERENCE, PATCH, COMPRESS, SWAP)

BUILT_IN_POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            "default",
            {State.C2: (SHARE,), State.C3: (SHARE, REFERENCE, PATCH), State.C4: EVERYTHING},
        ),
        # The paper tried both: every page is C4; and compression does not wait until sharing and patching had their
        # turn.
        Policy("aggressive", dict.fromkeys(State, EVERYTHING)),
        Policy(
            "compress-first",
            {
                State.C2: (SHARE,),
                State.C3: (SHARE, COMPRESS),
                State.C4: (SHARE, COMPRESS, REFERENCE, PATCH, SWAP),
            },
        ),
    )
}
