# SPDX-License-Identifier: GPL-2.0-or-later
"""Dom0: a Debian system with Xen's tools on a disk image, and the initramfs that finds that disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from xen.rig import debian, kernels
from xen.rig.cache import Cache, digest
from xen.rig.commands import run
from xen.rig.initramfs import Archive

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "procps", "psmisc", "busybox-static"),
    *("python3", "python3-venv", "python3-pytest", "less", "strace"),
    *("xen-utils-4.17", "xen-utils-common", "xenstore-utils", "libxenmisc4.17"),
    *("qemu-system-xen", "qemu-system-data", "seabios"),
    # The second is the guests': it has no dom0 support, and little else that takes time to start.
    *("linux-image-amd64", "linux-image-cloud-amd64"),
    # What the project links to.
    *("liblz4-1", "libssl3", "libxxhash0", "libzstd1"),
    # What its Debian package needs besides (debian/control).
    *("python3-cffi", "python3-numpy", "python3-prometheus-client", "python3-pyxs", "python3-systemd"),
    *("python3-zstandard",),
)
# What would only take time in a machine that lives for minutes.
MASKED_UNITS = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-pstore.service", "getty@tty1.service", "xendomains.service"),
    *("systemd-timesyncd.service", "systemd-resolved.service", "systemd-binfmt.service"),
)
# virtio under QEMU, ATA under bochs.
BOOT_MODULES = ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p", "ata_piix", "sd_mod")
# Multiples of 63: whole cylinders for bochs.
DISK_MIB = 882
OVERLAY = Path(__file__).parents[1] / "dom0"
INIT = """\
#!/bin/busybox sh
# Load what is needed to read a disk, find those labelled dom0 and project, go on from there.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in {modules}; do $b insmod /lib/$module; done
tries=0
until disk=$($b findfs LABEL=dom0) || [ $tries = 200 ]; do $b sleep 0.1; tries=$((tries + 1)); done
$b mount -t ext4 -o noatime "$disk" /root || {{ echo 'rig: no dom0 disk'; $b poweroff -f; }}
project=$($b findfs LABEL=project) && $b mount -t ext4 -o ro "$project" /root/opt
$b mount -o move /dev /root/dev
$b umount /sys /proc
exec $b switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Dom0:
    """folder holds `disk`, `initrd`, `kernel`, `guest-kernel`, and `tree`: what the disk was made of."""

    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


def build(cache: Cache) -> Dom0:
    key = digest(
        *PACKAGES, *debian.LEFT_OUT, *MASKED_UNITS, *BOOT_MODULES, INIT, OVERLAY, str(DISK_MIB), Path(__file__)
    )
    return Dom0(cache.entry("dom0", key, _build))


def _build(folder: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    debian.install_tree(PACKAGES, tree)
    _configure(tree)
    dom0, guest = sorted((tree / "boot").glob("vmlinuz-*"), key=lambda path: "cloud" in path.name)
    (folder / "kernel").write_bytes(kernels.unpack(dom0.read_bytes()))
    (folder / "guest-kernel").write_bytes(kernels.unpack(guest.read_bytes()))
    release = dom0.name.removeprefix("vmlinuz-")
    (folder / "initrd").write_bytes(_initramfs(tree, release))
    packages = run("chroot", tree, "dpkg-query", "-W")
    (folder / "packages").write_text(packages)
    make_disk(tree, folder / "disk", "dom0", DISK_MIB)


def _configure(tree: Path) -> None:
    shutil.copytree(OVERLAY, tree, dirs_exist_ok=True)
    (tree / "mnt/share").mkdir()
    # Written by mmdebstrap for the machine it ran on.
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    run("chroot", tree, "passwd", "--delete", "root")
    run("chroot", tree, "systemctl", "set-default", "multi-user.target")
    run("chroot", tree, "systemctl", "enable", "rig.service")
    run("chroot", tree, "systemctl", "mask", *MASKED_UNITS)


def _initramfs(tree: Path, release: str) -> bytes:
    folder = tree / "lib/modules" / release
    modules = kernels.load_order(folder, BOOT_MODULES)
    archive = Archive()
    for name in ("bin", "dev", "lib", "proc", "root", "sys"):
        archive.folder(name)
    archive.device("dev/console", 5, 1)
    archive.program("bin/busybox", (tree / "bin/busybox").read_bytes())
    for module in modules:
        archive.file(f"lib/{module.name}", module.read_bytes())
    archive.program("init", INIT.format(modules=" ".join(module.name for module in modules)).encode())
    return archive.content()


def make_disk(tree: Path, disk: Path, label: str, size_mib: int) -> None:
    """An ext4 image of a folder, made without mounting anything."""
    features = "^metadata_csum,^has_journal,^huge_file"
    run("mkfs.ext4", "-q", "-F", "-L", label, "-O", features, "-m", "0", "-d", tree, disk, f"{size_mib}M")
