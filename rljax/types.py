"""The types that pass between the packages, and the legend of their axes.

Axes: T time, B batch or environments, A actions, O observation, H horizon, L tokens, V vocabulary,
D devices. Arrays are time-major, `[T, B, ...]`; tokens alone are `[B, L]`.

One row of a rollout is one call of the environment's `step`. Environments restart themselves on the
call *after* an ending one (EnvPool's and Gymnasium's next-step autoreset), so

    row t      discount 0 if the episode terminated here, else 1 (a time limit is no termination)
    row t+1    holds the true final observation; its action was ignored: `valid` is False
    row t+2    starts the next episode
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Metrics = dict[str, Array]  # "group/noun" -> scalar
Scalar = float | Array  # a number that may be traced


@dataclasses.dataclass(frozen=True)
class Discrete:
    """One of `num_actions` actions: int32 `[...]` from 0."""

    num_actions: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return ()

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of one action mask: True where the action is allowed."""
        return (self.num_actions,)

    @property
    def dtype(self) -> str:
        """Type of an action."""
        return "int32"


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """One choice per component: int32 `[..., K]`; masks are concatenated, `[..., sum(nvec)]`."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return (len(self.nvec),)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of one action mask: the components' masks, one after another."""
        return (sum(self.nvec),)

    @property
    def dtype(self) -> str:
        """Type of an action."""
        return "int32"


@dataclasses.dataclass(frozen=True)
class Box:
    """A vector of reals, float32 `[..., A]`, within `low` and `high` (which may be infinite)."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return (len(self.low),)

    @property
    def dtype(self) -> str:
        """Type of an action."""
        return "float32"

    @property
    def bounded(self) -> bool:
        """Whether every bound is finite."""
        return all(math.isfinite(x) for x in (*self.low, *self.high))


ActionSpec = Discrete | MultiDiscrete | Box


class Part(NamedTuple):
    """One array of an observation."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", or "uint8" for pixels, height x width x channels


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What an agent must know of an environment; hashable.

    An observation is one array, or, where `named_parts` is not empty, a dict of arrays: the frames
    by their names, and under "vector" everything else. `parts` has both cases in one form.
    """

    name: str  # as the user gave it, e.g. "CartPole-v1"
    observation_shape: tuple[int, ...]  # of one observation; () if in named parts
    observation_dtype: str  # "float32", or "uint8" for pixels; "" if in named parts
    action: ActionSpec
    has_mask: bool = False  # observations carry a mask of allowed actions
    max_episode_steps: int | None = None
    named_parts: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every array of an observation; a lone one is called "observation"."""
        alone = Part("observation", self.observation_shape, self.observation_dtype)
        return self.named_parts or (alone,)

    def example(self, batch: tuple[int, ...] = ()) -> "Observation":
        """An observation `[*batch, ...]` of zeros, with every action allowed."""
        arrays = {name: jnp.zeros((*batch, *shape), dtype) for name, shape, dtype in self.parts}
        features = arrays if self.named_parts else arrays["observation"]
        if not self.has_mask or isinstance(self.action, Box):
            return Observation(features)
        return Observation(features, jnp.ones((*batch, *self.action.mask_shape), bool))


class Observation(NamedTuple):
    """What the policy sees: features `[..., *observation_shape]`, and the mask of allowed actions.

    Features are a dict of arrays where the spec has named parts. `mask` is bool
    `[..., *action.mask_shape]`, or None where the environment gives none.
    """

    features: Any  # arrays of JAX or NumPy
    mask: Array | np.ndarray | None = None


class Transition(NamedTuple):
    """One row, or `[T, B]` of them; see the module's legend for `discount` and `valid`.

    Rollouts on the host hold NumPy arrays; `update` is jitted and sees JAX's.
    """

    observation: Observation
    action: Array
    reward: Array  # float32
    discount: Array  # float32: 0 where the episode terminated, else 1
    valid: Array  # bool: False on the row that autoreset puts after an episode's end
    extras: dict[str, Array]  # what the agent asked to keep (`Agent.stores`), e.g. "log_prob"


class Trajectory(NamedTuple):
    """A rollout: rows `[T, B, ...]`, the observation after the last, the carry before the first."""

    transitions: Transition
    last_observation: Observation  # [B, ...]: row T
    initial_carry: Any  # the agent's carry at row 0; () when feed-forward


class Episodes(NamedTuple):
    """Totals over the episodes that ended in a rollout; all zero when none did."""

    count: Array  # int32
    return_sum: Array  # float32, undiscounted and unclipped
    length_sum: Array  # int32, in steps
