# SPDX-License-Identifier: GPL-2.0-or-later
"""The paper's tables and figures, and today's peers, rerun on this machine: `diffengine evaluate`."""
