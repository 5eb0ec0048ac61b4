# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m diffengine` is the `diffengine` command."""

import sys


def main() -> int:
    try:
        # Takes half a second, in which Ctrl-C is as likely as later.
        from diffengine.cli import main as run
    except KeyboardInterrupt:
        print("diffengine: interrupted; nothing was changed", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
