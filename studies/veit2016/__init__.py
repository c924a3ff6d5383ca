"""Veit, Wilber and Belongie 2016, redone."""
