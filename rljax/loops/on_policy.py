"""Collect a rollout, learn from it once, report; until the budget of rows is spent."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import Mesh

from rljax import distributed, faults, minibatches, rollout, row_keys, sharding
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops.episodes import Window
from rljax.types import Metrics


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
    return start(agent, env, config, config.seed)


def start(agent: Agent, env: HostEnv | JaxEnv, config: Config, seed: int | Array) -> State:
    """`init` of the run with another seed than the config's, which may be traced."""
    train_key, rollout_key = keys(seed, -1)
    running = None
    if isinstance(env, JaxEnv):
        collector = rollout.in_graph(agent, env, config.num_envs, config.rollout_length)
        running = collector.init(rollout_key)
    return State(jax.jit(agent.init)(train_key), running)


def check(env: HostEnv | JaxEnv, config: Config) -> None:
    """Raises ValueError where environments, collector and devices do not fit together."""
    sharding.check_split("num_envs", config.num_envs, config.num_devices)
    devices = sharding.mesh(config.num_devices).devices.size
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
    num_envs = config.num_envs // jax.process_count()  # of this process
    collector = rollout.make(agent, env, num_envs, config.rollout_length, config.collector)
    learn = sharding.data_parallel(agent.update, mesh, config.parallel)
    return _updates(collector, learn, mesh, state, config, first_step, agent.spec.name)


def _updates(
    collector: rollout.Collector,
    learn: Callable[[Any, Any, Array], tuple[Any, Metrics]],
    mesh: Mesh,
    state: State,
    config: Config,
    first_step: int,
    env_name: str,
) -> Iterator[tuple[int, State, Metrics]]:
    train, running = sharding.replicate(state.train, mesh), sharding.share(state.rollout)
    if running is None:
        running = collector.init(keys(config.seed, -1)[1])
    window = Window()
    first_env = jax.process_index() * (config.num_envs // jax.process_count())
    for update in range(first_step // config.rows, config.last_step // config.rows):
        collect_key, learn_key = keys(config.seed, update)
        start = time.perf_counter()
        running, trajectory, episodes = collector.collect(
            sharding.local(train.policy), running, row_keys.starting_at(first_env, collect_key)
        )
        fault = faults.find(trajectory.transitions)
        jax.block_until_ready(trajectory)
        collected = time.perf_counter()
        train, metrics = learn(train, trajectory, learn_key)
        # Once an update: with more in flight, emulated devices may deadlock.
        metrics = sharding.local(jax.block_until_ready(metrics))
        faults.check(fault, env_name, update * config.rows, config.num_envs)
        metrics |= window.add(distributed.total(episodes))
        metrics["time/collect_seconds"] = collected - start
        metrics["time/learn_seconds"] = time.perf_counter() - collected
        saved = State(train, sharding.united(running) if collector.resumable else None)
        yield (update + 1) * config.rows, saved, metrics


@jax.jit
def keys(seed: int | Array, update: int | Array) -> tuple[Array, Array]:
    """One key to collect with and one to learn with, from the seed and the update's number."""
    key = jax.random.fold_in(jax.random.key(seed), update)
    collect, learn = jax.random.split(key)
    return collect, learn
