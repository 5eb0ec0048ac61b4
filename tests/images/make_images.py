# SPDX-License-Identifier: GPL-2.0-or-later
"""make_images.py: memory of Debian guests, made by booting them under QEMU and dumping what they hold (`make images`).

For each release a disk is made from Debian's packages, kept and never written to again; each guest boots from a copy of
its own, does its workload for a while, is stopped, and its memory is copied, sparse, to d12a-idle.raw and its like, and
with --cores the same as an ELF core of QEMU's dump-guest-memory. README.md says how long that takes.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xen.rig.debian import archive
from xen.rig.errors import RigError

RELEASES = {"bullseye": "d11", "bookworm": "d12", "trixie": "d13"}
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "gcc", "libc6-dev", "make", "python3", "sqlite3"),
    *("nginx-light", "curl", "openssh-server"),
)
LEFT_OUT = ("doc", "locale", "man", "info")
DISK_MIB = 3072
# `-cpu max` makes newer kernels panic in older QEMU's emulator.
CPU = "Nehalem,-cx16"
# A boot takes 40 to 110 s on an idle machine.
BOOT_S = 900.0
# On a busy machine the emulated timer may tick too late for the kernel's own test of it; a panic ends QEMU at once.
KERNEL_OPTIONS = "root=/dev/vda rw console=ttyS0 no_timer_check panic=-1"
READY = "diffengine: ready"
# Lines of shell. `idle` sits there with what a fresh system runs; `work` builds, serves, queries.
WORKLOADS = {
    "idle": "sleep infinity",
    "work": """
mkdir -p /var/tmp/work && cd /var/tmp/work
for i in $(seq 40); do echo "int f$i(int x) { return x * $i + (x >> 3); }" > f$i.c; done
while :; do
  for i in $(seq 40); do gcc -O2 -c f$i.c -o f$i.o; done
  seq 20000 | sed 's/.*/insert into t values(&, hex(randomblob(32)));/' > rows
  (echo 'drop table if exists t; create table t(a, b); begin;'; cat rows; echo 'commit; select max(b) from t;') \\
    | sqlite3 work.db > query
  for i in $(seq 50); do curl -s http://localhost/ > page; done
  python3 -c 'import json; print(len(json.dumps([{"n": i, "text": str(i) * 9} for i in range(40000)])))' > job
done""",
}
UNIT = """[Unit]
After=multi-user.target nginx.service
[Service]
Type=simple
ExecStartPre=/bin/sh -c 'echo "{ready}" > /dev/ttyS0'
ExecStart=/bin/sh /root/workload
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Disk:
    """A release's system: never written to once it is made."""

    image: Path
    kernel: Path
    initrd: Path


def run(*words: str | Path, **more: Any) -> None:
    """Raises CalledProcessError, with what the command said on its standard error, if it fails."""
    subprocess.run([str(word) for word in words], check=True, **more)


