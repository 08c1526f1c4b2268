"""Returns and advantages: one linear recurrence each, over `[T, B]`, time first.

Episode ends are read from `discount` and `valid` alone (see `rljax.types`): a terminated row has
discount 0; a row that follows any ending, by termination or by time limit, is not valid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from rljax.types import Scalar


def linear_recurrence(
    add: Float[Array, "T B"], multiply: Float[Array, "T B"], *, reverse: bool = False
) -> Float[Array, "T B"]:
    """y_t = add_t + multiply_t · y_{t-1} with y_{-1} = 0; `reverse` runs it from the end.

    In log2(T) vector steps instead of T small ones (Blelloch 1990, "Prefix sums", §1.4).
    """

    def combine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return second[0] + second[1] * first[0], second[1] * first[1]

    return jax.lax.associative_scan(combine, (add, multiply), reverse=reverse)[0]


def gae(
    reward: Float[Array, "T B"],
    discount: Float[Array, "T B"],
    valid: Bool[Array, "T B"],
    value: Float[Array, "T B"],
    last_value: Float[Array, " B"],
    gamma: Scalar,
    lambda_: Scalar,
) -> Float[Array, "T B"]:
    """Generalized advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        δ_t = r_t + γ·discount_t·V_{t+1} - V_t         A_t = δ_t + γλ·discount_t·continues_t·A_{t+1}

    `continues_t` is `valid_{t+1}`: the trace is cut behind every ending. A row that was truncated
    bootstraps from V of the next row, which holds its true final observation. `last_value` is V of
    the observation after the last row. Rows that are not valid get 0. Value targets are A + V.
    """
    next_value = jnp.concatenate([value[1:], last_value[None]])
    continues = jnp.concatenate([valid[1:], jnp.ones_like(valid[:1])]).astype(value.dtype)
    delta = reward + gamma * discount * next_value - value
    advantage = linear_recurrence(delta, gamma * lambda_ * discount * continues, reverse=True)
    return jnp.where(valid, advantage, 0.0)


class VTraceConstants(NamedTuple):
    """The constants of V-trace; the three bounds may be infinite. The theory asks for ρ̄ >= c̄."""

    gamma: Scalar  # γ, the discount
    lambda_: Scalar = 1.0  # λ of remark 2: shortens the traces; 0 is one step
    rho_bound: Scalar = 1.0  # ρ̄: decides which policy's V is learned; ∞: that of the learner
    c_bound: Scalar = 1.0  # c̄: decides only how fast, against how much variance
    policy_rho_bound: Scalar = 1.0  # ρ̄ of the policy gradient, §4.2


class VTrace(NamedTuple):
    """What to learn from a rollout of another policy; no gradient flows through it."""

    target: Float[Array, "T B"]  # v_t, for V; on rows that are not valid V itself
    advantage: Float[Array, "T B"]  # ρ_t (q_t - V_t), for log π; on rows that are not valid 0


def vtrace(
    log_ratio: Float[Array, "T B"],
    reward: Float[Array, "T B"],
    discount: Float[Array, "T B"],
    valid: Bool[Array, "T B"],
    value: Float[Array, "T B"],
    last_value: Float[Array, " B"],
    constants: VTraceConstants,
) -> VTrace:
    """V-trace (Espeholt et al. 2018, arXiv:1802.01561, eq. 1, remarks 1 and 2, §4.2).

        δ_t = min(ρ̄, π/μ) (r_t + γ·discount_t·V_{t+1} - V_t)
        v_t - V_t = δ_t + γ·discount_t·continues_t·λ·min(c̄, π/μ) (v_{t+1} - V_{t+1})
        q_t = r_t + γ·discount_t·(V_{t+1} + λ (v_{t+1} - V_{t+1}))

    `log_ratio` is log π - log μ of the action taken: π is the policy that learns, μ the one that
    acted. Ends of episodes are treated as in `gae`: at a truncated row v_{t+1} is V of the next
    row, which holds the true final observation. The λ in q_t is not the paper's, whose λ there is
    1; with it the advantage is `gae`'s where π is μ.
    """
    value, last_value, log_ratio = jax.lax.stop_gradient((value, last_value, log_ratio))
    next_value = jnp.concatenate([value[1:], last_value[None]])
    continues = jnp.concatenate([valid[1:], jnp.ones_like(valid[:1])]).astype(value.dtype)
    decay = constants.gamma * discount
    ratio = jnp.exp(jnp.minimum(log_ratio, 80.0))  # finite, so that without bounds 0 · ρ is 0
    rho, c = jnp.minimum(constants.rho_bound, ratio), jnp.minimum(constants.c_bound, ratio)
    delta = rho * (reward + decay * next_value - value)
    trace = decay * continues * constants.lambda_ * c
    correction = jnp.where(valid, linear_recurrence(delta, trace, reverse=True), 0.0)  # v - V
    next_correction = jnp.concatenate([correction[1:], jnp.zeros_like(correction[:1])])
    q = reward + decay * (next_value + constants.lambda_ * next_correction)
    policy_rho = jnp.minimum(constants.policy_rho_bound, ratio)
    return VTrace(value + correction, jnp.where(valid, policy_rho * (q - value), 0.0))


def running_discounted_sum(
    reward: Float[Array, "T B"],
    valid: Bool[Array, "T B"],
    before: Float[Array, " B"],
    gamma: Scalar,
) -> Float[Array, "T B"]:
    """G_t = r_t + γ·G_{t-1}, looking back over the episode so far: what reward scaling measures.

    `before` is G of the row before the first. A row that is not valid (reward 0) restarts it at 0.
    """
    decay = gamma * valid.astype(reward.dtype)
    first = reward[0] + decay[0] * before
    return linear_recurrence(jnp.concatenate([first[None], reward[1:]]), decay)
