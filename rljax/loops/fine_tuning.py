"""From offline to online: a policy that was learned from a dataset goes on in its environment.

What is collected goes into a replay of its own, and every batch has a stated share of rows of the
dataset (`rljax.replay.mixed`); the rest is the off-policy loop's, which learns from the first
rollout on. Exploration is guarded: where the mean return of the last episodes lies under a floor,
the run ends with the state that it then has. Actions are kept as the environment takes them,
within the bounds of a box.

Resume is the off-policy loop's, to the bit where environments are JAX functions. The dataset is not
part of the state; the returns that the guard looks at are.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import iterations, off_policy
from rljax.loops.episodes import Window
from rljax.offline import outlook
from rljax.offline.dataset import Dataset
from rljax.offline.rewards import Change
from rljax.replay import base, device, hindsight, memory, mixed
from rljax.replay.base import Buffer
from rljax.rollout import RolloutState
from rljax.types import Box, EnvSpec, Episodes, Metrics, Observation

_LOOKBACK = 1000  # steps of an episode whose longest is not known, for what hindsight tells


@dataclasses.dataclass(frozen=True)
class Config:
    """How to collect and learn, how much from the dataset, and what exploring may cost."""

    online: off_policy.Config  # its `learning_starts` is not asked: the dataset is there
    dataset_fraction: float = 0.5  # of the rows of a batch
    return_floor: float | None = None  # ends the run where `floor_episodes` have a lower mean
    floor_episodes: int = 20
    change: Change = dataclasses.field(default_factory=Change)  # of rewards that are learned from

    @property
    def rows(self) -> int:
        """Rows between two updates."""
        return self.online.rows

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole rollout within the budget."""
        return self.online.last_step


class Source(NamedTuple):
    """Where a policy acts, and what it has learned from."""

    env: HostEnv | JaxEnv
    dataset: Dataset

    @property
    def spec(self) -> EnvSpec:
        """What the agent sees and does."""
        return self.env.spec


class State(NamedTuple):
    """All that a resume needs, besides the dataset."""

    train: Any
    replay: Any  # what was collected
    rollout: RolloutState | None
    recent: Float[Array, "N 2"]  # of the last rollouts that ended episodes: how many, summed return


def check(source: Source, config: Config) -> None:
    """Raises ValueError where environment, dataset, devices and memory do not fit together."""
    _check_config(source, config)
    off_policy.check_memory(
        memory.row_of(source.spec), config.online, mixed.held_bytes(source.dataset.rows, ())
    )


def _check_config(source: Source, config: Config) -> None:
    """`check` but for memory."""
    online, data = config.online, source.dataset
    if not config.last_step:
        raise ValueError(
            f"a budget of {online.total_steps} steps is less than one rollout, which takes "
            f"{online.rows}."
        )
    off_policy.check_sizes(source.env, online, first_learning=0)
    mixed.num_held(config.dataset_fraction, online.replay.batch_size)
    if online.replay.prioritized:
        raise ValueError("a replay that is mixed with a dataset has no priorities.")
    config.change.check()
    if config.floor_episodes < 1:
        raise ValueError(f"floor_episodes must be at least 1, not {config.floor_episodes}.")
    if not data.num_steps:
        raise ValueError(f"{data.source or 'the dataset'} has no step to learn from.")


def init(agent: Agent, source: Source, config: Config) -> State:
    """The state before the first step, of a policy that has learned nothing; may be traced.

    Raises ValueError where memory is too small for replay and dataset together, with the extras
    that the agent stores.
    """
    collecting, online = _collecting(agent), config.online
    held = mixed.held_bytes(source.dataset.rows, agent.stores)
    off_policy.check_memory(base.row_of(collecting, online.num_envs), online, held)
    state = off_policy.start(collecting, source.env, online, online.seed)
    return State(*state, recent=jnp.zeros((config.floor_episodes, 2), jnp.float32))


