# SPDX-License-Identifier: GPL-2.0-or-later
"""`diffengine check` on a machine without Xen, as a user runs it. tests/xen runs it on one with."""

import json

from command import diffengine


def test_a_machine_without_xen_is_told_so_helpfully() -> None:
    done = diffengine("check")
    assert (done.returncode, done.stderr) == (4, "")
    assert "does not run on Xen" in done.stdout
    assert "diffengine simulate" in done.stdout


def test_json_has_the_findings_and_what_they_were_made_from() -> None:
    done = diffengine("check", "--json")
    assert (done.returncode, done.stderr) == (4, "")
    report = json.loads(done.stdout)
    assert report["verdict"] == "impossible"
    assert report["findings"][0]["level"] == "obstacle"
    assert report["facts"]["xen_version"] is None
    assert report["facts"]["hypervisor"] is None
