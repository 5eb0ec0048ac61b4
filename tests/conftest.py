# SPDX-License-Identifier: GPL-2.0-or-later
"""Being here makes the modules of this directory importable from the tests below it."""

import signal
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import settings

from diffengine.hypervisor.scratch import remove_abandoned

# Time limits per example fail by chance on a busy machine.
settings.register_profile("diffengine", deadline=None, print_blob=True)
settings.load_profile("diffengine")

# They run inside a dom0 (xen/README.md).
collect_ignore = ["xen/suite"]

SAMPLES = Path(__file__).parent / "images" / "small.tar.zst"


def pytest_sessionstart() -> None:
    """What tests that were killed left behind goes, those in C among them. Ctrl-C works as in a terminal, where a
    script's background job would hand down to all that it starts that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        remove_abandoned(place)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real guest memory by name (images/README.md), unpacked once for each test process."""
    directory = tmp_path_factory.mktemp("samples")
    with (
        SAMPLES.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        # Debian's Python is older than extractall's filters, and newer ones warn without.
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content:
                (directory / Path(member.name).name).write_bytes(content.read())
    return {path.stem: path for path in sorted(directory.rglob("*.raw"))}
