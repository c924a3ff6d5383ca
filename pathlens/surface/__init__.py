"""The loss as a function of the weights: directions, weights moved along them and put back, statistics, curvature."""

from pathlens.surface.curvature import Hessian, Spectrum
from pathlens.surface.directions import DIMENSIONAL, between, random
from pathlens.surface.statistics import Statistics
from pathlens.surface.weights import Weights, moving

__all__ = ["DIMENSIONAL", "Hessian", "Spectrum", "Statistics", "Weights", "between", "moving", "random"]
