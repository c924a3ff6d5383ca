"""Objections to the paper, put to the numbers."""