def make_disk(release: str, cache: Path) -> Disk:
    """From packages, once: some minutes."""
    folder = cache / release
    disk = Disk(folder / "disk.ext4", folder / "vmlinuz", folder / "initrd.img")
    if disk.image.exists():
        return disk
    print(f"{release}: making its disk", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        tree = Path(scratch) / "tree"
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
        packages = "--include=" + ",".join(PACKAGES)
        run("mmdebstrap", "--mode=root", "--variant=minbase", *excluded, packages, release, tree, archive())
        (tree / "etc/hostname").write_text("guest\n")
        (tree / "etc/fstab").write_text("/dev/vda / ext4 noatime 0 1\n")
        for name, into in (("vmlinuz", disk.kernel), ("initrd.img", disk.initrd)):
            (newest,) = sorted((tree / "boot").glob(f"{name}-*"))[-1:]
            shutil.copy(newest, into)
        unfinished = disk.image.with_suffix(".unfinished")
        run("mkfs.ext4", "-q", "-F", "-d", tree, unfinished, f"{DISK_MIB}M")
        unfinished.rename(disk.image)
    return disk


def add_workload(disk: Disk, workload: str, folder: Path) -> Path:
    """A copy of the disk that runs the workload; debugfs writes into it without mounting it."""
    copy = folder / "disk.ext4"
    run("cp", "--sparse=always", disk.image, copy)
    (folder / "workload").write_text(WORKLOADS[workload] + "\n")
    (folder / "unit").write_text(UNIT.format(ready=READY))
    commands = [
        f"write {folder / 'workload'} /root/workload",
        f"write {folder / 'unit'} /etc/systemd/system/workload.service",
        "symlink /etc/systemd/system/multi-user.target.wants/workload.service /etc/systemd/system/workload.service",
    ]
    run("debugfs", "-w", "-f", "-", copy, input="\n".join(commands) + "\n", text=True, capture_output=True)
    return copy


class Monitor:
    """QEMU's own protocol (QMP) on a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while answer := self._lines.readline():
            message = json.loads(answer)
            if "error" in message:
                raise RuntimeError(f"QEMU refuses {name}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
        raise RuntimeError(f"QEMU ended during {name}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def guest(disk: Disk, workload: str, memory_mib: int) -> Iterator[tuple[Monitor, Path]]:
    """A guest that has said that it is ready: its monitor, and the file that is its memory."""
    with (
        tempfile.TemporaryDirectory(prefix="diffengine-guest-") as scratch,
        tempfile.TemporaryDirectory(prefix="diffengine-guest-", dir="/dev/shm") as memory_folder,
    ):
        folder, memory = Path(scratch), Path(memory_folder) / "memory"
        console, control = folder / "console", folder / "control"
        backend = f"memory-backend-file,id=ram,size={memory_mib}M,mem-path={memory},share=on"
        words = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", CPU, "-m", f"{memory_mib}M"),
            *("-object", backend, "-machine", "q35,memory-backend=ram,mem-merge=off"),
            *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{console}"),
            *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", KERNEL_OPTIONS),
            *("-drive", f"if=virtio,format=raw,file={add_workload(disk, workload, folder)}"),
            *("-qmp", f"unix:{control},server=on,wait=off"),
        ]
        qemu = subprocess.Popen(words)
        try:
            _await(lambda: console.exists() and READY in console.read_text(errors="replace"), qemu, console)
            monitor = Monitor(control)
            try:
                yield monitor, memory
            finally:
                monitor.close()
        finally:
            qemu.terminate()
            qemu.wait()


def _await(ready: Any, qemu: "subprocess.Popen[bytes]", console: Path) -> None:
    end = time.monotonic() + BOOT_S
    while not ready():
        if qemu.poll() is not None or time.monotonic() > end:
            last = console.read_text(errors="replace")[-2000:] if console.exists() else ""
            raise RuntimeError(f"the guest did not get ready; the end of its console:\n{last}")
        time.sleep(1)


def dump(disk: Disk, workload: str, seconds: float, memory_mib: int, into: Path, core: bool) -> None:
    with guest(disk, workload, memory_mib) as (monitor, memory):
        time.sleep(seconds)
        monitor.command("stop")
        run("cp", "--sparse=always", memory, into)
        if core:
            monitor.command("dump-guest-memory", paging=False, protocol=f"file:{into.with_suffix('.core')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="where images go")
    add("--cache", type=Path, required=True, help="where disks are kept")
    add("--releases", nargs="+", choices=[*RELEASES], default=[*RELEASES])
    add("--workloads", nargs="+", choices=[*WORKLOADS], default=["idle", "work"])
    add("--guests", type=int, default=2, help="of each release and workload (2)")
    add("--memory", type=int, default=512, help="MiB of each (512)")
    add("--seconds", type=float, default=60, help="that a workload runs before the dump (60)")
    add("--cores", action="store_true", help="also ELF cores")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        make(options)
    except RigError as error:
        print(f"make_images: {error}", file=sys.stderr)
        return 1
    return 0


def make(options: argparse.Namespace) -> None:
    for release in options.releases:
        disk = make_disk(release, options.cache)
        for workload in options.workloads:
            for number in range(options.guests):
                name = f"{RELEASES[release]}{'abcdefghijklmnop'[number]}-{workload}"
                start = time.monotonic()
                dump(disk, workload, options.seconds, options.memory, options.folder / f"{name}.raw", options.cores)
                print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
