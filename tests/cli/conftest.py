"""Fixtures of the tests of the command line."""

from __future__ import annotations

import pytest

from tests.helpers.failing_commands import Failure


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Failure:
    return Failure(capfd)
