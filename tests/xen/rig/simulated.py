# SPDX-License-Identifier: GPL-2.0-or-later
"""What `diffengine simulate` makes of the Debian guests' own dumps (suite/test_debian.py), beside what Xen got back."""

import json
import sys
from pathlib import Path
from typing import Any

from xen.rig.commands import run

FOUND = "debian.json"
COMPARED = "debian-simulated.json"
# Of what is simulated, on Xen at least.
LEAST_SHARE = 0.85
# Virtual, so long that a sweep is always done before the next is due: in units of sweeps, time is the same on both.
VISIT_INTERVAL_S = 60
SCENARIO = """\
seed = 1
duration_s = {duration_s}
[engine]
cpu_share = 1.0
visit_interval_s = {visit_interval_s}
c4_visits = {c4_visits}
fault_limit = 1e5
refault_limit = 1000000
{domains}
"""
DOMAIN = """\
[[domain]]
name = "{name}"
image = "{name}.raw"
trust_group = "all"
"""


def compare(share: Path) -> bool:
    """True: Xen got enough back, or the suite did not run that test."""
    if not (share / FOUND).is_file():
        return True
    found = json.loads((share / FOUND).read_text())
    scenario = share / "debian.toml"
    scenario.write_text(_scenario(found))
    report = json.loads(run(sys.executable, "-m", "diffengine", "simulate", scenario, "--virtual", "--json"))
    for name in found["guests"]:
        (share / f"{name}.raw").unlink()
    on_xen = (found["freed_bytes"] - found["store_bytes"] - found["table_bytes"]) / found["allocated_bytes"]
    simulated = report["saving"]["end"]
    result = {"xen": on_xen, "simulated": simulated, "share": on_xen / simulated, "least": LEAST_SHARE}
    (share / COMPARED).write_text(json.dumps(result, indent=1) + "\n")
    print(f"debian guests: {on_xen:.3f} of their memory given back on Xen, {simulated:.3f} simulated on their dumps")
    return bool(on_xen >= LEAST_SHARE * simulated)


def _scenario(found: dict[str, Any]) -> str:
    domains = "".join(DOMAIN.format(name=name) for name in found["guests"])
    duration_s = found["sweeps"] * VISIT_INTERVAL_S
    settings = {"visit_interval_s": VISIT_INTERVAL_S, "c4_visits": found["c4_visits"]}
    return SCENARIO.format(duration_s=duration_s, domains=domains, **settings)
