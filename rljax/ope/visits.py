"""Steps weighed by how much more often π visits their states than the log does (see `dice`)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import WeightedMeans, times_weight


class Visits(NamedTuple):
    """How π visits the states of logged episodes."""

    ratio: Float[np.ndarray, "E T"]  # w = d_π / d_D, up to a factor that all steps share
    terminated: Bool[np.ndarray, " E"]  # by the task; else by a time limit, or where the log ends


def marginalized_ratios(trajectories: Trajectories, visits: Visits) -> WeightedMeans:
    """DICE: Σ w ρ r / Σ w ρ (1 - γ c), c being 0 where a step terminated, else 1.

    Both sums are over all steps; `last_value` is not looked at. The mean of the second one's terms
    is 1 for the right w: as much leaves π's visits, by discount and termination, as starts.

    Raises:
        ValueError: the discount is 1, a w is negative, or a ρ infinite.
    """
    left = _leaving(trajectories, visits).sum(axis=1)
    paid = (_weights(trajectories, visits) * trajectories.reward).sum(axis=1)
    with np.errstate(divide="ignore"):
        log_left = np.log(left)
    return WeightedMeans((paid / np.where(left > 0, left, 1.0))[:, None], log_left[:, None])


def mass(trajectories: Trajectories, visits: Visits) -> float:
    """The mean of w ρ (1 - γ c) over the steps: 1 where the flow is in balance.

    Below 1 where visits are lost: w has not learned for long enough, or π goes where nothing was
    logged. It is no measure of the error: 1 proves nothing.
    """
    return float(_leaving(trajectories, visits).sum() / trajectories.valid.sum())


def _leaving(trajectories: Trajectories, visits: Visits) -> Float[np.ndarray, "E T"]:
    if trajectories.discount >= 1:
        raise ValueError("visits are discounted: γ must be below 1.")
    leaving = np.full(trajectories.valid.shape, 1 - trajectories.discount)
    last = trajectories.valid.sum(axis=1) - 1
    leaving[np.flatnonzero(visits.terminated), last[visits.terminated]] = 1.0
    return _weights(trajectories, visits) * leaving


def _weights(trajectories: Trajectories, visits: Visits) -> Float[np.ndarray, "E T"]:
    ratio = np.where(trajectories.valid, visits.ratio, 0.0)
    if not (ratio >= 0).all():
        raise ValueError("a ratio of visits is negative or not a number.")
    trajectories_lib.log_weights(trajectories)  # which refuses ratios that are infinite
    return times_weight(trajectories.log_ratio, ratio)
