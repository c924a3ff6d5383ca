"""Small networks that choose, example by example, which blocks of another network run."""

from pathlens.policies.dropping import BlockDrop, blockdrop
from pathlens.policies.learning import Settings

__all__ = ["BlockDrop", "Settings", "blockdrop"]
