# SPDX-License-Identifier: GPL-2.0-or-later
"""The dense form's models, one for each trust group: statistics of its own cold pages, trained once."""

import numpy as np
from numpy.typing import NDArray

from diffengine.engine.pages import PageTable
from diffengine.hypervisor.protocol import Pager
from diffengine.native import TRAINING_ROUNDS, Addresses, DenseCounter, DenseModel, PageNumbers

SAMPLE_PAGES = 1024


class Models:
    """Cold pages wait in a sample until their group has a model, a sweep at most."""

    def __init__(self, pages: PageTable, pager: Pager) -> None:
        self._pages = pages
        self._pager = pager
        self._models: dict[int, tuple[DenseModel, int]] = {}
        self._samples: dict[int, list[PageNumbers]] = {}

    def model_of(self, group: int) -> tuple[DenseModel, int] | None:
        """The group's model and its object, or None: it is not trained yet."""
        return self._models.get(group)

    def sample(self, group: int, pages: PageNumbers) -> None:
        """Pages of a group without a model."""
        self._samples.setdefault(group, []).append(pages)

    def groups_to_train(self) -> dict[int, PageNumbers]:
        """At the end of a sweep: each group that has a sample, and the sample."""
        samples = {group: np.concatenate(parts) for group, parts in self._samples.items()}
        self._samples.clear()
        return {group: pages[:: max(1, len(pages) // SAMPLE_PAGES)][:SAMPLE_PAGES] for group, pages in samples.items()}

    def train(self, group: int, addresses: Addresses) -> None:
        """Makes the group's model from pages that are mapped now, and puts it into the store."""
        model = train(addresses)
        self._models[group] = (model, self._pager.put_model(model.save()))

    def forget(self, groups: NDArray[np.int64]) -> None:
        """Groups that have no domain any more."""
        for group in groups.tolist():
            self._samples.pop(group, None)
            known = self._models.pop(group, None)
            if known:
                self._pager.release(np.array([known[1]], dtype=np.uint32))

    def close(self) -> None:
        self.forget(np.array(list(self._models), dtype=np.int64))


def train(addresses: Addresses) -> DenseModel:
    """A model for pages that are encoded alone. Codes change what is chosen, and that the codes: several rounds."""
    model, counter = DenseModel(), DenseCounter()
    none = np.zeros_like(addresses)
    for _ in range(TRAINING_ROUNDS):
        model = DenseModel(counter.count(model, addresses, none))
    return model
