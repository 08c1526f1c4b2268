"""A critic of real actions that values many of them at once."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn.heads import ValueHead
from rljax.nn.mlp import MLP


class ManyActionsCritic(nn.Module):
    """Q of several actions for each observation, which is looked at once."""

    torso: nn.Module | None  # None: actions join a vector as it is
    hidden: MLP

    @nn.compact
    def __call__(self, features: Any, action: Float[Array, "*batch M A"]) -> Array:
        """Features and actions in [-1, 1] to values `[*batch, M]`."""
        seen = features if self.torso is None else self.torso(features)
        seen = jnp.broadcast_to(seen[..., None, :], (*action.shape[:-1], seen.shape[-1]))
        return ValueHead()(self.hidden(jnp.concatenate([seen, action], axis=-1)))
