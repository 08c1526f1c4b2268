"""Steps weighed by how much more often π visits their states than the log does (see `dice`)."""

import numpy as np
from jaxtyping import Float

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import WeightedMeans, times_weight


def marginalized_ratios(
    trajectories: Trajectories, visits: Float[np.ndarray, "E T"]
) -> WeightedMeans:
    """DICE: Σ w ρ r / Σ w ρ (1 - γ c), c being 0 at the last step of an episode, else 1.

    Both sums are over all steps, and γ·`last_value` belongs to the last reward. The mean of the
    second one's terms is 1 for the right w: as much leaves π's visits, by discount and where
    episodes end, as starts.

    Args:
        trajectories: what was logged.
        visits: w = d_π / d_D of each step's state, or any multiple of it.

    Raises:
        ValueError: the discount is 1, a w is negative, or a ρ infinite.
    """
    left = _leaving(trajectories, visits).sum(axis=1)
    paid = _weights(trajectories, visits) * trajectories_lib.rewards(trajectories)
    with np.errstate(divide="ignore"):
        log_left = np.log(left)
    return WeightedMeans(
        (paid.sum(axis=1) / np.where(left > 0, left, 1.0))[:, None], log_left[:, None]
    )


def mass(trajectories: Trajectories, visits: Float[np.ndarray, "E T"]) -> float:
    """The mean of w ρ (1 - γ c) over the steps: 1 where the flow is in balance.

    Far from 1 the flow is not solved, or ρ are not ratios of b, which average 1 in every state. It
    is no measure of the error: 1 proves nothing.
    """
    return float(_leaving(trajectories, visits).sum() / trajectories.valid.sum())


def _leaving(
    trajectories: Trajectories, visits: Float[np.ndarray, "E T"]
) -> Float[np.ndarray, "E T"]:
    if trajectories.discount >= 1:
        raise ValueError("visits are discounted: γ must be below 1.")
    leaving = np.full(trajectories.valid.shape, 1 - trajectories.discount)
    rows = np.arange(trajectories.num_episodes)
    leaving[rows, trajectories.valid.sum(axis=1) - 1] = 1.0
    return _weights(trajectories, visits) * leaving


def _weights(
    trajectories: Trajectories, visits: Float[np.ndarray, "E T"]
) -> Float[np.ndarray, "E T"]:
    ratio = np.where(trajectories.valid, visits, 0.0)
    if not (ratio >= 0).all():
        raise ValueError("a ratio of visits is negative or not a number.")
    trajectories_lib.log_weights(trajectories)  # which refuses ratios that are infinite
    return times_weight(trajectories.log_ratio, ratio)
