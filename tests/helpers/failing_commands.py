"""Exit codes, and commands that must fail."""

from __future__ import annotations

import pytest

from pathlens.cli import main

USAGE, MODEL, WEIGHTS, DATA, NUMBERS, RESOURCE, RUN = 2, 3, 4, 5, 6, 7, 8


class Failure:
    """Runs a command that must fail, and checks what all failures have in common."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, arguments: list[str], code: int, words: list[str]) -> str:
        self.capfd.readouterr()
        assert main(arguments) == code
        printed = self.capfd.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("pathlens: error: ")
        for word in words:
            assert word in line
        return line
