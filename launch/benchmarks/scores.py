"""What the presets reach: each trained on several seeds, evaluated on fresh environments.

    python -m launch.benchmark scores --output=runs/benchmarks/scores.json
    python -m launch.benchmark scores --output=... --agents=dqn,sac --env=CartPole-v1

Rows of one task:

    score/greedy     mean over the seeds of the mean return of 100 episodes, and the published one
    score/sampled    the same, with sampled actions
    time/training    s of one run up to its last line of metrics, evaluation included

`--agents` is ppo where it is not given. `--repeats` is the number of seeds (of the MuJoCo tasks
there is one, unless --env names one). The runs stay in runs/scores, so that an interrupted
benchmark goes on; curves are drawn beside them.
"""

import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from launch import presets
from launch.benchmarks import Options
from launch.benchmarks.table import Row
from rljax.config import UsageError, nearest
from rljax.metrics import plots

_RUNS = pathlib.Path("runs/scores")
_EPISODES = 100
_CLASSIC = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3", "Pendulum-v1")
_MUJOCO = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4")
# Mean returns. PPO: RL Zoo's benchmark.md for the first five, one trained agent each (LunarLander
# there is v2); tianshou's MuJoCo table at 1M steps, 10 seeds, for the others (v3 there). DQN and
# SAC: RL Zoo's.
PUBLISHED = {
    "ppo": {
        "CartPole-v1": 500.0,
        "Acrobot-v1": -73.5,
        "LunarLander-v3": 242.1,
        "Pendulum-v1": -172.2,
        "LunarLanderContinuous-v3": 270.9,
        "HalfCheetah-v4": 5783.9,
        "Hopper-v4": 2609.3,
        "Walker2d-v4": 3588.5,
        "Ant-v4": 3258.4,
    },
    "dqn": {"CartPole-v1": 500.0, "Acrobot-v1": -76.6, "LunarLander-v3": 154.4},
    "sac": {"Pendulum-v1": -157.0, "HalfCheetah-v4": 9535.5, "Hopper-v4": 2325.5},
}
TAKES = ("repeats", "env", "agents")


def versions(options: Options) -> dict[str, str]:
    """No peer is run: published numbers are quoted."""
    del options
    return {}


def rows(options: Options) -> Iterator[Row]:
    """Trains and scores task after task. Raises UsageError at once for what was not published."""
    agents = options.agents or ("ppo",)
    for agent in agents:
        if agent not in PUBLISHED:
            raise UsageError(f"no published scores of {agent!r}; {nearest(agent, PUBLISHED)}")
        if options.env is not None and options.env not in PUBLISHED[agent]:
            known = nearest(options.env, PUBLISHED[agent])
            raise UsageError(f"no published score of {agent} for --env={options.env}; {known}")
    return itertools.chain.from_iterable(_agent_rows(agent, options) for agent in agents)


def _agent_rows(agent: str, options: Options) -> Iterator[Row]:
    for env in PUBLISHED[agent] if options.env is None else (options.env,):
        several = options.env is not None or env not in _MUJOCO
        yield from task_rows(agent, env, options.repeats if several else 1)
    curves = {env: sorted(_RUNS.glob(f"{agent}-{env}-*/metrics.jsonl")) for env in _CLASSIC}
    curves = {env: files for env, files in curves.items() if files}
    if len(curves) > 1:
        plots.panels(curves, _RUNS / f"{agent}_learning_curves.png")


def task_rows(agent: str, env: str, seeds: int) -> Iterator[Row]:
    """Trains `seeds` runs of a preset, unless they are there, and scores them."""
    workdirs = [_RUNS / f"{agent}-{env}-{seed}" for seed in range(seeds)]
    for seed, workdir in enumerate(workdirs):
        flags = (f"--agent={agent}", f"--env={env}", f"--seed={seed}", "--eval_every=0")
        _run("train", f"--workdir={workdir}", *flags, "--progress=off")
    names = ",".join(map(str, workdirs))
    _run("evaluate", f"--workdir={names}", f"--episodes={_EPISODES}", "--novideo")
    results = [json.loads((workdir / "result.json").read_text()) for workdir in workdirs]
    settings: dict[str, Any] = {
        "agent": agent,
        "env": env,
        "seeds": seeds,
        "total_steps": presets.load(agent)[env].config.total_steps,
        "episodes": _EPISODES,
    }

    def row(name: str, metric: str, unit: str, *peer: Any) -> Row:
        samples = tuple(result[metric] for result in results)
        return Row(name, statistics.mean(samples), unit, settings, *peer, samples=samples)

    published = PUBLISHED[agent][env]
    yield row("score/greedy", "eval/return_mean", "return", "published", published)
    yield row("score/sampled", "eval_sampled/return_mean", "return")
    yield row("time/training", "time/wall_clock_seconds", "s")
    curve = {env: [workdir / "metrics.jsonl" for workdir in workdirs]}
    plots.learning_curve(curve, _RUNS / f"{agent}-{env}.png")


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"launch.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UsageError(f"{' '.join(command)} failed: {' '.join(last)}")
