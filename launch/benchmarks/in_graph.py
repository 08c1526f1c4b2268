"""How fast PPO trains in the graph, beside rejax: CartPole, one seed and eight vmapped.

    python -m launch.benchmark in_graph --output=runs/benchmarks/in_graph.json

Settings are PureJaxRL's for CartPole (4 environments x 128 rows, 4 epochs, 4 minibatches, two tanh
layers of 64). Neither side evaluates or logs; all updates of a run are one call of one program.

    in_graph/train       steps/s over all seeds, compilation apart
    in_graph/compile     s to trace and compile the program, nothing compiled before

A step of ours is a row that is valid. rejax restarts ended episodes within the same step, so that
all its rows are steps; it clips gradients by value, and trains actor and critic with an optimizer
each. `--total_steps` is of each run.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from agents import ppo
from launch.benchmarks import Options
from launch.benchmarks.peers import Peers
from launch.benchmarks.table import Row
from rljax import sources
from rljax.config import UsageError
from rljax.envs.base import JaxEnv
from rljax.loops import in_graph

TAKES = ("repeats", "total_steps", "peers", "peer_python")
NUM_SEEDS = (1, 8)
TOTAL_STEPS = 500_000
PEERS = Peers(
    {"rejax": "rejax"},
    "peer_rejax.py",
    ("gymnax", "jax", "flax", "numpy"),
    target="bench-in-graph",
    python=pathlib.Path(".venv-rejax/bin/python"),
)
versions = PEERS.versions
CONFIG = ppo.Config(
    num_envs=4,
    rollout_length=128,
    num_epochs=4,
    num_minibatches=4,
    learning_rate=2.5e-4,
    anneal_learning_rate=False,  # rejax has no schedule
    entropy_cost=0.01,
    value_cost=0.5,  # of half the squared error, as rejax has it
    clip_value=0.2,  # rejax always clips
)


def rows(options: Options) -> Iterator[Row]:
    """Two rows for each number of seeds."""
    jax.config.update("jax_enable_compilation_cache", False)  # so that compiling is compiling
    steps = options.total_steps or TOTAL_STEPS
    config = dataclasses.replace(CONFIG, total_steps=steps)
    try:
        ppo.validate(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for num_seeds in NUM_SEEDS:
        settings = {
            "env": "CartPole-v1",
            "num_seeds": num_seeds,
            "num_envs": config.num_envs,
            "rollout_length": config.rollout_length,
            "num_epochs": config.num_epochs,
            "num_minibatches": config.num_minibatches,
            "total_steps": steps,
        }
        compiling, speeds = ours(config, num_seeds, options.repeats)
        speed = statistics.median(speeds)
        for peer in PEERS.chosen(options) or (None,):
            slow, fast = theirs(config, num_seeds, options) if peer else (None, None)
            yield Row("in_graph/train", speed, "steps/s", settings, peer, fast, speeds)
            yield Row("in_graph/compile", compiling, "s", settings, peer, slow)


def ours(config: ppo.Config, num_seeds: int, repeats: int) -> tuple[float, tuple[float, ...]]:
    """Seconds to compile, and the steps/s of each whole training."""
    env = sources.open(sources.EnvSource("rljax:cartpole", config.num_envs))
    assert isinstance(env, JaxEnv)
    agent = ppo.make(config, env.spec)
    inner = dataclasses.replace(ppo.loop(config), num_devices=1)
    updates = inner.last_step // inner.rows
    loop = in_graph.Config(inner, num_seeds, updates_per_call=updates)
    seeds = np.array([member.seed for member in in_graph.members(loop)], np.int32)
    arguments = (seeds if num_seeds > 1 else seeds[0], np.int32(0), np.int32(updates))
    first = in_graph.init(agent, env, loop)
    start = time.perf_counter()
    advance: Any = in_graph.program(agent, env, loop)
    compiled = advance.lower(in_graph.place(first, loop), *arguments).compile()
    compiling = time.perf_counter() - start
    speeds = []
    for repeat in range(1 + repeats):  # the first call may prepare more
        state = jax.block_until_ready(in_graph.place(first, loop))
        start = time.perf_counter()
        _, report = jax.block_until_ready(compiled(state, *arguments))
        seconds = time.perf_counter() - start
        endings = int(np.sum(report.episodes.count))  # each is followed by a row that is no step
        if repeat:
            speeds.append((num_seeds * inner.last_step - endings) / seconds)
    return compiling, tuple(speeds)


def theirs(config: ppo.Config, num_seeds: int, options: Options) -> tuple[float, float]:
    """Seconds to compile, and the median of the steps/s, from a process of its own."""
    rows = config.num_envs * config.rollout_length
    steps = config.total_steps // rows * rows
    job = {
        "num_seeds": num_seeds,
        "repeats": options.repeats,
        "ppo": {
            "env": "CartPole-v1",
            "total_timesteps": steps,
            "num_envs": config.num_envs,
            "num_steps": config.rollout_length,
            "num_epochs": config.num_epochs,
            "num_minibatches": config.num_minibatches,
            "learning_rate": config.learning_rate,
            "max_grad_norm": config.max_grad_norm,
            "gamma": config.discount,
            "gae_lambda": config.gae_lambda,
            "clip_eps": config.clip_ratio,
            "ent_coef": config.entropy_cost,
            "vf_coef": config.value_cost,
            "agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": config.hidden_sizes},
        },
    }
    answer = PEERS.run(options, job)
    speeds = [num_seeds * steps / seconds for seconds in answer["seconds"]]
    return answer["compile_seconds"], statistics.median(speeds)
