"""Small networks that choose, image by image, which blocks of another network run."""

from pathlens.policies.dropping import BlockDrop, blockdrop
from pathlens.policies.learning import Settings

__all__ = ["BlockDrop", "Settings", "blockdrop"]
