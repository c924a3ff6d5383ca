"""Moments of activations and gradients at the blocks of a network: measured, and as theory expects them."""

from pathlens.propagation.expectation import Expected, expect
from pathlens.propagation.growth import Growth, growth_of, overflow_block
from pathlens.propagation.measure import PLACES, Reading, measure
from pathlens.propagation.moments import QUANTITIES, Moments, moments

__all__ = [
    "PLACES",
    "QUANTITIES",
    "Expected",
    "Growth",
    "Moments",
    "Reading",
    "expect",
    "growth_of",
    "measure",
    "moments",
    "overflow_block",
]
