# SPDX-License-Identifier: GPL-2.0-or-later
"""Enumerations that arrays are compared with."""

from enum import IntEnum

import numpy as np


class ArrayEnum(IntEnum):
    """numpy asks the class of what an array is compared with for __array_ufunc__, twice. An enum that has none makes up
    an error for each in Python, which takes several times as long as to compare a thousand pages."""

    __array_ufunc__ = np.ndarray.__array_ufunc__
