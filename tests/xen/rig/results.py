# SPDX-License-Identifier: GPL-2.0-or-later
"""What the suite left in the shared folder: a verdict, and each test's outcome and time."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from xen.rig.errors import RigError

VERDICT = "verdict"
RESULTS = "results.xml"
# What the suite sums up and measures, for people.
FILES = ("totals.json", "figures.json", "debian.json", "debian-simulated.json")
# What is drawn only.
SAMPLES = ("pinned-frames.json",)
PASSED = "PASSED"


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float
    message: str

    @property
    def module(self) -> str:
        return self.name.partition("::")[0]


def forget(share: Path) -> None:
    """So that an earlier run's word is not taken for this one's."""
    for name in (VERDICT, RESULTS, *FILES, *SAMPLES):
        (share / name).unlink(missing_ok=True)


def put_aside(share: Path) -> None:
    """The first try's word; what the suite sums up goes on."""
    for name in (RESULTS, "serial.log"):
        (share / name).rename(share / f"first-{name}")
    (share / VERDICT).unlink()


def read(share: Path) -> list[Outcome]:
    """RigError unless the suite came to its end."""
    if not (share / RESULTS).is_file() or not (share / VERDICT).is_file():
        raise RigError(f"the suite left no verdict, so it did not come to its end; the console: {share / 'serial.log'}")
    tests = [_result(case) for case in ElementTree.parse(share / RESULTS).iter("testcase")]
    said = (share / VERDICT).read_text().strip()
    if (said == PASSED) != all(test.passed for test in tests):
        raise RigError(f"the suite says {said}, its results say otherwise: {share / RESULTS}")
    return tests


def with_second_try(first: list[Outcome], second: list[Outcome]) -> list[Outcome]:
    """What was tried again counts as it then went."""
    again = {test.module for test in second}
    return [test for test in first if test.module not in again] + second


def _result(case: ElementTree.Element) -> Outcome:
    # Whatever is below, other than output, is a failure, an error, or a test that was left out.
    bad = [part for part in case if not part.tag.startswith("system-")]
    return Outcome(
        name=f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}",
        passed=not bad,
        seconds=float(case.get("time", 0)),
        message="\n".join(f"{part.get('message')}\n{part.text or ''}" for part in bad),
    )


def print_table(tests: list[Outcome]) -> bool:
    """Every test with its time; the messages of those that failed. True: all passed, and there were some."""
    for test in tests:
        print(f"{'passed' if test.passed else 'FAILED'}  {test.seconds:7.1f} s  {test.name}")
    for test in tests:
        if not test.passed:
            print(f"\n{test.name}\n{test.message}")
    passed = sum(test.passed for test in tests)
    print(f"{passed} passed, {len(tests) - passed} failed")
    return bool(tests) and passed == len(tests)


def print_files(share: Path) -> None:
    for name in FILES:
        if (share / name).is_file():
            print(f"{name}: {(share / name).read_text().strip()}")
