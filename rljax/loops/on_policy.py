"""Collect a rollout, learn from it once, report; until the budget of rows is spent."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rljax import minibatches, rollout, sharding
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.types import Episodes, Metrics


@dataclasses.dataclass(frozen=True)
class Config:
    """How to collect and where to learn; `total_steps` counts rows over all environments."""

    total_steps: int
    num_envs: int
    rollout_length: int
    seed: int = 0
    collector: rollout.Kind = rollout.Kind.AUTO
    parallel: sharding.Parallel = sharding.Parallel.SHARD_MAP
    num_devices: int = 0  # 0: all of this process
    num_minibatches: int = 1  # that an update makes of its rows; each is split over the devices too

    @property
    def rows(self) -> int:
        """Rows of one update."""
        return self.num_envs * self.rollout_length

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole update within `total_steps`."""
        return self.total_steps // self.rows * self.rows


class State(NamedTuple):
    """All that a resume needs."""

    train: Any
    rollout: rollout.RolloutState | None  # None where simulators run on the host: they start anew


def init(agent: Agent, env: HostEnv | JaxEnv, config: Config) -> State:
    """The state before the first step; may be traced."""
    train_key, rollout_key = _keys(config.seed, -1)
    running = None
    if isinstance(env, JaxEnv):
        collector = rollout.in_graph(agent, env, config.num_envs, config.rollout_length)
        running = collector.init(rollout_key)
    return State(jax.jit(agent.init)(train_key), running)


def check(env: HostEnv | JaxEnv, config: Config) -> None:
    """Raises ValueError where environments, collector and devices do not fit together."""
    devices = sharding.mesh(config.num_devices).devices.size
    if config.num_envs % devices:
        raise ValueError(
            f"num_envs={config.num_envs} cannot be split over {devices} devices: "
            f"choose a multiple of {devices}, or set --num_devices."
        )
    minibatches.groups(config.num_envs, config.rows // config.num_minibatches, devices)
    rollout.resolve(env, config.collector)


def run(
    agent: Agent, env: HostEnv | JaxEnv, state: State, config: Config, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    """Trains from `first_step` on; yields once an update. Raises what `check` raises, at once.

    The arrays of a yielded state are donated to the next update: save or copy them before asking
    for it.
    """
    check(env, config)
    mesh = sharding.mesh(config.num_devices)
    collector = rollout.make(agent, env, config.num_envs, config.rollout_length, config.collector)
    learn = sharding.data_parallel(agent.update, mesh, config.parallel)
    return _updates(collector, learn, mesh, state, config, first_step)


def _updates(
    collector: rollout.Collector,
    learn: Callable[[Any, Any, Array], tuple[Any, Metrics]],
    mesh: Mesh,
    state: State,
    config: Config,
    first_step: int,
) -> Iterator[tuple[int, State, Metrics]]:
    train, running = sharding.replicate(state.train, mesh), state.rollout
    if running is None:
        running = collector.init(_keys(config.seed, -1)[1])
    window = _Window(num_episodes=100)
    for update in range(first_step // config.rows, config.last_step // config.rows):
        collect_key, learn_key = _keys(config.seed, update)
        start = time.perf_counter()
        running, trajectory, episodes = collector.collect(
            sharding.local(train.policy), running, collect_key
        )
        jax.block_until_ready(trajectory)
        collected = time.perf_counter()
        train, metrics = learn(train, trajectory, learn_key)
        # Once an update: with more in flight, emulated devices may deadlock.
        metrics = sharding.local(jax.block_until_ready(metrics))
        metrics |= window.add(episodes)
        metrics["time/collect_seconds"] = collected - start
        metrics["time/learn_seconds"] = time.perf_counter() - collected
        saved = State(train, running if collector.resumable else None)
        yield (update + 1) * config.rows, saved, metrics


@functools.partial(jax.jit, static_argnums=0)
def _keys(seed: int, update: int | Array) -> tuple[Array, Array]:
    """One key to collect with and one to learn with, from the seed and the update's number."""
    key = jax.random.fold_in(jax.random.key(seed), update)
    collect, learn = jax.random.split(key)
    return collect, learn


class _Window:
    """Mean return and length over the last rollouts that hold `num_episodes` ended episodes."""

    def __init__(self, num_episodes: int) -> None:
        self._wanted = num_episodes
        self._recent: collections.deque[tuple[int, float, int]] = collections.deque()
        self._ended = 0

    def add(self, episodes: Episodes) -> dict[str, float]:
        """Takes a rollout's totals; gives the means, or nothing before the first episode ended."""
        ended, return_sum, length_sum = (np.asarray(x).item() for x in episodes)
        self._ended += ended
        if ended:
            self._recent.append((ended, return_sum, length_sum))
        count = sum(ended for ended, _, _ in self._recent)
        while self._recent and count - self._recent[0][0] >= self._wanted:
            count -= self._recent.popleft()[0]
        if not count:
            return {}
        return {
            "episode/return_mean": sum(returns for _, returns, _ in self._recent) / count,
            "episode/length_mean": sum(lengths for _, _, lengths in self._recent) / count,
            "episode/count": self._ended,
        }
