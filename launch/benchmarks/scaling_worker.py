"""One process of a row of `launch.benchmarks.scaling`; its arguments come from there."""

import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from agents import ppo
from launch import presets
from launch.benchmarks import measure
from rljax import distributed, rollout, sharding
from rljax.agent import AXIS
from rljax.envs import pendulum, wrappers
from rljax.sharding import Parallel

_NUM_ENVS, _ROLLOUT_LENGTH = 64, 64  # over all processes
_WINDOW = 3  # updates that are timed at a time
_REDUCTIONS = 200  # all-reduces in one timed call


def main(arguments: list[str]) -> None:
    """Measures with the others; the first process writes the report."""
    devices, processes, index, port, repeats = map(int, arguments[:5])
    cluster = None
    if processes > 1:
        cluster = distributed.Cluster(f"127.0.0.1:{port}", processes, index)
    with distributed.session(cluster):
        assert len(jax.local_devices()) == devices
        report = _measure(processes, repeats)
        if distributed.is_chief():
            pathlib.Path(arguments[5]).write_text(json.dumps(report))


def _measure(processes: int, repeats: int) -> dict[str, list[float]]:
    load = measure.Load(_ROLLOUT_LENGTH, _NUM_ENVS // processes, _WINDOW, repeats)
    config = presets.load("ppo")["HalfCheetah-v4"].config
    env = wrappers.autoreset(pendulum.make())
    agent = ppo.make(config, env.spec)
    collector = rollout.in_graph(agent, env, load.num_envs, load.rollout_length)
    policy = jax.jit(agent.init)(jax.random.key(0)).policy
    start_key = jax.random.key(1 + jax.process_index())
    _, trajectory, _ = collector.collect(policy, collector.init(start_key), jax.random.key(2))
    updates = [processes * rate for rate in measure.update(agent, trajectory, load)]
    reduction = _reduction_ms(policy.params, repeats)
    steps = config.num_epochs * config.num_minibatches
    shares = [
        100 * steps * ms * rate / (1000 * _NUM_ENVS * _ROLLOUT_LENGTH)
        for ms, rate in zip(reduction, updates, strict=True)
    ]
    return {"update": updates, "collective": reduction, "collective_share": shares}


def _reduction_ms(params: Any, repeats: int) -> list[float]:
    """Of one all-reduce of a tree like the parameters, one leaf after another, as in an update."""
    mesh = sharding.mesh()

    def reduce(state: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        del batch, key
        # Each depends on the one before; adding 1 keeps XLA from making them one.
        added = jax.lax.fori_loop(
            0,
            _REDUCTIONS,
            lambda _, x: jax.lax.pmean(jax.tree.map(lambda y: y + 1, x), AXIS),
            state,
        )
        return added, jnp.float32(0)

    run = sharding.data_parallel(reduce, mesh, Parallel.SHARD_MAP, batch_axes=0)
    state, times = sharding.replicate(params, mesh), []
    batch = jnp.zeros(len(jax.local_devices()))
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, done = run(state, batch, jax.random.key(0))
        jax.block_until_ready((state, done))
        times.append(1000 * (time.perf_counter() - start) / _REDUCTIONS)
    return times[1:]  # the first compiles


if __name__ == "__main__":
    main(sys.argv[1:])
