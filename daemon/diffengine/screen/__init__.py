# SPDX-License-Identifier: GPL-2.0-or-later
"""The live screen of `diffengine top`: what the status socket says, as figures, as text, and as an application."""
