"""Gaussian policies over a box for agents that learn from given actions, scaled to [-1, 1].

Scaled, what is learned does not depend on the units of an action. A component without two finite
bounds keeps its units.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.distributions import Normal
from rljax.nn.mlp import dense
from rljax.types import Box

LOG_STD_RANGE = (-5.0, 2.0)  # of ln σ in units of [-1, 1], as in IQL's own code


def to_unit(action: Float[Array, "*batch A"], box: Box) -> Float[Array, "*batch A"]:
    """From the box to [-1, 1]."""
    center, half = (jnp.broadcast_to(x, action.shape) for x in _center_and_half(box))
    return (action - center) / half


def from_unit(unit: Float[Array, "*batch A"], box: Box) -> Float[Array, "*batch A"]:
    """From [-1, 1] to the box."""
    center, half = (jnp.broadcast_to(x, unit.shape) for x in _center_and_half(box))
    return center + half * unit


def stretched(normal: Normal, box: Box) -> Normal:
    """The distribution of `from_unit` of draws: its densities are of actions in the box's units.

    Draws may lie outside of the box; environments get them clipped.
    """
    _, half = _center_and_half(box)
    log_half = jnp.broadcast_to(np.log(half), normal.log_scale.shape)
    return Normal(from_unit(normal.mean, box), normal.log_scale + log_half)


class GaussianActor(nn.Module):
    """A torso, then means in [-1, 1] by tanh, and log deviations of their own or of the state."""

    torso: nn.Module
    box: Box
    state_dependent: bool  # log deviations from a layer; else they are free parameters
    initial_log_std: float
    head_gain: float  # of the last layers' orthogonal init

    @nn.compact
    def __call__(self, features: Any) -> Normal:
        """Features to a Gaussian that is not squashed: draws may lie beyond ±1."""
        hidden = self.torso(features)
        size = len(self.box.low)
        mean = dense(size, self.head_gain)(hidden)
        bounded = jnp.broadcast_to(_bounded(self.box), mean.shape)
        mean = jnp.where(bounded, jnp.tanh(mean), mean)
        if self.state_dependent:
            log_std = self.initial_log_std + dense(size, self.head_gain)(hidden)
        else:
            init = nn.initializers.constant(self.initial_log_std)
            log_std = jnp.broadcast_to(self.param("log_std", init, (size,)), mean.shape)
        return Normal(mean, jnp.clip(log_std, *LOG_STD_RANGE))


def _bounded(box: Box) -> np.ndarray:
    return np.isfinite(box.low) & np.isfinite(box.high)


def _center_and_half(box: Box) -> tuple[np.ndarray, np.ndarray]:
    low = np.where(_bounded(box), box.low, -1.0).astype(np.float32)
    high = np.where(_bounded(box), box.high, 1.0).astype(np.float32)
    return (low + high) / 2, (high - low) / 2
