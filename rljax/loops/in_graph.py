"""Rollouts and updates in one program, and many runs of it side by side.

Anakin of Podracer (Hessel et al. 2021, arXiv:2104.06272): where environments are JAX functions,
nothing has to leave the device between two updates. A call of the program takes every run some
updates further, up to where something is due; how many does not change what is learned, which is
what the loop of `Config.inner` learns, to rounding.

Runs differ by their seeds and by hyper-parameters of their train states' `schedules`. The state of
a single run is that of the inner loop, so that either reads the other's checkpoints; for several,
every leaf has an axis of runs in front, M.

Devices split the runs, without a word to one another; a single run's environments, otherwise.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rljax import evaluation, faults, minibatches, rollout, sharding
from rljax.agent import AXIS, Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import on_policy
from rljax.loops.episodes import Window
from rljax.nn import torsos
from rljax.types import Episodes, Metrics

_RUNS = "runs"  # the mesh axis that splits the runs
_SECONDS_PER_CALL = 0.5  # at most, so that a signal is soon answered

Vary = tuple[tuple[str, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """What one run does, and how many there are; steps and rows are those of each run."""

    inner: on_policy.Config  # its seed is the first run's
    num_seeds: int = 1
    vary: Vary = ()  # values of hyper-parameters: every combination of them runs with every seed
    updates_per_call: int = 256  # at most; 1 compiles no loop: so it is for pixels on the CPU
    cadences: tuple[int, ...] = ()  # in rows: calls end where a multiple of one is reached

    @property
    def rows(self) -> int:
        """Rows of one update of one run."""
        return self.inner.rows

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole update within the budget."""
        return self.inner.last_step

    @property
    def seed(self) -> int:
        """Of the first run."""
        return self.inner.seed


class Member(NamedTuple):
    """One run of many."""

    seed: int
    settings: dict[str, float]  # what varies, by name


class Report(NamedTuple):
    """What a call measured; with an axis M in front where there are several runs."""

    metrics: Metrics  # of the last update
    episodes: Episodes  # [K], of each update
    fault: faults.Fault  # [K], likewise


def members(config: Config) -> tuple[Member, ...]:
    """All runs: the seeds of the first combination, those of the second, and so on."""
    names = [name for name, _ in config.vary]
    sets = itertools.product(*(values for _, values in config.vary))
    return tuple(
        Member(config.seed + i, dict(zip(names, values, strict=True)))
        for values in sets
        for i in range(config.num_seeds)
    )


def member(config: Config, index: int) -> Member:
    """One of `members`. Raises ValueError if there is none of this number."""
    chosen = members(config)
    if not 0 <= index < len(chosen):
        known = f"choose 0 to {len(chosen) - 1}" if len(chosen) > 1 else "there is only run 0"
        raise ValueError(f"there is no run {index}: {known}.")
    return chosen[index]


def select(state: Any, config: Config, index: int) -> Any:
    """The part of a state, or of its policies, that is of one run: what the inner loop has.

    Raises ValueError if there is none of this number.
    """
    member(config, index)
    return state if len(members(config)) == 1 else jax.tree.map(lambda x: x[index], state)


def each(policies: Any, config: Config) -> list[Any]:
    """The policies of all runs, in their order, out of `state.train.policy`."""
    return [select(policies, config, index) for index in range(len(members(config)))]


