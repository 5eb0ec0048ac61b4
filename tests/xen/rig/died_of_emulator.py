# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that QEMU's emulator lets die, told from Xen's console.

Seen four times in some three hours of runs: after VMRUN, QEMU goes on with Xen's next instruction, but in the
guest's address space. Xen then reports a guest's triple fault with Xen's own code segment and instruction pointer,
where no guest can be: svm_asm_do_resume(), right behind its `vmrun`.
"""

import re

from xen.rig.results import Outcome

# Xen's code segment, and where Xen lies on x86 (XEN_VIRT_START in config.h, and 1 GiB from there).
DUMP = re.compile(r"RIP: +e008:\[<ffff82d0[4-7][0-9a-f]{7}>\]\s+\(XEN\) RFLAGS: \w+ +CONTEXT: hvm guest \(")
TEST = re.compile(r"\bsuite/(\w+)\.py::")
# What the modules before it have done is summed up there.
TOTALS = "test_totals"


def modules(console: str) -> set[str]:
    """Those in whose time a guest died so."""
    found = set()
    for dump in DUMP.finditer(console):
        begun = [match.group(1) for match in TEST.finditer(console, 0, dump.start())]
        found.update(begun[-1:])
    return found


def to_be_tried_again(tests: list[Outcome], console: str) -> list[str]:
    """Modules: all that failed, if it can have been the emulator each time, else none."""
    failed = {test.module for test in tests if not test.passed}
    excused = modules(console) & failed
    if not excused or failed - excused - {TOTALS}:
        return []
    return [module for module in dict.fromkeys(test.module for test in tests) if module in failed]
