"""Weighted means and what follows from them, over the rows of all devices on the axis `AXIS`."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax.agent import AXIS


def mean_over_devices(x: Float[Array, "*rows"], weight: Float[Array, "*rows"]) -> Float[Array, ""]:
    """Weighted mean over the rows of all devices; 0 where no row has weight."""
    total, weight = jax.lax.psum((jnp.sum(weight * x), jnp.sum(weight)), AXIS)
    return total / jnp.maximum(weight, 1.0)


def share_of_rows(weight: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Weights whose sums over rows, meant over the devices, are means over all rows of weight 1."""
    return weight / jnp.maximum(jax.lax.pmean(jnp.sum(weight), AXIS), 1.0)


def standardize(advantage: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """Mean 0 and deviation 1 over all devices' rows of the minibatch, each with its weight."""
    centered = advantage - mean_over_devices(advantage, weight)
    return centered / (jnp.sqrt(mean_over_devices(centered**2, weight)) + 1e-8)


def explained_variance(
    value: Float[Array, "*rows"], target: Float[Array, "*rows"], weight: Float[Array, "*rows"]
) -> Float[Array, ""]:
    """1 - Var(G - V) / Var(G): 1 for a perfect critic, 0 for a constant one, negative for worse."""

    def variance(x: Array) -> Array:
        return mean_over_devices((x - mean_over_devices(x, weight)) ** 2, weight)

    return 1 - variance(target - value) / jnp.maximum(variance(target), 1e-8)
