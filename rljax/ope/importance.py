"""Importance sampling over whole trajectories and over single steps.

Sources: Precup et al. 2000, "Eligibility traces for off-policy policy evaluation"; Thomas 2015,
"Safe reinforcement learning", §3.

ρ_t = Π_{k<=t} π(a_k|s_k) / b(a_k|s_k), in log space. Plain estimators are unbiased; the weighted
ones divide by their weights: biased by O(1/E), with far less variance.
"""

import numpy as np

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import WeightedMeans, plain, times_weight


def importance_sampling(trajectories: Trajectories) -> WeightedMeans:
    """IS: the mean of ρ_{T-1}·G, where G is the discounted return."""
    log_weight = trajectories_lib.log_weights(trajectories)[:, -1]
    return plain(times_weight(log_weight, trajectories_lib.returns(trajectories)))


def weighted_importance_sampling(trajectories: Trajectories) -> WeightedMeans:
    """WIS: Σ ρ_{T-1}·G / Σ ρ_{T-1}. Never leaves the range of the returns that were logged."""
    log_weight = trajectories_lib.log_weights(trajectories)[:, -1:]
    return WeightedMeans(trajectories_lib.returns(trajectories)[:, None], log_weight)


def per_decision(trajectories: Trajectories) -> WeightedMeans:
    """PDIS: the mean of Σ_t γ^t ρ_t r_t: later actions do not weigh what was paid before them."""
    log_weight = trajectories_lib.log_weights(trajectories)
    log_weight = log_weight + trajectories_lib.log_discounts(trajectories)[None]
    return plain(times_weight(log_weight, trajectories_lib.rewards(trajectories)).sum(axis=1))


def weighted_per_decision(trajectories: Trajectories) -> WeightedMeans:
    """WPDIS: Σ_t γ^t (Σ_i ρ_t r_t) / (Σ_i ρ_t); ended episodes stay in the later denominators."""
    discount = np.exp(trajectories_lib.log_discounts(trajectories))
    value = discount[None] * trajectories_lib.rewards(trajectories)
    return WeightedMeans(value, trajectories_lib.log_weights(trajectories))
