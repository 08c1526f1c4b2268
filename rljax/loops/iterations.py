"""What the off-policy loop does again and again: collect, add, and some updates from samples.

    iteration     one of it as a pure function, for environments that are compiled
    fused         many of those in one call
    driven        the same with Python between: for simulators that Python steps, or several devices

Keys come from the seed and the iteration's number, so all three do the same to the same state.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rljax import faults, sharding
from rljax.agent import PRIORITY, Agent
from rljax.faults import Fault
from rljax.loops.on_policy import keys
from rljax.replay.base import Buffer
from rljax.rollout import Collector, RolloutState
from rljax.sharding import Parallel
from rljax.types import Episodes, Metrics, Transition


class State(NamedTuple):
    """All that a resume needs."""

    train: Any
    replay: Any
    rollout: RolloutState | None  # None where simulators run on the host: they start anew


class Outcome(NamedTuple):
    """What one or more iterations report."""

    metrics: Metrics  # means over the updates; none where nothing is learned
    episodes: Episodes  # totals
    fault: Fault


class Ran(NamedTuple):
    """What the iterations of a phase brought; on the host but for the state."""

    state: State
    metrics: dict[str, Any]
    episodes: Episodes


Learned = tuple[tuple[Any, Any], tuple[dict[str, Any], Fault]]  # train, replay; what was found
Step = Callable[[State, Array, Array], tuple[State, Outcome]]
Learn = Callable[[tuple[Any, Any], Transition, Array], Learned]
Phase = Callable[[State, range, int], Ran]  # state, numbers of iterations, seed


def learner(agent: Agent, buffer: Buffer, num_updates: int) -> Learn:
    """Adds rows `[T, B, ...]` to the replay, then makes `num_updates` updates, all in one scan."""

    def update(state: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Metrics]:
        train, replay = state
        sample_key, update_key = jax.random.split(key)
        sample = buffer.sample(replay, sample_key)
        train, metrics = agent.update(train, sample, update_key)
        metrics, priority = _apart(metrics)
        if priority is not None:
            replay = buffer.update(replay, sample.index, priority)
        return (train, replay), metrics

    def learn(state: tuple[Any, Any], rows: Transition, key: Array) -> Learned:
        train, replay = state
        state, metrics = (train, buffer.add(replay, rows)), {}
        if num_updates:
            state, metrics = jax.lax.scan(update, state, jax.random.split(key, num_updates))
        return state, (jax.tree.map(jnp.mean, metrics), faults.find(rows))

    return learn


def learner_over(
    mesh: Mesh, parallel: Parallel, agent: Agent, buffer: Buffer, num_updates: int
) -> Learn:
    """`learner`, compiled, with the state donated.

    On several devices the replay is on the first, and samples are split over all.
    """
    if mesh.devices.size == 1:
        alone = learner(agent, buffer, num_updates)
        return sharding.data_parallel(alone, mesh, parallel, batch_axes=1)
    update = sharding.data_parallel(agent.update, mesh, parallel, batch_axes=0)
    draw, prioritize = jax.jit(buffer.sample), jax.jit(buffer.update, donate_argnums=0)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(replay: Any, rows: Transition) -> tuple[Any, Fault]:
        return buffer.add(replay, rows), faults.find(rows)

    @jax.jit
    def split(key: Array) -> Array:
        """The keys of each update as `learner` has them: one to sample with, one to learn with.

        Apart from the replay, whose device they would be bound to: all devices learn with them.
        """
        return jax.vmap(jax.random.split)(jax.random.split(key, num_updates))

    def learn(state: tuple[Any, Any], rows: Transition, key: Array) -> Learned:
        train, (replay, fault) = state[0], add(state[1], rows)
        measured = []
        for sample_key, update_key in split(key) if num_updates else ():
            sample = draw(replay, sample_key)
            train, metrics = update(train, sample, update_key)
            # Once an update: with more in flight, emulated devices may deadlock.
            metrics, priority = _apart(sharding.local(jax.block_until_ready(metrics)))
            if priority is not None:
                replay = prioritize(replay, sample.index, priority)
            measured.append(metrics)
        return (train, replay), (_mean(measured), fault)

    return learn


def iteration(agent: Agent, collector: Collector, learn: Learn) -> Step:
    """`step(state, seed, number)`: iteration `number` of the run with that seed, int32 scalars.

    Runs under `AXIS`, as `agent.update` does, with collectors that can be jitted; pure, so it may
    be scanned, and `vmap`ped over states and seeds.
    """

    def step(state: State, seed: Array, number: Array) -> tuple[State, Outcome]:
        train, replay, running = state
        assert running is not None  # `start` began it, or the loop
        collect_key, learn_key = keys(seed, number)
        running, trajectory, episodes = collector.collect(train.policy, running, collect_key)
        (train, replay), (metrics, fault) = learn(
            (train, replay), trajectory.transitions, learn_key
        )
        return State(train, replay, running), Outcome(metrics, episodes, fault)

    return step


def fused(step: Step, mesh: Mesh, parallel: Parallel, check: Callable[[Fault, int], None]) -> Phase:
    """Iterations in one call on one device, with no Python between them; the state is donated.

    `check(fault, number)` sees the first fault, and the iteration in which it was found.
    """

    def many(state: State, bounds: Array, seed: Array) -> tuple[State, tuple[Array, Outcome]]:
        first, last = bounds
        shapes = jax.eval_shape(step, state, seed, first)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def goes_on(carry: tuple[Array, State, Outcome]) -> Array:
            number, _, total = carry
            return (number < last) & (total.fault.kind == 0)

        def body(carry: tuple[Array, State, Outcome]) -> tuple[Array, State, Outcome]:
            number, state, total = carry
            state, outcome = step(state, seed, number)
            return number + 1, state, jax.tree.map(jnp.add, total, outcome)  # one fault at most

        end, state, total = jax.lax.while_loop(goes_on, body, (first, state, nothing))
        means = jax.tree.map(lambda x: x / (end - first), total.metrics)
        return state, (end, total._replace(metrics=means))

    # The bounds are data: any number of iterations is the same compilation.
    compiled = sharding.data_parallel(many, mesh, parallel, batch_axes=0)

    def run(state: State, numbers: range, seed: int) -> Ran:
        start = time.perf_counter()
        bounds = np.array([numbers.start, numbers.stop], np.int32)
        state, report = compiled(state, bounds, jnp.int32(seed))
        end, outcome = jax.device_get(report)
        check(outcome.fault, int(end) - 1)
        seconds = {"time/collect_and_learn_seconds": time.perf_counter() - start}
        return Ran(state, outcome.metrics | seconds, outcome.episodes)

    return run


def driven(
    collector: Collector, learn: Learn, mesh: Mesh, check: Callable[[Fault, int], None]
) -> Phase:
    """Iterations one by one, with a compiled `learn`; `check` as in `fused`, after each."""
    alone = mesh.devices.size == 1

    def run(state: State, numbers: range, seed: int) -> Ran:
        train, replay, running = state
        assert running is not None  # `start` began it, or the loop
        measured, ended = [], []
        seconds = {"time/collect_seconds": 0.0, "time/learn_seconds": 0.0}
        for number in numbers:
            start = time.perf_counter()
            collect_key, learn_key = keys(seed, number)
            policy = train.policy if alone else sharding.local(train.policy)
            running, trajectory, episodes = collector.collect(policy, running, collect_key)
            jax.block_until_ready(trajectory)
            collected = time.perf_counter()
            (train, replay), (metrics, fault) = learn(
                (train, replay), trajectory.transitions, learn_key
            )
            check(jax.device_get(fault), number)
            seconds["time/collect_seconds"] += collected - start
            seconds["time/learn_seconds"] += time.perf_counter() - collected
            measured.append(metrics)
            ended.append(episodes)
        measured, ended = jax.device_get((measured, ended))
        totals = jax.tree.map(lambda *xs: sum(xs), *ended)
        return Ran(State(train, replay, running), _mean(measured) | seconds, totals)

    return run


def _apart(metrics: dict[str, Any]) -> tuple[dict[str, Any], Array | None]:
    """What is logged, and what goes back to the replay."""
    logged = {name: number for name, number in metrics.items() if name != PRIORITY}
    return logged, metrics.get(PRIORITY)


def _mean(measured: list[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *xs: np.mean(np.stack(xs)), *measured) if measured else {}
