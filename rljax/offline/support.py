"""Choices that the data speak of: actions which a model of the behavior finds too rare are out.

Fujimoto et al. 2019, arXiv:1910.01708, eq. 5 (discrete BCQ): of what is left, an agent may choose.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from rljax.distributions import Categorical


def supported(
    behavior: Categorical, threshold: float, mask: Bool[Array, "*batch A"] | None
) -> Bool[Array, "*batch A"]:
    """Allowed actions of at least `threshold` times the greatest probability; that one always.

    0 leaves every allowed action, 1 the most probable alone. Where the mask forbids every action,
    which has no meaning, all are taken to be allowed.
    """
    log_probs = behavior.log_probs
    allowed = jnp.ones(log_probs.shape, bool)
    if mask is not None:
        allowed = mask | ~jnp.any(mask, axis=-1, keepdims=True)
    if threshold == 0:
        return allowed
    best = jnp.max(jnp.where(allowed, log_probs, -jnp.inf), axis=-1, keepdims=True)
    return allowed & (log_probs - best >= jnp.log(threshold))
