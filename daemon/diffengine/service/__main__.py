# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m diffengine.service`: the engine on Xen, or on a diffengine-machine, with a diffengine-pager that runs."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffengine.engine import EngineOptions
from diffengine.engine.policy import BUILT_IN_POLICIES
from diffengine.errors import DiffengineError, one_line
from diffengine.hypervisor.protocol import DomainInfo
from diffengine.native import random_seed
from diffengine.service.attached import DomainTerms, Terms, own_terms, serve

EXIT_CODES = """exit codes:
  0  told to end
  1  could not be done; the message says why
  2  bad arguments
  3  the machine or the pager is not there, or has gone: start again when it is back"""


def terms_of(trust_groups: Mapping[int, str]) -> Terms:
    """By domid; domains that are not named have groups of their own."""

    def terms(domain: DomainInfo) -> DomainTerms:
        group = trust_groups.get(domain.domid)
        return own_terms(domain) if group is None else DomainTerms(group)

    return terms


def trust_group(text: str) -> tuple[int, str]:
    domid, equals, group = text.partition("=")
    if not domid.isdecimal() or not equals or not group:
        raise argparse.ArgumentTypeError(f"{text!r}: must be DOMID=GROUP")
    return int(domid), group


def share_of_core(text: str) -> float:
    value = float(text)
    if not 0.001 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 0.001 to 1")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0.001 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: must be 0.001 to 3600 seconds")
    return value


def parser() -> argparse.ArgumentParser:
    default = EngineOptions()
    made = argparse.ArgumentParser(
        prog="diffengine.service", description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawTextHelpFormatter
    )
    host = made.add_mutually_exclusive_group(required=True)
    host.add_argument("--machine", type=Path, metavar="SOCKET", help="of diffengine-machine")
    host.add_argument("--xen", action="store_true", help="the Xen that this dom0 runs on")
    made.add_argument("--state", type=Path, required=True, metavar="DIR", help="of diffengine-pager")
    made.add_argument("--policy", choices=BUILT_IN_POLICIES, default=default.policy.name)
    made.add_argument("--cpu-share", type=share_of_core, default=default.cpu_share, help="of one core")
    made.add_argument(
        "--visit-interval-s", type=seconds, default=default.visit_interval_s, help="of one page, at least"
    )
    made.add_argument(
        "--trust-group", type=trust_group, action="append", default=[], metavar="DOMID=GROUP", help="may be repeated"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = parser().parse_args(arguments)
    options = EngineOptions(
        policy=BUILT_IN_POLICIES[given.policy],
        seed=random_seed(),
        cpu_share=given.cpu_share,
        visit_interval_s=given.visit_interval_s,
    )
    try:
        serve(given.machine, given.state, options, terms_of(dict(given.trust_group)))
    except DiffengineError as error:
        print(f"diffengine: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
