# SPDX-License-Identifier: GPL-2.0-or-later
"""The AMD rig: QEMU's emulator (never KVM), with SVM and nested paging, which is what Xen's HAP guests need."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from xen.rig.errors import RigError
from xen.rig.processes import NotStartedError, Start, wait_for

# Each feature is off because Xen or a guest dies of it: smap (a PV dom0), monitor (mwait_idle), rdtscp (endless
# emulation), AVX and its kin (guests die of #UD after minutes).
CPU = "EPYC,+svm,+npt,-smap,-monitor,-rdtscp,-xsave,-avx,-avx2,-fma,-f16c"
XEN_OPTIONS = "console=com1 com1=115200,8n1 dom0_max_vcpus=1 cpuidle=0 spec-ctrl=no sched=credit"
DOM0_OPTIONS = "console=hvc0 mitigations=off nokaslr"
# Written to the console before the script runs (dom0/usr/local/sbin/rig-run).
BEGUN = b"rig: %s begins"
# A boot takes 36 s on two idle cores; 150 s were seen on busy ones.
BOOT_S = 600.0
BOOTS = 3


@dataclass(frozen=True)
class Machine:
    """What is booted. Disks are never written to: what dom0 changes is gone with it, so any number may run at once."""

    xen: Path
    kernel: Path
    initrd: Path
    disks: tuple[Path, ...]
    share: Path
    memory_mib: int = 2048
    dom0_mib: int = 700


def command(machine: Machine, dom0_options: str, serial: str) -> list[str]:
    dom0 = f"{machine.kernel} {DOM0_OPTIONS} {dom0_options}"
    memory = f"dom0_mem={machine.dom0_mib}M,max:{machine.dom0_mib}M"
    # The first once more, unmounted: Debian guests start from it.
    disks = [f"if=virtio,format=raw,snapshot=on,file={disk}" for disk in (*machine.disks, *machine.disks[:1])]
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", str(machine.memory_mib)),
        *("-M", "q35", "-nodefaults", "-no-reboot", "-display", "none", "-serial", serial),
        *("-kernel", str(machine.xen), "-append", f"{XEN_OPTIONS} {memory}"),
        *("-initrd", f"{dom0},{machine.initrd}"),
        *(word for disk in disks for word in ("-drive", disk)),
        *("-virtfs", f"local,path={machine.share},mount_tag=share,security_model=none"),
    ]


def run_script(machine: Machine, script: str, tests: str, log: Path, timeout_s: float) -> None:
    """Boot, run the script (a path in dom0), power off. RigError if that takes too long or QEMU fails.

    Says nothing about how the script fared: it has to leave word in the shared folder. tests: for the suite's script,
    modules with colons between them (QEMU takes a comma for the end of the options).
    """
    words = command(machine, f"rig.run={script} rig.tests={tests}", f"file:{log}")
    start = started(log, script, BOOT_S)
    for boot in range(1, BOOTS + 1):
        log.unlink(missing_ok=True)
        try:
            status = wait_for(words, log.with_suffix(".qemu"), start, timeout_s)
            break
        except NotStartedError as error:
            # Nothing of the project has run so far.
            print(f"rig: boot {boot}: {error}", file=sys.stderr, flush=True)
            if boot == BOOTS:
                raise
    if status:
        raise RigError(f"QEMU ended with status {status}; {log.with_suffix('.qemu')} and {log} say more")


def started(log: Path, script: str, timeout_s: float) -> Start:
    """Dom0's console, in the log, says that the script begins."""
    line = BEGUN % script.encode()
    return Start(lambda: log.is_file() and line in log.read_bytes(), timeout_s)


def shell(machine: Machine) -> int:
    """A root prompt on this terminal, until power-off (or C-a x)."""
    return subprocess.run(command(machine, "", "mon:stdio"), check=False).returncode
