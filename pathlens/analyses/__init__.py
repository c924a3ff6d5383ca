"""The public verbs: a network and data in, a table out."""

from pathlens.analyses.lesions import delete_blocks, delete_skips, reorder_blocks, view_of

__all__ = ["delete_blocks", "delete_skips", "reorder_blocks", "view_of"]
