"""The contract of a replay buffer: pure functions over a pytree, after flashbax.

Rows are kept as rollouts bring them, time-major, with the rows that autoreset puts behind an ending
(`rljax.types`): such a row is never sampled, but it holds the true final observation of the episode
before it, so no observation is stored twice. The newest row cannot be sampled until its successor
has come.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from rljax.types import Observation, Transition


class Sample(NamedTuple):
    """What off-policy and offline agents learn from: arrays `[B, ...]`.

    With m the number of steps taken, n or fewer where the episode ended before:

        reward     Σ_{k<m} γ^k r_{t+k}
        discount   γ^m, times 0 if the m-th step terminated: the weight of V(next_observation)
    """

    observation: Observation
    action: Array
    reward: Array  # float32
    discount: Array  # float32, γ included
    next_observation: Observation  # of row t+m
    weight: Array  # float32: importance weight, 1 without priorities; 0: ignore this row
    index: Array  # int32: where the row lies; for `Buffer.update`


class Buffer(NamedTuple):
    """Pure functions, bound to sizes by `rljax.replay.device.make` or `.prioritized.make`."""

    init: Callable[[Transition], Any]  # one row `[B, ...]` (or its shapes) -> state
    add: Callable[[Any, Transition], Any]  # state, rows `[T, B, ...]` -> state
    sample: Callable[[Any, Array], Sample]  # state, key -> `batch_size` rows
    can_sample: Callable[[Any], Array]  # bool: whether there is a row to sample
    update: Callable[[Any, Array, Array], Any]  # state, index, priority -> state; may do nothing
