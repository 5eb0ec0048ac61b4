#!/usr/bin/python3 -I
"""The `diffengine` command, with modules of its own before the system's."""

import sys

sys.path.insert(0, "/usr/lib/diffengine")

from diffengine.__main__ import main  # noqa: E402

sys.exit(main())
