"""Seeded, fixed-order batches of images by name or path.

The one entry point is :func:`open_data`; what it returns is an :class:`ImageData`.
"""

from pathlens.data.images import Batch, ImageData, check_labels
from pathlens.data.opening import open_data

__all__ = ["Batch", "ImageData", "check_labels", "open_data"]
