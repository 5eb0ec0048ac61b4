# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that go with their process, also if it was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffengine.hypervisor.scratch import remove_abandoned, scratch_directory

OWNER = """
import sys, time
from pathlib import Path
from diffengine.hypervisor.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as path:
    (path / "file").write_text("x")
    print(path, flush=True)
    time.sleep(600)
"""


def test_it_goes_with_the_block_whatever_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError), scratch_directory(tmp_path) as path:
        (path / "folder").mkdir()
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_only_a_dead_owners_is_removed(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        with scratch_directory(tmp_path):
            remove_abandoned(tmp_path)
            assert (path / "file").exists()
        owner.kill()
        owner.wait()
        assert path.exists()
        with scratch_directory(tmp_path) as mine:
            assert {found.name for found in tmp_path.iterdir()} == {"others", mine.name}