def summary(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Scores of all runs as one: the means of all numbers; of several, how their returns spread.

    Minimum and maximum are over all episodes; `run_<number>_return` is the mean of one run.
    """
    first, *others = scores
    if not others:
        return first
    combined: dict[str, float] = {
        name: float(np.mean([score[name] for score in scores])) for name in first
    }
    combined["return_min"] = min(score["return_min"] for score in scores)
    combined["return_max"] = max(score["return_max"] for score in scores)
    combined["episodes"] = sum(score["episodes"] for score in scores)
    returns = [score["return_mean"] for score in scores]
    combined["return_iqm"] = evaluation.iqm(returns)
    combined["best_run"] = int(np.argmax(returns))
    return combined | {f"run_{number}_return": value for number, value in enumerate(returns)}


def init(agent: Agent, env: HostEnv | JaxEnv, config: Config) -> Any:
    """The state before the first step; may be traced."""

    def begin(seed: int | Array, settings: dict[str, Any]) -> on_policy.State:
        state = on_policy.start(agent, env, config.inner, seed)
        if not settings:
            return state
        settings = {name: jnp.asarray(value, jnp.float32) for name, value in settings.items()}
        schedules = state.train.schedules._replace(**settings)
        return state._replace(train=state.train._replace(schedules=schedules))

    first, *others = chosen = members(config)
    if not others:
        return begin(*first)
    settings = {name: jnp.array([member.settings[name] for member in chosen]) for name in first[1]}
    return jax.jit(jax.vmap(begin))(jnp.array([member.seed for member in chosen]), settings)


def check(env: HostEnv | JaxEnv, config: Config) -> None:
    """Raises ValueError where environments, runs and devices do not fit together."""
    inner, count = config.inner, len(members(config))
    if not isinstance(env, JaxEnv):
        raise ValueError(
            f"{env.spec.name} runs on the host; only a JAX environment such as rljax:cartpole can "
            "be trained in the graph, with --num_seeds and --vary."
        )
    if config.num_seeds < 1 or config.updates_per_call < 1 or not count:
        raise ValueError("num_seeds, updates_per_call and the values to vary must be at least 1.")
    if config.seed + config.num_seeds > 2**31:
        raise ValueError(f"--seed={config.seed} leaves no {config.num_seeds} seeds below 2^31.")
    if inner.parallel is not sharding.Parallel.SHARD_MAP or jax.process_count() > 1:
        raise ValueError("training in the graph is for one process and --parallel=shard_map.")
    if count == 1:
        on_policy.check(env, inner)
        return
    devices = sharding.mesh(inner.num_devices).devices.size
    if count % devices:
        raise ValueError(
            f"{count} runs cannot be split over {devices} devices: make them a multiple of "
            f"{devices}, or set --num_devices."
        )
    minibatches.groups(inner.num_envs, inner.rows // inner.num_minibatches, 1)
    rollout.resolve(env, inner.collector)


def check_vary(agent: Agent, config: Config) -> None:
    """Raises ValueError where `vary` names what the agent keeps in no state."""
    schedules = getattr(jax.eval_shape(agent.init, jax.random.key(0)), "schedules", ())
    known = getattr(schedules, "_fields", ())
    for name, _ in config.vary:
        if name not in known:
            told = ", ".join(known) or "nothing"
            raise ValueError(f"--vary cannot vary {name!r}; this agent lets it vary {told}.")


def run(
    agent: Agent, env: JaxEnv, state: Any, config: Config, first_step: int
) -> Iterator[tuple[int, Any, Metrics]]:
    """Trains from `first_step` on; yields once a call. Raises what `check` raises, at once.

    Metrics are those of the last update, and of the episodes of all. For several runs they are the
    means over those whose numbers are all finite, and `seed/*` tells how their returns spread.

    The arrays of a yielded state are donated to the next call: save or copy them before asking for
    it. Raises `faults.RunFault` where an environment gave what cannot be learned from.
    """
    check(env, config)
    check_vary(agent, config)
    config = dataclasses.replace(config, updates_per_call=_most_updates(env, config))
    return _calls(env, program(agent, env, config), place(state, config), config, first_step)


def place(state: Any, config: Config) -> Any:
    """A copy of the state, split over the devices as `program` wants it; the original is kept."""
    mesh, split = _mesh(config), PartitionSpec(_RUNS)
    state = jax.tree.map(jnp.copy, state)
    if len(members(config)) > 1:
        return jax.device_put(state, NamedSharding(mesh, split))
    train = jax.device_put(state.train, NamedSharding(mesh, PartitionSpec()))
    return on_policy.State(train, _split_environments(state.rollout, mesh))


def program(
    agent: Agent, env: JaxEnv, config: Config
) -> Callable[[Any, Array | np.ndarray, Any, Any], tuple[Any, Report]]:
    """`advance(state, seeds, first, stop)`: updates `first` to `stop - 1` of all runs, jitted.

    The state is donated. `seeds` are int32 `[M]`, or a scalar where there is one run; `stop` may
    be up to `updates_per_call` behind `first`, both int32.
    """
    inner, mesh, size = config.inner, _mesh(config), _most_updates(env, config)
    collector = rollout.in_graph(agent, env, inner.num_envs, inner.rollout_length)
    if len(members(config)) == 1:
        learn = sharding.data_parallel(agent.update, mesh, inner.parallel)

        def step(state: Any, seed: Array, update: Array) -> tuple[Any, Report]:
            state = state._replace(rollout=_split_environments(state.rollout, mesh))
            state, report = _iterate(collector, learn, state, seed, update)
            return state._replace(rollout=_split_environments(state.rollout, mesh)), report

        return jax.jit(lambda *args: _advance(step, size, *args), donate_argnums=0)

    def step_alone(state: Any, seed: Array, update: Array) -> tuple[Any, Report]:
        return _iterate(collector, agent.update, state, seed, update)

    def advance(state: Any, seeds: Array, first: Array, stop: Array) -> tuple[Any, Report]:
        each = jax.vmap(lambda *args: _advance(step_alone, size, *args), (0, 0, None, None))
        return each(state, seeds, first, stop)

    split, whole = PartitionSpec(_RUNS), PartitionSpec()
    specs = (split, split, whole, whole)
    mapped = jax.shard_map(advance, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return jax.jit(mapped, donate_argnums=0)


def _most_updates(env: JaxEnv, config: Config) -> int:
    """Of a call; one where the CPU trains convolutions: within a loop it is many times slower."""
    slow = torsos.has_pixels(env.spec) and jax.default_backend() == "cpu"
    return 1 if slow else config.updates_per_call


def _mesh(config: Config) -> Mesh:
    """Devices along the axis of runs, or, for a single run, along that of its environments."""
    mesh = sharding.mesh(config.inner.num_devices)
    if len(members(config)) == 1:
        return mesh
    devices = mesh.devices.reshape(-1, 1)
    return Mesh(devices, (_RUNS, AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def _split_environments(state: rollout.RolloutState, mesh: Mesh) -> rollout.RolloutState:
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec(AXIS)))


def _iterate(
    collector: rollout.Collector,
    learn: Callable[[Any, Any, Array], tuple[Any, Metrics]],
    state: on_policy.State,
    seed: Array,
    update: Array,
) -> tuple[on_policy.State, Report]:
    """Collects a rollout and learns from it: one update of the on-policy loop, as a function."""
    collect_key, learn_key = on_policy.keys(seed, update)
    policy = state.train.policy
    assert state.rollout is not None  # `on_policy.start` makes one for environments in JAX
    running, trajectory, episodes = collector.collect(policy, state.rollout, collect_key)
    train, metrics = learn(state.train, trajectory, learn_key)
    fault = faults.find(trajectory.transitions)
    return on_policy.State(train, running), Report(metrics, episodes, fault)


def _advance(
    step: Callable[[Any, Array, Array], tuple[Any, Report]],
    size: int,
    state: Any,
    seed: Array,
    first: Array,
    stop: Array,
) -> tuple[Any, Report]:
    """Steps `first` to `stop - 1`, with room for the reports of `size` of them."""
    if size == 1:
        state, (metrics, *rest) = step(state, seed, first)
        return state, Report(metrics, *jax.tree.map(lambda x: x[None], rest))
    step = jax.jit(step)  # so that it is traced only once
    shapes = jax.eval_shape(step, state, seed, first)[1]

    def body(update: Array, running: tuple[Any, Report]) -> tuple[Any, Report]:
        state, (_, *rest) = running
        state, (metrics, *new) = step(state, seed, update)
        rest = jax.tree.map(lambda all_, x: all_.at[update - first].set(x), rest, new)
        return state, Report(metrics, *rest)

    metrics, *rest = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    rest = jax.tree.map(lambda x: jnp.zeros(size, x.dtype), rest)
    return jax.lax.fori_loop(first, stop, body, (state, Report(metrics, *rest)))


def _calls(
    env: JaxEnv,
    advance: Callable[[Any, Any, Any, Any], tuple[Any, Report]],
    state: Any,
    config: Config,
    first_step: int,
) -> Iterator[tuple[int, Any, Metrics]]:
    update, last = first_step // config.rows, config.last_step // config.rows
    chosen = members(config)
    seeds = np.array([member.seed for member in chosen], np.int32)
    windows = [Window() for _ in chosen]
    diverged = np.zeros(len(chosen), bool)
    calls, updates = 0, 1
    while update < last:
        stop = min(update + updates, _next_due(update, config), last)
        start = time.perf_counter()
        state, report = advance(
            state, seeds if len(chosen) > 1 else seeds[0], np.int32(update), np.int32(stop)
        )
        report = jax.device_get(report)  # once a call: with more in flight, devices may deadlock
        seconds = (time.perf_counter() - start) / (stop - update)
        if calls:  # the first one compiles
            updates = max(1, min(config.updates_per_call, int(_SECONDS_PER_CALL / seconds)))
        calls += 1
        if len(chosen) == 1:
            report = jax.tree.map(lambda x: x[None], report)
        measured = []
        for i, window in enumerate(windows):
            metrics, episodes, fault = jax.tree.map(lambda x, i=i: x[i], report)
            found = _first_fault(fault, stop - update)
            if found is not None and len(chosen) == 1:
                first = (update + found) * config.rows
                at_fault = jax.tree.map(lambda x, u=found: x[u], fault)
                faults.check(at_fault, env.spec.name, first, config.inner.num_envs)
            diverged[i] |= found is not None or not np.isfinite(list(metrics.values())).all()
            for u in range(stop - update):
                metrics |= window.add(jax.tree.map(lambda x, u=u: x[u], episodes))
            measured.append(metrics)
        merged: dict[str, Any] = _merged(measured, diverged) if len(chosen) > 1 else measured[0]
        merged["time/update_seconds"] = seconds
        update = stop
        yield update * config.rows, state, merged


def _next_due(update: int, config: Config) -> int:
    """The first update behind `update` at whose end a multiple of a cadence has been passed."""
    step = update * config.rows
    due = [math.ceil((step // every + 1) * every / config.rows) for every in config.cadences]
    return min(due, default=config.last_step // config.rows)


def _first_fault(fault: faults.Fault, count: int) -> int | None:
    """Which of the first `count` updates of a call learned from a fault, if any."""
    faulty = np.flatnonzero(fault.kind[:count])
    return int(faulty[0]) if faulty.size else None


def _merged(measured: Sequence[dict[str, Any]], diverged: np.ndarray) -> dict[str, Any]:
    """Means over the runs that did not diverge (over all, if all did), and `seed/*`."""
    kept = [each for each, lost in zip(measured, diverged, strict=True) if not lost] or measured
    names = dict.fromkeys(name for each in kept for name in each)
    merged = {name: float(np.mean([each[name] for each in kept if name in each])) for name in names}
    returns = [float(each["episode/return_mean"]) for each in kept if "episode/return_mean" in each]
    merged |= spread("seed/return", returns)
    merged["seed/diverged"] = int(diverged.sum())
    return merged


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """`<name>_mean`, `_iqm`, `_min` and `_max` of one value a run; nothing of none."""
    if not values:
        return {}
    return {
        f"{name}_mean": float(np.mean(values)),
        f"{name}_iqm": evaluation.iqm(values),
        f"{name}_min": float(np.min(values)),
        f"{name}_max": float(np.max(values)),
    }
