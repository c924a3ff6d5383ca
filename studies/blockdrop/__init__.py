"""Blocks chosen for each image against the same number of blocks for all (Wu et al. 2018)."""
