"""The contract of a replay buffer: pure functions over a pytree, after flashbax.

Rows are kept as rollouts bring them, time-major, with the rows that autoreset puts behind an ending
(`rljax.types`): such a row is never sampled, but it holds the true final observation of the episode
before it, so no observation is stored twice. The newest rows cannot be sampled until their
successors have come.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from rljax.agent import Agent
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
    extras: dict[str, Array]  # of the row: what the agent `stores`


class Buffer(NamedTuple):
    """Pure functions, bound to sizes by `rljax.replay.device.make` or `.prioritized.make`.

    Jit `add`, `update` and `cut` with the state donated: they then write in place.
    """

    init: Callable[[Transition], Any]  # one row `[B, ...]` (or its shapes) -> state
    add: Callable[[Any, Transition], Any]  # state, rows `[T, B, ...]` -> state
    sample: Callable[[Any, Array], Sample]  # state, key -> `batch_size` rows
    can_sample: Callable[[Any], Array]  # bool: whether there is a row to sample
    update: Callable[[Any, Array, Array], Any]  # state, index, priority -> state; may do nothing
    cut: Callable[[Any], Any]  # state -> state: rows to come do not continue those that are here
    size: Callable[[Any], Array]  # state -> int32: the rows that are here, over all environments


def row_of(agent: Agent, num_envs: int) -> Transition:
    """Shapes and types of one row `[B, ...]` that a rollout of this agent brings."""

    def row(key: Array) -> Transition:
        observation = agent.spec.example((num_envs,))
        carry = agent.initial_carry(num_envs)
        policy = agent.init(key).policy
        _, action, extras = agent.act(policy, carry, observation, key, False)
        reward = jax.numpy.zeros(num_envs, jax.numpy.float32)
        kept = {name: extras[name] for name in agent.stores}
        return Transition(observation, action, reward, reward, reward > 0, kept)

    return jax.eval_shape(row, jax.random.key(0))
