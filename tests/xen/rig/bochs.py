# SPDX-License-Identifier: GPL-2.0-or-later
"""The Intel rig: bochs, which emulates VMX and EPT, with the hypervisor as Debian's source has it.

It has no virtio, so no shared folder: the suite's results come as an archive through the second serial port.
"""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from xen.rig.commands import run
from xen.rig.errors import RigError
from xen.rig.processes import wait_for
from xen.rig.qemu import DOM0_OPTIONS, XEN_OPTIONS, Machine, started

# bochs finds a flat disk's size from whole cylinders of 16 heads with 63 sectors.
CYLINDER_BYTES = 16 * 63 * 512
# apicv: with it guests crashed once log-dirty was on.
INTEL_OPTIONS = "apicv=0"
# 153 s on an idle machine.
BOOT_S = 1800.0
CPU_MODEL = "corei7_haswell_4770"
GRUB = """\
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
menuentry xen {{
  multiboot /boot/xen {xen}
  module /boot/kernel {kernel}
  module /boot/initrd
}}
"""
CONFIGURATION = """\
display_library: rfb, options="timeout=0"
memory: guest={memory}, host={memory}
cpu: model={model}, count=1, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none
pci: enabled=1, chipset=i440fx
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
boot: disk
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
{disks}
com1: enabled=1, mode=file, dev={console}
com2: enabled=1, mode=file, dev={results}
panic: action=report
error: action=ignore
info: action=ignore
debug: action=ignore
log: {log}
sound: driver=dummy
plugin_ctrl: speaker=0
"""
PLACES = ("ata0-master", "ata0-slave", "ata1-master", "ata1-slave")


def run_script(machine: Machine, script: str, tests: str, log: Path, timeout_s: float) -> None:
    """As qemu.run_script(); what dom0 left in its /mnt/share is in machine.share afterwards."""
    with tempfile.TemporaryDirectory(dir=machine.share) as name:
        scratch = Path(name)
        boot = scratch / "boot.img"
        _make_boot_disk(machine, script, tests, boot)
        results = scratch / "results.tar"
        configuration = scratch / "bochsrc"
        configuration.write_text(_configuration(machine, boot, log, results, scratch))
        # The packaged program is the debugging one: it waits for commands before it begins.
        (scratch / "commands").write_text("c\n")
        words = ["bochs", "-q", "-f", str(configuration), "-rc", str(scratch / "commands")]
        # Its status says nothing: 1 after a regular power-off.
        start = started(log, script, BOOT_S)
        wait_for(words, log.with_suffix(".bochs"), start, timeout_s, held_input=True)
        if not results.is_file() or not results.stat().st_size:
            raise RigError(f"dom0 sent no results; its console: {log}")
        _unpack(results, machine.share)


def _make_boot_disk(machine: Machine, script: str, tests: str, image: Path) -> None:
    tree = image.with_suffix(".tree")
    (tree / "boot/grub").mkdir(parents=True)
    for name, source in {"xen": machine.xen, "kernel": machine.kernel, "initrd": machine.initrd}.items():
        shutil.copy(source, tree / "boot" / name)
    memory = f"dom0_mem={machine.dom0_mib}M,max:{machine.dom0_mib}M"
    entry = GRUB.format(
        xen=f"{XEN_OPTIONS} {INTEL_OPTIONS} {memory}", kernel=f"{DOM0_OPTIONS} rig.run={script} rig.tests={tests}"
    )
    (tree / "boot/grub/grub.cfg").write_text(entry)
    run("grub-mkrescue", "-o", image, tree)
    shutil.rmtree(tree)
    os.truncate(image, -(-image.stat().st_size // CYLINDER_BYTES) * CYLINDER_BYTES)


def _configuration(machine: Machine, boot: Path, log: Path, results: Path, scratch: Path) -> str:
    disks = []
    for place, disk in zip(PLACES, (boot, *machine.disks), strict=False):
        size = disk.stat().st_size
        if size % CYLINDER_BYTES:
            raise RigError(f"{disk} has no whole number of cylinders")
        # Volatile: what is written goes to a file of this run's.
        mode = f"volatile, journal={scratch / place}"
        geometry = f"cylinders={size // CYLINDER_BYTES}, heads=16, spt=63"
        disks.append(f"{place}: type=disk, path={disk}, mode={mode}, {geometry}")
    return CONFIGURATION.format(
        memory=machine.memory_mib,
        model=CPU_MODEL,
        disks="\n".join(disks),
        console=log,
        results=results,
        log=log.with_suffix(".bochs-log"),
    )


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as files:
            for member in files:
                content = files.extractfile(member) if member.isreg() else None
                if content:
                    (folder / Path(member.name).name).write_bytes(content.read())
    except tarfile.TarError as error:
        raise RigError(f"what dom0 sent is no archive: {error}") from error
