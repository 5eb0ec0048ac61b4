# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m diffengine` is the `diffengine` command."""

import sys

from diffengine.cli import main

sys.exit(main())
