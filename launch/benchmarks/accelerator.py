"""PPO on Atari where there is an accelerator: speed by number of environments, profile, score.

    python -m launch.benchmark accelerator --output=runs/benchmarks/accelerator.json
    python -m launch.benchmark accelerator --output=... --total_steps=10000000     scores too

Rows, Pong-v5 and Breakout-v5 (`--env`: only one of them):

    ppo/train              rows/s of whole training at 8, 64, 256 and 1024 environments
    time/collect, learn    ms per update; what is left is between
    pool/random            rows/s of the bare pool
    xla/step               rows/s of EnvPool's XLA step on this backend, or failed/xla_step and why
    score/greedy           with --total_steps: 100 games of a run from the preset, beside CleanRL's
    time/training          s of that run, beside CleanRL's

A row is four frames. CleanRL's figures are of 10M rows with 8 environments on one GPU and 10 CPU
cores (its documentation of ppo_atari_envpool_xla_jax). A profile of one update at 64 environments
lies in runs/benchmarks/profile, for TensorBoard or Perfetto.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

from agents import ppo
from launch import presets
from launch.benchmarks import Options, measure
from launch.benchmarks.table import Row
from rljax import rollout, sources
from rljax.config import UsageError, nearest
from rljax.envs.base import JaxEnv

TAKES = ("env", "repeats", "num_threads", "total_steps")
NUM_ENVS = (8, 64, 256, 1024)
PROFILE = pathlib.Path("runs/benchmarks/profile")
CLEANRL = {"Pong-v5": (20.82, 34.3 * 60), "Breakout-v5": (420.92, 39.6 * 60)}  # return, seconds
_PROFILED = 64


def versions(options: Options) -> dict[str, str]:
    """No peer is run: published numbers are quoted. Raises UsageError for another environment."""
    if options.env not in (None, *CLEANRL):
        raise UsageError(f"no settings for --env={options.env}; {nearest(options.env, CLEANRL)}")
    return {}


def rows(options: Options) -> Iterator[Row]:
    """Speed at every number of environments, then, if asked for, the score of a whole run."""
    for env in CLEANRL if options.env is None else (options.env,):
        for num_envs in NUM_ENVS:
            yield from speed(env, num_envs, options)
        if options.total_steps is not None:
            yield from score(env, options.total_steps)


def speed(env: str, num_envs: int, options: Options) -> Iterator[Row]:
    """The rows of one number of environments."""
    preset = presets.load("ppo")[env]
    load = measure.Load(preset.config.rollout_length, num_envs, 3, options.repeats)
    updates = 2 + options.repeats * load.window
    config = dataclasses.replace(preset.config, num_envs=num_envs, total_steps=updates * load.rows)
    where = sources.EnvSource(
        env, num_envs, num_threads=options.num_threads, options=preset.env_options
    )
    settings = {
        "env": env,
        "num_envs": num_envs,
        "num_threads": options.num_threads,
        "backend": jax.default_backend(),
    }

    def row(name: str, samples: tuple[float, ...], unit: str, *peer: Any) -> Row:
        return Row(name, statistics.median(samples), unit, settings, *peer, samples=samples)

    pool = sources.open(where)
    assert not isinstance(pool, JaxEnv)
    agent = ppo.make(config, pool.spec)
    ours = measure.training(agent, pool, ppo.loop(config), 1, load)
    yield row("ppo/train", ours.rows_per_second, "rows/s")
    yield row("ppo/first_update", (ours.first_update,), "s")
    yield row("time/collect", ours.collect_ms, "ms")
    yield row("time/learn", ours.learn_ms, "ms")
    yield row("time/between", ours.between_ms, "ms")
    yield row("pool/random", measure.pool(pool.spec, options.num_threads, load), "rows/s")
    other = sources.open(where)
    assert not isinstance(other, JaxEnv)
    try:
        found = measure.pool_xla(other, load)
    except Exception as error:
        yield Row("failed/xla_step", 0.0, f"{type(error).__name__}: {error}"[:120], settings)
    else:
        if found is None:
            yield Row("failed/xla_step", 0.0, "there is none on this backend", settings)
        else:
            yield row("xla/step", found, "rows/s")
    if num_envs == _PROFILED:
        profile(agent, pool, load)


def profile(agent: Any, pool: Any, load: measure.Load) -> None:
    """Leaves the profile of one rollout and one update."""
    once = dataclasses.replace(load, window=1, repeats=1)
    _, trajectory = measure.collector(agent, pool, rollout.Kind.HOST, once)
    with jax.profiler.trace(str(PROFILE)):
        measure.update(agent, trajectory, once)


def score(env: str, total_steps: int) -> Iterator[Row]:
    """Trains the preset for `total_steps` in a process of its own, and plays 100 games."""
    workdir = pathlib.Path("runs/accelerator") / env
    arguments = (f"--env={env}", f"--workdir={workdir}", f"--config.total_steps={total_steps}")
    _run("train", *arguments, "--eval_episodes=0", "--progress=off")
    _run("evaluate", f"--workdir={workdir}", "--episodes=100", "--novideo")
    result = json.loads((workdir / "result.json").read_text())
    settings = {"env": env, "total_steps": total_steps, "backend": jax.default_backend()}
    published, seconds = CLEANRL[env]
    mean, took = result["eval/return_mean"], result["time/wall_clock_seconds"]
    yield Row("score/greedy", mean, "return", settings, "cleanrl (published)", published)
    yield Row("time/training", took, "s", settings, "cleanrl (published)", seconds)


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"launch.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(" ".join(done.stderr.strip().splitlines()[-1:]))