def run(
    agent: Agent, source: Source, state: State, config: Config, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    """Trains from `first_step` on, as `off_policy.run` does; ends early under the floor.

    With a floor it yields after every rollout. Raises what `check` raises but for memory, at once;
    and where the agent `stores` what is known of a dataset only.
    """
    _check_config(source, config)
    unknown = set(agent.stores) - {outlook.RETURN_TO_GO}
    if unknown:
        raise ValueError(
            f"the agent learns from {sorted(unknown)}, which rows that are collected do not have."
        )
    online = config.online
    if config.return_floor is not None:
        online = dataclasses.replace(online, iterations_per_call=1)
    replay = online.replay
    data = outlook.add(config.change.of_dataset(source.dataset), agent.stores, replay.discount)
    held = mixed.hold(data.rows)
    buffer = mixed.make(
        _replay(agent, config, data), held, replay.batch_size, replay.num_steps, replay.discount
    )
    guard = _Guard(np.asarray(state.recent), config)
    parts = off_policy.Parts(buffer, 0, guard.add)
    begun = iterations.State(state.train, mixed.State(state.replay, held), state.rollout)
    driven = off_policy.drive(_collecting(agent), source.env, begun, online, first_step, parts)
    return _yields(driven, guard, state, config)


def recent_return(state: State, floor_episodes: int) -> float | None:
    """Mean return of the last `floor_episodes` episodes, or None before so many have ended.

    They are those of the last rollouts that hold as many, and so may be some more.
    """
    count, total = np.asarray(state.recent).sum(axis=0).tolist()
    return total / count if count >= floor_episodes else None


def is_under_floor(state: State, config: Config) -> bool:
    """Whether exploration must stop."""
    mean = recent_return(state, config.floor_episodes)
    return config.return_floor is not None and mean is not None and mean < config.return_floor


class _Guard:
    """The episodes that ended lately: those that metrics are of, and those that decide."""

    def __init__(self, recent: np.ndarray, config: Config) -> None:
        self.recent = recent
        self._window = Window()
        self._config = config

    def add(self, episodes: Episodes) -> dict[str, float]:
        """Takes a rollout's totals; gives the metrics `episode/*`."""
        ended, return_sum, _ = (np.asarray(x).item() for x in episodes)
        if ended:
            newest = np.array([[ended, return_sum]], np.float32)
            recent = np.concatenate([self.recent[1:], newest])
            behind = np.cumsum(recent[::-1, 0])[::-1] - recent[:, 0]  # that ended after these
            recent[behind >= self._config.floor_episodes] = 0
            self.recent = recent
        return self._window.add(episodes)


def _yields(
    driven: Iterator[tuple[int, iterations.State, Metrics]],
    guard: _Guard,
    state: State,
    config: Config,
) -> Iterator[tuple[int, State, Metrics]]:
    """What the off-policy loop yields, without the dataset, until the floor is broken."""
    if is_under_floor(state, config):
        return
    for step, (train, replay, rollout), metrics in driven:
        state = State(train, replay.online, rollout, jnp.asarray(guard.recent))
        mean = recent_return(state, config.floor_episodes)
        if config.return_floor is not None and mean is not None:
            metrics["guard/return_mean"] = jnp.float32(mean)
        yield step, state, metrics
        if is_under_floor(state, config):
            return


def _collecting(agent: Agent) -> Agent:
    """The agent as it acts here: within bounds, and with what its rows do not know yet."""
    box = agent.spec.action

    def act(
        policy: Any, carry: Any, observation: Observation, key: Array, greedy: bool
    ) -> tuple[Any, Array, dict[str, Array]]:
        carry, action, extras = agent.act(policy, carry, observation, key, greedy)
        if isinstance(box, Box):
            low, high = (
                jnp.broadcast_to(jnp.float32(x), action.shape) for x in (box.low, box.high)
            )
            action = jnp.clip(action, low, high)
        unknown = jnp.full(action.shape[:1], hindsight.UNKNOWN, jnp.float32)
        return carry, action, {**extras, outlook.RETURN_TO_GO: unknown}

    return agent._replace(act=act)


def _replay(agent: Agent, config: Config, data: Dataset) -> Buffer:
    """The replay of what is collected, which gives what the dataset leaves of a batch."""
    online = config.online
    replay = online.replay
    others = replay.batch_size - mixed.num_held(config.dataset_fraction, replay.batch_size)
    sizes = (replay.capacity, online.num_envs, others)
    buffer = device.make(*sizes, replay.discount, replay.num_steps)
    if outlook.RETURN_TO_GO in agent.stores:
        lookback = agent.spec.max_episode_steps or _LOOKBACK
        least = outlook.least_to_come(data, replay.discount)
        buffer = hindsight.completing(buffer, replay.discount, lookback, least)
    return config.change.of_buffer(buffer)
