# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs the package in a minimal Debian, runs it there, and purges it: `python -m deb PACKAGE.deb --tree DIR`.

As root. The Debian is made once, of what the package depends on, from this machine's own mirrors; each run works on a
copy.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xen.rig.debian import install_tree

PATIENCE_S = 120.0
# What any installation changes, and what programs leave behind that are not the package's.
NOT_OURS = re.compile(
    r"var/lib/dpkg/.*|var/log/.*|var/cache/.*|etc/ld\.so\.cache|etc/(group|gshadow|passwd|shadow|subuid|subgid)-?"
    r"|var/lib/systemd/deb-systemd-helper-masked|.*/__pycache__(/.*)?|run(/.*)?|dev(/.*)?|proc(/.*)?|sys(/.*)?|tmp(/.*)?|root(/.*)?"
)
SCENARIO = """
[engine]
visit_interval_s = 0.1
c4_visits = 1
fault_limit = 100000
[[domain]]
name = "web"
memory_mib = 8
"""


class Wrong(Exception):  # noqa: N818
    """What the package does not do."""


class Tree:
    """A Debian system in a folder, in which commands run with namespaces of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def command(self, *words: str) -> list[str]:
        mounts = f"mount -t proc proc {self.path}/proc && mount -t tmpfs tmpfs {self.path}/dev/shm"
        for name in ("null", "zero", "urandom"):
            mounts += f" && touch {self.path}/dev/{name} && mount --bind /dev/{name} {self.path}/dev/{name}"
        inside = ["chroot", str(self.path), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *words]
        return [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{mounts} && exec "$@"',
            "-",
            *inside,
        ]

    def run(self, *words: str, code: int = 0) -> str:
        """What it says, of a command that is to end with `code`."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode != code:
            raise Wrong(f"{' '.join(words)}: exit code {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def files(self) -> set[str]:
        found = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return {name for name in found if not NOT_OURS.fullmatch(name)}

    def group_exists(self) -> bool:
        return "\ndiffengine:" in (self.path / "etc/group").read_text()


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)
    print(f"  {what}")


def dependencies(package: Path) -> tuple[str, ...]:
    fields = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    return tuple(sorted({re.split(r"[ (|:]", each.strip())[0] for each in fields.split(",")}))


@contextmanager
def daemon(tree: Tree) -> Iterator[None]:
    (tree.path / "tmp/one.toml").write_text(SCENARIO)
    process = subprocess.Popen(
        tree.command("diffengine", "daemon", "--embedded", "/tmp/one.toml"), stderr=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def saved_bytes(tree: Tree) -> int:
    done = subprocess.run(tree.command("diffengine", "status", "--json"), capture_output=True, text=True)
    return int(json.loads(done.stdout)["memory"]["saved"]) if done.returncode == 0 else 0


def works(tree: Tree) -> None:
    said = tree.run("diffengine", "check", code=4)
    expect("Not here" in said, "diffengine check says that this is no Xen host")
    said = tree.run("diffengine", "config", "check")
    expect("/etc/diffengine/diffengine.toml: right" in said, "the configuration that it brings is right")
    expect("--state DIR" in tree.run("diffengine-pager", "--help"), "diffengine-pager is there")
    with daemon(tree):
        deadline_s = time.monotonic() + PATIENCE_S
        while (saved := saved_bytes(tree)) < 4 << 20 and time.monotonic() < deadline_s:
            time.sleep(0.2)
        expect(saved >= 4 << 20, "the daemon saves memory of an embedded guest")
        expect("worked_on" in tree.run("diffengine", "domains"), "diffengine domains asks it")
        expect("1 of 1 domains" in tree.run("diffengine", "top", "--once"), "diffengine top shows it")
        expect("pages came back" in tree.run("diffengine", "drain"), "diffengine drain brings all back")


def installs(tree: Tree, package: Path) -> None:
    shutil.copy(package, tree.path / "tmp/diffengine.deb")
    tree.run("dpkg", "-i", "/tmp/diffengine.deb")
    expect(tree.group_exists(), "group diffengine is there")
    for unit in ("diffengine.service", "diffengine-pager.service"):
        link = tree.path / "etc/systemd/system/multi-user.target.wants" / unit
        expect(link.is_symlink(), f"{unit} is enabled")
    conffiles = tree.run("dpkg-query", "-W", "-f", "${Conffiles}", "diffengine")
    for name in ("/etc/diffengine/diffengine.toml", "/etc/default/diffengine-pager"):
        expect(name in conffiles, f"{name} is a conffile")
    expect(any(tree.path.glob("usr/lib/diffengine/diffengine/__pycache__/*.pyc")), "its Python is compiled")
    for name in ("bash-completion/completions/diffengine", "zsh/vendor-completions/_diffengine"):
        expect("completion" in (tree.path / "usr/share" / name).read_text(), f"/usr/share/{name} is there")
    changed = tree.path / "etc/diffengine/diffengine.toml"
    changed.write_text(
        changed.read_text() + "[domains]\n" if "[domains]" not in changed.read_text() else "[domains]\nenabled = true\n"
    )
    tree.run("dpkg", "-i", "/tmp/diffengine.deb")
    expect("enabled = true" in changed.read_text(), "installing it again keeps a changed configuration")


def is_gone(tree: Tree, before: set[str]) -> None:
    tree.run("dpkg", "--remove", "diffengine")
    expect((tree.path / "etc/diffengine/diffengine.toml").exists(), "removal keeps the configuration")
    tree.run("dpkg", "--purge", "diffengine")
    left = sorted(tree.files() - before)
    expect(not left, "purge leaves nothing" if not left else f"purge leaves {left}")
    expect(sorted(before - tree.files()) == [], "and takes nothing with it")
    expect(not tree.group_exists(), "the group is gone")
    expect(not (tree.path / "usr/lib/diffengine").exists(), "compiled Python is gone")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tree", type=Path, required=True, help="the minimal Debian, made if it is not there")
    options = parser.parse_args()
    made = options.tree / "var/lib/dpkg/status"
    if not made.exists():
        shutil.rmtree(options.tree, ignore_errors=True)
        options.tree.parent.mkdir(parents=True, exist_ok=True)
        install_tree(dependencies(options.package), options.tree)
    copy = options.tree.with_name("installed")
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "--archive", options.tree, copy], check=True)
    tree = Tree(copy)
    for folder in ("dev/shm", "proc"):
        (copy / folder).mkdir(parents=True, exist_ok=True)
    before = tree.files()
    try:
        installs(tree, options.package)
        works(tree)
        is_gone(tree, before)
    except Wrong as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    print("PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
