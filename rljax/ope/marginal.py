"""Marginalized importance sampling for countable states (Xie et al. 2019, arXiv:1906.03393).

Instead of the product of all ratios so far it weighs a step by how likely π is to be in that
state then, estimated forwards in time. The variance grows with the horizon to a low power, not
exponentially, where episodes share states; where each state is seen once it is PDIS again.
"""

import numpy as np
from jaxtyping import Float, Int

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import times_weight


def marginal_importance_sampling(
    trajectories: Trajectories, state: Int[np.ndarray, "E T"]
) -> float:
    """MIS: Σ_t γ^t Σ_s d_t(s) r_t(s), d_t being the share of time step t that π spends in s.

        d_{t+1}(s') = Σ_s d_t(s) · mean of w_t 1(s_{t+1} = s') over the episodes in s at step t

    and r_t(s) is the mean of w_t r_t over the same episodes (their §3). `state` numbers what is
    observed, from 0; what follows from it must not depend on how it was reached.

    Raises:
        ValueError: a state is negative, or a ratio infinite.
    """
    return float(resampled(trajectories, state, np.ones((1, trajectories.num_episodes)))[0])


def resampled(
    trajectories: Trajectories,
    state: Int[np.ndarray, "E T"],
    counts: Float[np.ndarray, "R E"],
) -> Float[np.ndarray, " R"]:
    """The estimate of each resample, from how often each episode was drawn."""
    if state[trajectories.valid].min() < 0:
        raise ValueError("states must be numbered from 0.")
    trajectories_lib.log_weights(trajectories)  # which refuses ratios that are infinite
    ratio = times_weight(trajectories.log_ratio, np.ones_like(trajectories.reward))
    paid = trajectories_lib.rewards(trajectories) * ratio
    discount = np.exp(trajectories_lib.log_discounts(trajectories))
    # flow: what a draw of each episode stands for of d_t, summed over its draws
    flow = counts / counts.sum(axis=1, keepdims=True)
    value = np.zeros(len(counts))
    for step in range(trajectories.num_steps):
        here = np.flatnonzero(trajectories.valid[:, step])
        if step:
            flow = _spread(flow[:, here], counts[:, here], state[here, step])
            flow = _placed(flow, here, counts.shape)
        value += discount[step] * (flow[:, here] @ paid[here, step])
        flow = flow * ratio[None, :, step]
    return value


def _spread(
    flow: Float[np.ndarray, "R E"], counts: Float[np.ndarray, "R E"], state: Int[np.ndarray, " E"]
) -> Float[np.ndarray, "R E"]:
    """What flowed into a state, shared by all draws of episodes that are in it."""
    _, state = np.unique(state, return_inverse=True)
    index = (np.arange(len(flow))[:, None] * (state.max() + 1) + state[None]).ravel()
    arrived = np.bincount(index, flow.ravel())[index]
    present = np.bincount(index, counts.ravel())[index]
    share = arrived / np.where(present > 0, present, 1.0)
    return share.reshape(flow.shape) * counts


def _placed(
    flow: Float[np.ndarray, "R E2"], columns: Int[np.ndarray, " E2"], shape: tuple[int, ...]
) -> Float[np.ndarray, "R E"]:
    placed = np.zeros(shape)
    placed[:, columns] = flow
    return placed
