"""Residual networks without normalisation, after Civitelli et al. 2021: signals, trainings and paths."""
