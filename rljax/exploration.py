"""How to act while values are not known yet: ε-greedy choices, and ε over time."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from rljax import distributions
from rljax.types import Scalar


def linear(step: Scalar, start: Scalar, end: Scalar, duration: float) -> Float[Array, ""]:
    """From `start` at step 0 straight to `end` at step `duration`; `end` from there on."""
    progress = jnp.clip(step / duration, 0.0, 1.0)
    return start + progress * (end - start)


def greedy(values: Float[Array, "*batch A"], mask: Bool[Array, "*batch A"] | None = None) -> Array:
    """The allowed action of greatest value, int32 `[...]`; the first of equals.

    A mask that forbids every action has no meaning; the result is then action 0.
    """
    if mask is not None:
        values = jnp.where(mask, values, -jnp.inf)
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def epsilon_greedy(
    values: Float[Array, "*batch A"],
    epsilon: Scalar,
    mask: Bool[Array, "*batch A"] | None = None,
) -> distributions.Categorical:
    """With probability ε any allowed action, all alike, else that of the greatest value.

    As a distribution, so that the propensities of its choices are known: 1 - ε + ε / k for the
    greatest of k allowed, ε / k for the others. A mask that forbids all is taken to allow all.
    """
    allowed = jnp.ones(values.shape, bool)
    if mask is not None:
        allowed = mask | ~jnp.any(mask, axis=-1, keepdims=True)
    best = jax.nn.one_hot(greedy(values, allowed), values.shape[-1])
    share = allowed / jnp.sum(allowed, axis=-1, keepdims=True)
    probabilities = (1 - epsilon) * best + epsilon * share
    possible = probabilities > 0
    return distributions.categorical(jnp.log(jnp.where(possible, probabilities, 1.0)), possible)
