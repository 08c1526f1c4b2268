"""Collect a few rows, keep them in replay, learn from samples of it at a stated ratio.

One iteration collects `rollout_length` rows of every environment, adds them to the replay, and
makes `num_updates` updates, each from a sample of its own; `rljax.loops.iterations` has it as a
pure function. `run` has many of them in one compiled call where the environments can be compiled;
otherwise Python steps the simulators, and the rest of an iteration is one call.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rljax import faults, rollout, sharding
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.faults import Fault
from rljax.loops import iterations
from rljax.loops.episodes import Window
from rljax.loops.iterations import Phase, State
from rljax.loops.on_policy import keys
from rljax.nn import torsos
from rljax.replay import base, device, memory, prioritized
from rljax.replay.base import Buffer
from rljax.rollout import Collector
from rljax.types import Episodes, Metrics, Transition

_ROWS_PER_CALL = 1000  # at least, unless the config says how many iterations


@dataclasses.dataclass(frozen=True)
class Replay:
    """What is kept, and how it is drawn."""

    capacity: int  # rows over all environments; the oldest make room
    batch_size: int  # rows of one sample
    discount: float  # γ
    num_steps: int = 1  # n of n-step returns
    prioritized: bool = False  # by |TD error| (Schaul et al. 2016, arXiv:1511.05952)
    priority_exponent: float = 0.6  # α of their eq. 1: 0 is uniform
    importance_exponent: float = 0.4  # β of their §3.4


@dataclasses.dataclass(frozen=True)
class Config:
    """How to collect, what to keep, where to learn; `total_steps` counts rows over all envs."""

    total_steps: int
    num_envs: int
    rollout_length: int  # rows per environment between updates
    num_updates: int  # of `batch_size` rows each, after every rollout
    learning_starts: int  # rows collected before the first update
    replay: Replay
    seed: int = 0
    collector: rollout.Kind = rollout.Kind.AUTO
    parallel: sharding.Parallel = sharding.Parallel.SHARD_MAP
    num_devices: int = 0  # 0: all of this process; each learns from its share of a sample
    iterations_per_call: int = 0  # between two yields; 0: as many as make 1,000 rows

    @property
    def rows(self) -> int:
        """Rows between two updates."""
        return self.num_envs * self.rollout_length

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole rollout within `total_steps`."""
        return self.total_steps // self.rows * self.rows

    @property
    def first_learning(self) -> int:
        """The first iteration, from 0, that learns: `learning_starts` rows are there, and enough
        of each environment for one to have all its successors.
        """  # noqa: D205
        waiting = max(self.learning_starts, (self.replay.num_steps + 1) * self.num_envs)
        return -(-waiting // self.rows) - 1


class Parts(NamedTuple):
    """What loops around this one have otherwise."""

    buffer: Buffer
    first_learning: int  # the first iteration, from 0, that learns
    ended: Callable[[Episodes], dict[str, float]]  # totals of a phase's episodes -> metrics


def init(agent: Agent, env: HostEnv | JaxEnv, config: Config) -> State:
    """The state before the first step; may be traced. Raises ValueError where memory is too small.

    Nothing is allocated before the replay is known to fit, with the extras that the agent stores.
    """
    check_memory(base.row_of(agent, config.num_envs), config)
    return start(agent, env, config, config.seed)


def start(agent: Agent, env: HostEnv | JaxEnv, config: Config, seed: int | Array) -> State:
    """`init` of the run with another seed than the config's, which may be traced."""
    train_key, rollout_key = keys(seed, -1)
    running = None
    if isinstance(env, JaxEnv):
        collector = rollout.in_graph(agent, env, config.num_envs, config.rollout_length)
        running = collector.init(rollout_key)
    replay = jax.jit(lambda: make_buffer(config).init(base.row_of(agent, config.num_envs)))()
    return State(jax.jit(agent.init)(train_key), replay, running)


def check(env: HostEnv | JaxEnv, config: Config) -> None:
    """Raises ValueError where environments, collector, devices and memory do not fit together."""
    check_sizes(env, config, config.first_learning)
    check_memory(memory.row_of(env.spec), config)


def run(
    agent: Agent, env: HostEnv | JaxEnv, state: State, config: Config, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    """Trains from `first_step` on; yields every `iterations_per_call` iterations, and at the end.

    The replay of `state` is taken over, not copied; the arrays of a yielded state are donated to
    what comes next: save or copy them before asking for it.

    Raises what `check` raises, at once; not for memory, as the replay is there.
    """
    own = Parts(make_buffer(config), config.first_learning, Window().add)
    return drive(agent, env, state, config, first_step, own)


def drive(
    agent: Agent,
    env: HostEnv | JaxEnv,
    state: State,
    config: Config,
    first_step: int,
    parts: Parts,
) -> Iterator[tuple[int, State, Metrics]]:
    """`run` for loops around this one, whose replay is that of `parts`."""
    check_sizes(env, config, parts.first_learning)
    mesh = sharding.mesh(config.num_devices)
    collector = rollout.make(agent, env, config.num_envs, config.rollout_length, config.collector)
    compiled = rollout.resolve(env, config.collector) is not rollout.Kind.HOST
    state = _placed(state, collector, parts.buffer, mesh, config)
    phases = _phases(agent, collector, parts.buffer, mesh, config, compiled=compiled)
    return _yields(phases, collector, parts, state, config, first_step)


def iteration(
    agent: Agent, collector: Collector, buffer: Buffer, config: Config, *, learns: bool
) -> iterations.Step:
    """`iterations.iteration` of this config; `learns` is that of `number >= first_learning`.

    Which is static, as a branch in the compiled program would copy the replay.
    """
    learn = iterations.learner(agent, buffer, config.num_updates if learns else 0)
    return iterations.iteration(agent, collector, learn)


def make_buffer(config: Config) -> Buffer:
    """The replay that the config asks for."""
    options = config.replay
    sizes = (options.capacity, config.num_envs, options.batch_size)
    if not options.prioritized:
        return device.make(*sizes, options.discount, options.num_steps)
    return prioritized.make(
        *sizes,
        options.discount,
        options.num_steps,
        options.priority_exponent,
        options.importance_exponent,
    )


def _phases(
    agent: Agent,
    collector: Collector,
    buffer: Buffer,
    mesh: Mesh,
    config: Config,
    *,
    compiled: bool,
) -> tuple[Phase, Phase]:
    """What runs the iterations before learning starts, and from there on."""
    slow_in_loops = torsos.has_pixels(agent.spec) and jax.default_backend() == "cpu"
    in_one_call = compiled and mesh.devices.size == 1 and not slow_in_loops

    def check(fault: Fault, number: int) -> None:
        faults.check(fault, agent.spec.name, number * config.rows, config.num_envs)

    def phase(num_updates: int) -> Phase:
        if in_one_call:
            learn = iterations.learner(agent, buffer, num_updates)
            step = iterations.iteration(agent, collector, learn)
            return iterations.fused(step, mesh, config.parallel, check)
        learn = iterations.learner_over(mesh, config.parallel, agent, buffer, num_updates)
        return iterations.driven(collector, learn, mesh, check)

    return phase(0), phase(config.num_updates)


def _yields(
    phases: tuple[Phase, Phase],
    collector: Collector,
    parts: Parts,
    state: State,
    config: Config,
    first_step: int,
) -> Iterator[tuple[int, State, Metrics]]:
    every = config.iterations_per_call or -(-_ROWS_PER_CALL // config.rows)
    number, end = first_step // config.rows, config.last_step // config.rows
    while number < end:
        stop = min((number // every + 1) * every, end)
        middle = max(number, min(stop, parts.first_learning))
        metrics = {}
        for phase, numbers in zip(
            phases, (range(number, middle), range(middle, stop)), strict=True
        ):
            if numbers:
                state, measured, episodes = phase(state, numbers, config.seed)
                metrics |= measured | parts.ended(episodes)
        number = stop
        metrics["replay/size"] = np.asarray(parts.buffer.size(state.replay))
        saved = state if collector.resumable else state._replace(rollout=None)
        yield number * config.rows, saved, metrics


def _placed(
    state: State, collector: Collector, buffer: Buffer, mesh: Mesh, config: Config
) -> State:
    """The state where it belongs, with environments that run."""
    train, running = sharding.replicate(state.train, mesh), state.rollout
    replay = sharding.on_first(state.replay, mesh)
    if running is None:  # other episodes than those that the replay ends with
        replay = jax.jit(buffer.cut, donate_argnums=0)(replay)
        running = collector.init(keys(config.seed, -1)[1])
    if mesh.devices.size == 1 and isinstance(running.ended, Array):  # else the host's, in NumPy
        running = sharding.replicate(running, mesh)
    return State(train, replay, running)


def check_sizes(env: HostEnv | JaxEnv, config: Config, first_learning: int) -> None:
    """Raises ValueError where environments, collector and devices do not fit together.

    So it does where nothing would be learned: `first_learning` is the first iteration that does.
    """
    sharding.check_split("batch_size", config.replay.batch_size, config.num_devices)
    needed = config.rows + config.replay.num_steps * config.num_envs
    if config.replay.capacity < needed:
        raise ValueError(
            f"a replay of {config.replay.capacity} rows is too small for rollouts of "
            f"{config.rows} rows and {config.replay.num_steps}-step returns: make its capacity "
            f"{needed} or more."
        )
    if first_learning * config.rows >= config.last_step:
        least = (config.replay.num_steps + 1) * config.num_envs
        if config.learning_starts > least:
            raise ValueError(
                f"learning_starts={config.learning_starts} leaves nothing to learn in "
                f"total_steps={config.total_steps}: make it smaller."
            )
        raise ValueError(
            f"total_steps={config.total_steps} are over before the first update, which needs "
            f"{least} rows: make it {(first_learning + 1) * config.rows} or more."
        )
    if config.iterations_per_call < 0:
        raise ValueError(
            f"iterations_per_call must be 0 or more, not {config.iterations_per_call}."
        )
    rollout.resolve(env, config.collector)


def check_memory(row: Transition, config: Config, held: int = 0) -> None:
    """Raises ValueError where the replay of such rows and `held` bytes beside it do not fit."""
    place = sharding.mesh(config.num_devices).devices.flat[0]
    priorities = 5 if config.replay.prioritized else 0  # a float32, and the sums above it
    memory.check_on(place, config.replay.capacity, memory.row_bytes(row) + priorities, held=held)
