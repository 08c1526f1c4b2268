"""Copies of one network, each with parameters of its own, evaluated side by side.

Parameters have a leading axis E, one entry a copy; so have outputs. A copy sees what all see.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import PRNGKeyArray

NUM_CRITICS = 2  # E: targets take the lesser, against overestimation (Fujimoto et al. 2018)


def init(network: nn.Module, size: int, key: PRNGKeyArray, *inputs: Any) -> Any:
    """Parameters of `size` copies, each from a key of its own; inputs are examples."""
    return jax.vmap(lambda key: network.init(key, *inputs))(jax.random.split(key, size))


def apply(network: nn.Module, params: Any, *inputs: Any) -> Array:
    """Outputs `[E, ...]` of all copies."""
    return jax.vmap(lambda params: jnp.asarray(network.apply(params, *inputs)))(params)
