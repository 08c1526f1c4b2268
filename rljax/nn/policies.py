"""From features to a distribution over actions, whatever the action space."""

import enum
import itertools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float

from rljax import distributions
from rljax.nn.heads import GaussianHead, LinearHead
from rljax.types import ActionSpec, Box, Discrete, MultiDiscrete


class BoxPolicy(enum.Enum):
    """Distribution over a box of actions."""

    NORMAL = "normal"  # unbounded; the environment gets the action clipped to its bounds
    TANH_NORMAL = "tanh_normal"  # squashed and stretched into the bounds


class Actor(nn.Module):
    """A torso, and the head that the action space asks for."""

    torso: nn.Module
    action: ActionSpec
    head_gain: float  # of the last layer's orthogonal init; small: the first policy is near uniform
    initial_log_scale: float  # boxes only: log deviations are free parameters

    @nn.compact
    def __call__(self, features: Float[Array, "*batch O"]) -> Any:
        """Logits `[..., n]`, or for boxes means `[..., A]` and log deviations `[A]`."""
        hidden = self.torso(features)
        if isinstance(self.action, Box):
            size = self.action.shape[0]
            return GaussianHead(size, self.head_gain, self.initial_log_scale)(hidden)
        return LinearHead(self.action.mask_shape[0], self.head_gain)(hidden)


def distribution(
    action: ActionSpec, box_policy: BoxPolicy, outputs: Any, mask: Bool[Array, "*batch n"] | None
) -> distributions.Distribution:
    """The distribution over `action` with an `Actor`'s outputs as parameters; masks are obeyed."""
    if isinstance(action, Discrete):
        return distributions.categorical(outputs, mask)
    if isinstance(action, MultiDiscrete):
        cuts = tuple(itertools.accumulate(action.nvec))[:-1]
        logits = jnp.split(outputs, cuts, axis=-1)
        masks = [None] * len(logits) if mask is None else jnp.split(mask, cuts, axis=-1)
        parts = [distributions.categorical(x, m) for x, m in zip(logits, masks, strict=True)]
        return distributions.Joint(tuple(parts))
    mean, log_scale = outputs
    normal = distributions.Normal(mean, jnp.broadcast_to(log_scale, mean.shape))
    if box_policy is BoxPolicy.NORMAL:
        return normal
    low, high = (jnp.broadcast_to(jnp.float32(x), mean.shape) for x in (action.low, action.high))
    return distributions.TanhNormal(normal, low, high)
