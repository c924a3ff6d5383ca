"""The estimators of path gradients by their names; ``tests/project/test_contributing.py`` adds one."""

from __future__ import annotations

import pytest

from pathlens.errors import UsageError
from pathlens.estimators import ALIASES, METHODS, estimators


def test_methods_are_the_estimators_and_all_of_them() -> None:
    assert [estimator.name for estimator in estimators()] == list(METHODS[:-1])
    for name in METHODS[:-1]:
        assert [estimator.name for estimator in estimators(name)] == [name]
    for other, name in ALIASES.items():
        assert [estimator.name for estimator in estimators(other)] == [name]
    with pytest.raises(UsageError, match=r"method 'guess' is unknown; give one of exact, sampled, signed, all"):
        estimators("guess")
