# SPDX-License-Identifier: GPL-2.0-or-later
"""Difference Engine: share, patch, compress and swap the memory that VMs hold redundantly."""
