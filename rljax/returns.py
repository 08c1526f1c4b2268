"""Returns and advantages: one linear recurrence each, over `[T, B]`, time first.

Episode ends are read from `discount` and `valid` alone (see `rljax.types`): a terminated row has
discount 0; a row that follows any ending, by termination or by time limit, is not valid.
"""

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
