"""From features to a distribution over actions, whatever the action space."""

import enum
import itertools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, PRNGKeyArray

from rljax import distributions
from rljax.nn.heads import GaussianHead, LinearHead
from rljax.types import ActionSpec, Box, Discrete, EnvSpec, MultiDiscrete, Observation


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
    def __call__(self, features: Any) -> Any:
        """Logits `[..., n]`, or for boxes means `[..., A]` and log deviations `[A]`."""
        return head(self.action, self.head_gain, self.initial_log_scale)(self.torso(features))


def head(action: ActionSpec, gain: float, initial_log_scale: float) -> nn.Module:
    """The policy's last layer: from a hidden vector to what `distribution` takes."""
    if isinstance(action, Box):
        return GaussianHead(action.shape[0], gain, initial_log_scale)
    return LinearHead(action.mask_shape[0], gain)


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


def mask_of(observation: Observation) -> Bool[Array, "*batch n"] | None:
    """The mask of allowed actions as an array of JAX's, where the observation has one."""
    return None if observation.mask is None else jnp.asarray(observation.mask)


def check(box_policy: BoxPolicy, spec: EnvSpec) -> None:
    """Raises ValueError for a squashed policy over a box without bounds."""
    if isinstance(spec.action, Box) and not spec.action.bounded:
        if box_policy is BoxPolicy.TANH_NORMAL:
            raise ValueError(f"{spec.name} has unbounded actions: use config.box_policy=normal.")


def decide(
    chosen_by: distributions.Distribution, key: PRNGKeyArray, *, greedy: bool
) -> tuple[Array, dict[str, Array]]:
    """The mode or a draw, and all that can be said of the decision: the extras of `Agent.act`."""
    action = chosen_by.mode() if greedy else chosen_by.sample(key)
    said = {"log_prob": chosen_by.log_prob(action), "entropy": chosen_by.entropy()}
    return action, {**said, **chosen_by.parameters()}
