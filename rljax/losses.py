"""Loss terms that more than one algorithm uses: functions of arrays, one number per row.

None of them averages: the caller owns the weights of its rows.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax.types import Scalar


def policy_gradient(
    log_prob: Float[Array, "*batch"], advantage: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-A log π: its gradient is minus the policy's (Sutton et al. 1999); A is a constant."""
    return -jax.lax.stop_gradient(advantage) * log_prob


def squared_error(
    value: Float[Array, "*batch"], target: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """½(V - G)², with its half; the gradient reaches V only."""
    return 0.5 * (value - jax.lax.stop_gradient(target)) ** 2


def clipped_surrogate(
    log_ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], epsilon: Scalar
) -> Float[Array, "*batch"]:
    """-min(ρA, clip(ρ, 1-ε, 1+ε)A), ρ = exp(log_ratio): minus Schulman et al. 2017, eq. 7."""
    ratio = jnp.exp(jnp.minimum(log_ratio, 80.0))  # finite, or 0 · ∞ is the gradient of the clip
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def clipped_value(
    value: Float[Array, "*batch"],
    old_value: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    epsilon: Scalar,
) -> Float[Array, "*batch"]:
    """½·max((V - G)², (V_old + clip(V - V_old, ±ε) - G)²), as OpenAI's baselines have it."""
    near = old_value + jnp.clip(value - old_value, -epsilon, epsilon)
    return 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)


def huber(error: Float[Array, "*batch"], threshold: Scalar) -> Float[Array, "*batch"]:
    """½e² up to |e| = threshold, straight on from there: the slope is never more than threshold."""
    near = jnp.clip(error, -threshold, threshold)
    return near * (error - 0.5 * near)
