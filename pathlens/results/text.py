"""Numbers and provenance as text, for terminals, figures and pages alike."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pathlens.tables import Provenance

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(power: float) -> str:
    """``10⁻¹¹``, without a formula: figures draw none, so that names of modules are never taken for one."""
    return f"10{str(round(power)).translate(_SUPERSCRIPT)}"


def with_power(text: str) -> str:
    """``1.2×10⁻⁶`` for ``1.2e-06``; a text without an exponent stays as it is."""
    digits, _, exponent = text.partition("e")
    return f"{digits}×{power_of_ten(int(exponent))}" if exponent else digits


def number(value: float) -> str:
    """Three digits, as ``0.0123`` or ``1.23×10⁻⁶``; integers of any size."""
    return with_power(f"{Decimal(value) if isinstance(value, int) else value:.3g}")


def percent(fraction: float) -> str:
    """``39.44 %``, which is not broken over lines."""
    return f"{100 * fraction:.2f}\N{NO-BREAK SPACE}%"


def said(value: Any) -> str:
    """A value of a manifest as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(said, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {said(item)}" for key, item in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summary(provenance: Provenance) -> str:
    """One line that says on what the numbers of a table rest."""
    get = provenance.get
    left_out = f", {get('images_left_out')} left out" if get("images_left_out") else ""
    number = f"{get('images', '')} {get('examples', 'images')}{left_out}"
    parts = [
        f"{get('model', get('network'))}, weights {get('weights', 'as given')}",
        f"{get('data')} {get('split', '')} {number}".replace("  ", " "),
        f"normalisation {get('normalisation')}",
        f"{get('dtype')} on {get('device')}",
        f"seed {get('seed')}",
        f"{get('seconds')} s",
    ]
    return "; ".join(parts)
