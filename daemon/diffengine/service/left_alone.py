# SPDX-License-Identifier: GPL-2.0-or-later
"""What is saved of domains that the engine does not look after now: what the pager's table says is out of them."""

from collections.abc import Iterable, Mapping

from diffengine.engine.recovery import report_from_table
from diffengine.engine.report import DomainReport
from diffengine.hypervisor.pager_client import PagerClient
from diffengine.hypervisor.protocol import DomainInfo


class LeftAloneReports:
    """Made anew when something came back. What such domains share is not known of each of them."""

    def __init__(self, pager: PagerClient) -> None:
        self._pager = pager
        self._known: dict[int, tuple[int, DomainReport]] = {}

    def of(self, domains: Iterable[DomainInfo]) -> Mapping[int, DomainReport]:
        """Of those of the domains that have pages out, by domid."""
        found = {}
        for domain in domains:
            out = self._pager.pages_out(domain.domid)
            if out:
                found[domain.domid] = out, self._report(domain, out)
        self._known = found
        return {domid: report for domid, (_, report) in found.items()}

    def _report(self, domain: DomainInfo, out: int) -> DomainReport:
        known, report = self._known.get(domain.domid, (0, None))
        if report and known == out and report.gfns == domain.gfns:
            return report
        return report_from_table(self._pager, domain.domid, domain.gfns)
