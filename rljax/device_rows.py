"""One device's part of the rows of a batch, within a map over the axis `AXIS`.

What is drawn for a batch is drawn for all its rows, and each device takes its own: so the draws are
the same on any number of devices.
"""

import jax
from jax import Array
from jaxtyping import PRNGKeyArray

from rljax.agent import AXIS


def mine(x: Array) -> Array:
    """This device's share of rows `[B, ...]` that every device has whole."""
    count = x.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * count, count)


def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Standard normal draws `[B, ...]` for the B rows of this device."""
    return mine(jax.random.normal(key, _of_all(shape)))


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Uniform draws from [-1, 1), likewise."""
    return mine(jax.random.uniform(key, _of_all(shape), minval=-1.0))


def _of_all(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (jax.lax.axis_size(AXIS) * shape[0], *shape[1:])
