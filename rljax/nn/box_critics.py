"""Critics of real actions, scaled to [-1, 1]."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn import torsos
from rljax.nn.heads import ValueHead
from rljax.nn.mlp import MLP, Activation
from rljax.types import EnvSpec


class BoxCritic(nn.Module):
    """Q of a real action: joined to a vector as it is, to anything else behind its torso."""

    torso: nn.Module | None
    hidden: MLP

    @nn.compact
    def __call__(self, features: Any, action: Float[Array, "*actions A"]) -> Array:
        """Features and actions to values: `[*batch, A]` to `[*batch]`.

        Or several actions of each observation, which is looked at once: `[*batch, M, A]` to
        `[*batch, M]`.
        """
        seen = features if self.torso is None else self.torso(features)
        if action.ndim > seen.ndim:
            seen = jnp.broadcast_to(seen[..., None, :], (*action.shape[:-1], seen.shape[-1]))
        joined = jnp.concatenate([seen, action], axis=-1)
        # Rows on one axis: of several critics with more, XLA transposes what every layer gives.
        rows = joined.reshape(-1, joined.shape[-1])
        return ValueHead()(self.hidden(rows)).reshape(joined.shape[:-1])


def make(
    spec: EnvSpec,
    torso: nn.Module,
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    *,
    layer_norm: bool = False,
) -> BoxCritic:
    """A critic for what the environment shows; the torso, of its own, is for anything but vectors.

    `layer_norm` is of the hidden layers.
    """
    vector = not (spec.named_parts or torsos.has_pixels(spec))
    hidden = MLP(hidden_sizes, activation, layer_norm)
    return BoxCritic(None if vector else torso.copy(), hidden)
