"""What offline agents do with the rows of a batch before they learn from them.

Within a map over the axis `AXIS`: each device holds its share of the rows.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from rljax import normalizers
from rljax.agent import AXIS
from rljax.replay.base import Sample
from rljax.types import Observation


def normalized(
    observation: Observation, moments: normalizers.Moments | None, clip: float
) -> Observation:
    """The observation as networks see it: by the dataset's moments, or as it is where None."""
    features = normalizers.normalize_observation(observation.features, moments, clip)
    return observation._replace(features=features)


def normalized_sample(batch: Sample, moments: normalizers.Moments | None, clip: float) -> Sample:
    """The batch with both of its observations `normalized`."""
    return batch._replace(
        observation=normalized(batch.observation, moments, clip),
        next_observation=normalized(batch.next_observation, moments, clip),
    )


def shares(weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """Weights whose sums over rows, meant over the devices, are means over all rows of weight 1."""
    return weight / jnp.maximum(jax.lax.pmean(jnp.sum(weight), AXIS), 1.0)


def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Standard normal draws `[B, ...]` for this device's rows: the same on any number of them."""
    return _mine(jax.random.normal(key, _of_all(shape)), shape[0])


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Uniform draws from [-1, 1) `[B, ...]`, likewise."""
    return _mine(jax.random.uniform(key, _of_all(shape), minval=-1.0), shape[0])


def _of_all(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (jax.lax.axis_size(AXIS) * shape[0], *shape[1:])


def _mine(draws: Array, rows: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(draws, jax.lax.axis_index(AXIS) * rows, rows)
