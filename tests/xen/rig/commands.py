# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that the rig runs: quiet if they succeed, their last lines if not."""

import os
import subprocess
from pathlib import Path

from xen.rig.errors import RigError

LAST_LINES = 25


def run(*command: str | Path, cwd: Path | None = None, stdin: str | None = None, path: str | None = None) -> str:
    """Its standard output. RigError if it fails. path: a folder whose programs come first."""
    words = [str(word) for word in command]
    environment = {**os.environ, "LC_ALL": "C"}
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except FileNotFoundError as error:
        raise RigError(f"{words[0]} is not installed: `make test-xen-smoke` installs what the rig needs") from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
        raise RigError(f"{' '.join(words)} failed with status {done.returncode}:\n{tail}")
    return done.stdout
