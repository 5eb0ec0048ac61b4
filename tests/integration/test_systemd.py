# SPDX-License-Identifier: GPL-2.0-or-later
"""The units as systemd reads them, and daemon and pager as they behave when systemd starts them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from command import COMMAND, output_of
from diffengine.hypervisor.machine_process import MachineProcess
from diffengine.hypervisor.scratch import scratch_directory
from diffengine.simulation.hosts import PAGER_PROGRAM, TMPFS

UNITS = Path(__file__).parents[2] / "systemd"
# A machine may be busy with other tests.
PATIENCE_S = 240.0
SCENARIO = '[engine]\nvisit_interval_s = 0.1\n[[domain]]\nname = "web"\nmemory_mib = 4\n'

# Becomes the daemon with the socket as descriptor 3. LISTEN_PID is the daemon's own.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def systemd_analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Copies whose programs are there, as they are where the package is installed."""
    found = []
    for path in UNITS.iterdir():
        if path.suffix in (".service", ".socket", ".mount", ".target"):
            text = path.read_text()
            for program in ("/usr/bin/diffengine", "/usr/sbin/diffengine-pager"):
                text = text.replace(f"={program} ", f"={shutil.which('true')} ")
            copy = tmp_path / path.name
            copy.write_text(text)
            found.append(copy)
    assert len(found) == 6
    return found


def test_systemd_finds_nothing_wrong_in_the_units(units: list[Path]) -> None:
    done = systemd_analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It would find something.
    units[0].write_text(units[0].read_text().replace("[Unit]\n", "[Unit]\nNonsense=yes\n"))
    assert "Nonsense" in systemd_analyze("verify", "--man=no", units[0]).stderr


@pytest.mark.parametrize("name", ["diffengine.service", "diffengine-pager.service"])
def test_the_services_are_exposed_no_more_than_they_need(name: str) -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=30", "--no-pager", UNITS / name)
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure and float(exposure[1]) <= 3.0


def test_sysusers_and_tmpfiles_are_read(tmp_path: Path) -> None:
    for program, name in (("systemd-sysusers", "diffengine.sysusers"), ("systemd-tmpfiles", "diffengine.tmpfiles")):
        (tmp_path / "etc").mkdir(exist_ok=True)
        create = ["--create"] if program == "systemd-tmpfiles" else []
        as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
        subprocess.run([*as_root, program, f"--root={tmp_path}", *create, UNITS / name], check=True, timeout=PATIENCE_S)
    assert "diffengine:" in (tmp_path / "etc/group").read_text()
    assert (tmp_path / "run/diffengine").stat().st_mode & 0o777 == 0o755


class NotifySocket:
    """Where systemd would listen."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(PATIENCE_S)

    def wait_for(self, text: str) -> str:
        while True:
            state = self._socket.recv(4096).decode()
            if text in state:
                return state

    def close(self) -> None:
        self._socket.close()


def test_the_daemon_takes_its_socket_over_and_says_how_it_goes(tmp_path: Path) -> None:
    scenario, path = tmp_path / "one.toml", tmp_path / "status.sock"
    scenario.write_text(SCENARIO)
    told = NotifySocket(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen(16)
        command = [*COMMAND, "daemon", "--embedded", str(scenario), "--socket", str(tmp_path / "not-this-one")]
        started = [sys.executable, "-c", AS_SYSTEMD, str(listening.fileno()), *command]
        environment = {**os.environ, "NOTIFY_SOCKET": str(told.path), "WATCHDOG_USEC": "1000000"}
        daemon = subprocess.Popen(started, env=environment, pass_fds=[listening.fileno()], stderr=subprocess.PIPE)
    try:
        told.wait_for("READY=1")
        assert "STATUS=saving" in told.wait_for("WATCHDOG=1")
        told.wait_for("WATCHDOG=1")
        assert json.loads(output_of("status", "--json", "--socket", path))["domains_worked_on"] == 1
        assert not (tmp_path / "not-this-one").exists()
        daemon.terminate()
        told.wait_for("STOPPING=1")
        assert daemon.wait(PATIENCE_S) == 0
        # Whoever made it removes it.
        assert path.exists()
    finally:
        daemon.kill()
        daemon.communicate()
        told.close()


def test_a_watchdog_that_bites_leaves_the_threads_stacks_and_no_core(tmp_path: Path) -> None:
    scenario = tmp_path / "one.toml"
    scenario.write_text(SCENARIO)
    told = NotifySocket(tmp_path)
    command = [*COMMAND, "daemon", "--embedded", str(scenario), "--socket", str(tmp_path / "status.sock")]
    environment = {**os.environ, "NOTIFY_SOCKET": str(told.path)}
    daemon = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        told.wait_for("STATUS=saving")
        daemon.send_signal(signal.SIGABRT)
        _, log = daemon.communicate(timeout=PATIENCE_S)
        assert daemon.returncode == -signal.SIGABRT
        assert "worker.py" in log and "most recent call first" in log
        assert not list(tmp_path.glob("core*"))
    finally:
        daemon.kill()
        daemon.communicate()
        told.close()


def test_the_pager_says_when_it_serves(tmp_path: Path) -> None:
    told = NotifySocket(tmp_path)
    with MachineProcess(256) as machine, scratch_directory(TMPFS) as state:
        command = [str(PAGER_PROGRAM), "--state", str(state), "--machine", str(machine.socket_path), "--store-mib", "1"]
        pager = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": str(told.path)}, stdout=subprocess.PIPE)
        try:
            assert told.wait_for("READY=1") == "READY=1\nSTATUS=serving faults"
            pager.terminate()
            told.wait_for("STOPPING=1")
            assert pager.wait(PATIENCE_S) == 0
        finally:
            pager.kill()
            pager.communicate()
            told.close()


def test_python_has_systemds_module() -> None:
    """Without it the tests above would test less than a package has."""
    assert subprocess.run([sys.executable, "-c", "import systemd.daemon, systemd.journal"]).returncode == 0
