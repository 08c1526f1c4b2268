"""Times training and each of its parts by itself, in this process, compilation apart.

Every function gives one figure per timed window; `Load` says how long a window is. Axes: T rows of
a rollout, B environments.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import envpool
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core

from rljax import rollout, sharding
from rljax.agent import Agent
from rljax.envs.base import HostEnv
from rljax.loops import on_policy
from rljax.types import Box, Discrete, EnvSpec, Trajectory

_PRODUCTS = 1_000  # in a timed window


@dataclasses.dataclass(frozen=True)
class Load:
    """How much is timed: rollouts of T rows of B environments, `window` of them at a time."""

    rollout_length: int
    num_envs: int
    window: int
    repeats: int

    @property
    def rows(self) -> int:
        """Rows of one rollout."""
        return self.rollout_length * self.num_envs


class Training(NamedTuple):
    """Whole training; `first_update` is in seconds, the rest has one entry per timed window."""

    first_update: float  # with all that it compiles
    steps_per_second: tuple[float, ...]  # without the rows that autoreset puts behind endings
    rows_per_second: tuple[float, ...]
    collect_ms: tuple[float, ...]  # per update, as are the next two
    learn_ms: tuple[float, ...]
    between_ms: tuple[float, ...]  # what the loop itself takes


def training(
    agent: Agent, env: HostEnv, config: on_policy.Config, warm_up: int, load: Load
) -> Training:
    """The loop of `launch.train` without its writers: one update, `warm_up` more, then windows."""
    start = time.perf_counter()
    run = on_policy.run(agent, env, on_policy.init(agent, env, config), config, 0)
    next(run)
    first_update = time.perf_counter() - start
    ended = 0
    for _ in range(warm_up):
        ended = next(run)[2].get("episode/count", 0)
    windows = []
    for _ in range(load.repeats):
        before, metrics = ended, {}
        collect = learn = 0.0
        start = time.perf_counter()
        for _ in range(load.window):
            _, _, metrics = next(run)
            collect += metrics["time/collect_seconds"]
            learn += metrics["time/learn_seconds"]
        seconds = time.perf_counter() - start
        ended = metrics.get("episode/count", 0)
        rows = load.window * load.rows
        rates = ((rows - (ended - before)) / seconds, rows / seconds)
        parts = (collect, learn, seconds - collect - learn)
        windows.append((*rates, *(1000 * part / load.window for part in parts)))
    return Training(first_update, *zip(*windows, strict=True))


def pool(spec: EnvSpec, num_threads: int, load: Load) -> tuple[float, ...]:
    """Rows/s of EnvPool's own Python interface under random actions drawn beforehand."""
    with warnings.catch_warnings():  # EnvPool's own, of bounds that lose digits as float32
        warnings.simplefilter("ignore")
        bare = envpool.make(
            spec.name, env_type="gymnasium", num_envs=load.num_envs, num_threads=num_threads, seed=0
        )
        bare.reset()
    actions = _random_actions(spec, load)

    def call() -> None:
        for action in actions:
            bare.step(action)

    return _rates(call, load)


def pool_xla(env: HostEnv, load: Load) -> tuple[float, ...] | None:
    """Rows/s of the pool's XLA step in one jitted scan, likewise; None where it has none."""
    env.reset()
    xla = env.xla()
    if xla is None:
        return None
    actions = jnp.asarray(_random_actions(env.spec, load), env.spec.action.dtype)

    def row(handle: Array, action: Array) -> tuple[Array, Array]:
        handle, step = xla.step(handle, action)
        return handle, step.reward

    steps = jax.jit(lambda actions: jax.lax.scan(row, xla.handle, actions))
    return _rates(lambda: jax.block_until_ready(steps(actions)), load)


def collector(
    agent: Agent, env: HostEnv, kind: rollout.Kind, load: Load
) -> tuple[tuple[float, ...], Trajectory]:
    """Rows/s of a collector with the untrained policy in its loop; and its last trajectory."""
    collect = rollout.make(agent, env, load.num_envs, load.rollout_length, kind)
    policy = jax.jit(agent.init)(jax.random.key(0)).policy
    key = jax.random.key(1)
    running, trajectory, _ = collect.collect(policy, collect.init(key), key)

    def call() -> None:
        nonlocal running, trajectory
        running, trajectory, _ = collect.collect(policy, running, key)
        jax.block_until_ready(trajectory)

    return _rates(call, load), trajectory


def update(agent: Agent, trajectory: Trajectory, load: Load) -> tuple[float, ...]:
    """Rows/s of the jitted update alone, all its epochs over the same trajectory."""
    mesh = sharding.mesh()
    learn = sharding.data_parallel(agent.update, mesh, sharding.Parallel.SHARD_MAP)
    state = sharding.replicate(jax.jit(agent.init)(jax.random.key(0)), mesh)
    trajectory, key = jax.device_put(trajectory), jax.random.key(1)

    def call() -> None:
        nonlocal state
        state, metrics = learn(state, trajectory, key)
        jax.block_until_ready(metrics)

    return _rates(call, load)


def matmul_flops(update: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of all matrix products of one call; nothing is run."""
    return _matmul_flops(jax.make_jaxpr(update)(*arguments).jaxpr)


def _matmul_flops(jaxpr: core.Jaxpr) -> int:
    """Loops and branches count once: there are none around the products of an update."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left: Any = equation.invars[0].aval
            result: Any = equation.outvars[0].aval
            inner = math.prod(left.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(result.shape)
        total += sum(map(_matmul_flops, core.jaxprs_in_params(equation.params)))
    return total


def matmul_rate(rows: int, width: int, repeats: int) -> float:
    """Floating-point operations/s of products `[rows, width] @ [width, width]`, at best.

    The fastest of `repeats` windows, of products alone and of pairs as a gradient has them.
    """
    weights = jax.random.normal(jax.random.key(0), (width, width)) / width**0.5
    x = jax.random.normal(jax.random.key(1), (rows, width))

    def forward(i: Array, x: Array) -> Array:
        del i
        return x @ weights

    def backward(i: Array, w: Array) -> Array:
        del i
        return w + 1e-6 * (x.T @ (x @ w))

    best = 0.0
    for body, start, products in ((forward, x, 1), (backward, weights, 2)):
        call = jax.jit(partial(jax.lax.fori_loop, 0, _PRODUCTS, body))
        jax.block_until_ready(call(start))
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(call(start))
            flops = 2 * products * _PRODUCTS * rows * width**2
            best = max(best, flops / (time.perf_counter() - began))
    return best


def _rates(call: Callable[[], Any], load: Load) -> tuple[float, ...]:
    """Rows/s of windows of calls, a rollout's rows each; one call goes before, and may compile."""
    call()
    rates = []
    for _ in range(load.repeats):
        start = time.perf_counter()
        for _ in range(load.window):
            call()
        rates.append(load.window * load.rows / (time.perf_counter() - start))
    return tuple(rates)


def _random_actions(spec: EnvSpec, load: Load) -> np.ndarray:
    """`[T, B, ...]`, of the type that the pool itself takes."""
    rng, shape = np.random.default_rng(0), (load.rollout_length, load.num_envs)
    match spec.action:
        case Discrete(num_actions):
            return rng.integers(num_actions, size=shape, dtype=np.int32)
        case Box(low, high):
            return rng.uniform(low, high, size=(*shape, len(low)))
    raise ValueError(f"{spec.name} has neither discrete nor continuous actions.")
