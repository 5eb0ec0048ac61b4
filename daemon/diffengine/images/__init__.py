# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory images of VMs, read in place: every page is an address inside a read-only mapping of its file."""

from diffengine.images.image_set import Image, ImageSet, open_images
from diffengine.images.layout import PAGE_BYTES

__all__ = ["PAGE_BYTES", "Image", "ImageSet", "open_images"]
