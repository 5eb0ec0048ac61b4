# SPDX-License-Identifier: GPL-2.0-or-later
"""PYTHONPATH=tests python -m xen.rig COMMAND: build everything, run a script in dom0, give a prompt in it."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from xen.rig import (
    bochs,
    died_of_emulator,
    dom0,
    guest,
    hypervisor,
    package,
    pinned_frames,
    project,
    qemu,
    results,
    simulated,
)
from xen.rig.cache import Cache, user_cache
from xen.rig.errors import RigError

EMULATORS = {"amd": qemu.run_script, "intel": bochs.run_script}


def machine_of(cpu: str, patched: bool, share: Path, memory_mib: int, dom0_mib: int) -> qemu.Machine:
    cache = Cache(user_cache())
    xen = (hypervisor.build_patched if patched else hypervisor.build)(cache) / f"xen-{cpu}"
    system = dom0.build(cache)
    installed = project.build(cache, system, guest.build(cache, system))
    return qemu.Machine(
        xen=xen,
        kernel=system.folder / "kernel",
        initrd=system.folder / "initrd",
        disks=(system.folder / "disk", installed / "disk"),
        share=share.resolve(),
        memory_mib=memory_mib,
        dom0_mib=dom0_mib,
    )


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="xen.rig", description=__doc__)
    parser.add_argument("command", choices=("build", "run", "shell", "test"))
    parser.add_argument("tests", nargs="*", help="modules of the suite; without, all")
    parser.add_argument("--share", type=Path, default=Path("build/xen/share"), help="folder that is /mnt/share in dom0")
    parser.add_argument("--script", default="/mnt/share/run", help="what `run` runs in dom0 (%(default)s)")
    parser.add_argument("--cpu", choices=EMULATORS, default="amd", help="emulated by QEMU or bochs (%(default)s)")
    parser.add_argument("--patched", action="store_true", help="with docs/several-vcpus.patch; for AMD's CPU")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the whole machine")
    parser.add_argument("--dom0-memory", type=int, default=700, metavar="MIB")
    options = parser.parse_args(words)
    if options.patched and options.cpu != "amd":
        parser.error("--patched is built for --cpu amd only")
    return options


def run_modules(machine: qemu.Machine, cpu: str, tests: list[str], timeout_s: float) -> list[results.Outcome]:
    share = machine.share
    EMULATORS[cpu](machine, "/opt/rig/suite/run", ":".join(tests), share / "serial.log", timeout_s)
    return results.read(share)


def run_suite(machine: qemu.Machine, cpu: str, tests: list[str], timeout_s: float) -> bool:
    """Whether all passed."""
    share = machine.share
    results.forget(share)
    if cpu == "amd" and (not tests or package.TESTS in tests):
        shutil.copy(package.build(Cache(user_cache())), share / package.NAME)
    begin = time.monotonic()
    found = run_modules(machine, cpu, tests, timeout_s)
    again = died_of_emulator.to_be_tried_again(found, (share / "serial.log").read_text(errors="replace"))
    if again:
        print(f"rig: a guest died of QEMU's own fault, so {', '.join(again)}: once more, in a machine of their own")
        results.put_aside(share)
        names = [f"{module}.py" for module in again]
        found = results.with_second_try(found, run_modules(machine, cpu, names, timeout_s))
    passed = results.print_table(found)
    passed &= simulated.compare(share)
    results.print_files(share)
    pinned_frames.draw_if_there(share)
    print(f"rig: power-on to power-off {time.monotonic() - begin:.0f} s; logs in {share}")
    print(f"rig: {results.PASSED if passed else 'FAILED'}")
    return passed


def main(words: list[str]) -> int:
    options = parse(words)
    options.share.mkdir(parents=True, exist_ok=True)
    machine = machine_of(options.cpu, options.patched, options.share, options.memory, options.dom0_memory)
    if options.command == "shell":
        return qemu.shell(machine)
    if options.command == "test":
        return 0 if run_suite(machine, options.cpu, options.tests, options.timeout) else 1
    if options.command == "run":
        begin = time.monotonic()
        EMULATORS[options.cpu](machine, options.script, "", options.share / "serial.log", options.timeout)
        print(f"rig: power-on to power-off {time.monotonic() - begin:.0f} s, log in {options.share}/serial.log")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        sys.exit(1)
