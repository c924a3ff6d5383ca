"""The command line: parse, call, print, exit code. ``--help`` answers before torch is imported."""

from pathlens.cli.entry import app, main

__all__ = ["app", "main"]
