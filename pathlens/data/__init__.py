"""Seeded, fixed-order batches of images by name or path, of the tokens of a text, and of numbers.

Images are opened by :func:`open_data`, a text by :func:`open_text`, arrays of numbers by :func:`open_arrays`.
"""

from pathlens.data.arrays import ArrayData, open_arrays
from pathlens.data.batched import Batch
from pathlens.data.images import ImageData, check_labels
from pathlens.data.opening import open_data
from pathlens.data.text import TextData, check_tokens, open_text

DataSet = ImageData | TextData | ArrayData
"""What analyses and trainings take: numbered batches, the same in every run."""

__all__ = [
    "ArrayData",
    "Batch",
    "DataSet",
    "ImageData",
    "TextData",
    "check_labels",
    "check_tokens",
    "open_arrays",
    "open_data",
    "open_text",
]
