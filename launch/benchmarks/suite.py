"""Agents against each other on several tasks: every pair trained on several seeds, then compared.

    python -m launch.benchmark suite --envs=CartPole-v1,Acrobot-v1 --agents=ppo --output=suite.json

The random agent is always among them: it is the floor. Every agent has the same number of steps on
a task: --total_steps, or else what PPO's preset for the task has. Rows:

    score/AGENT              mean over the trials of the mean return of 100 episodes; per task
    time/AGENT               s of a training run; per task
    iqm/AGENT                interquartile mean of normalized scores over all runs of all tasks
    improvement/A_over_B     probability that a run of A beats one of B on the same task

Scores are normalized per task: 0 is the random agent, 1 the published score if one is known, else
the best agent's mean here; a task that no agent does better on than at random says so and is left
out. Intervals are stratified bootstraps (`rljax.reliability`). Beside --output land a Markdown and
an HTML report with plots (`suite_report`). Runs stay in runs/suite, so that an interrupted suite
goes on; a run that fails is reported, and the others go on.
"""

import dataclasses
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launch import presets
from launch.benchmarks import Options, suite_report
from launch.benchmarks.scores import PUBLISHED
from launch.benchmarks.table import Row
from rljax import registry, reliability
from rljax.config import UsageError, nearest

TAKES = ("envs", "agents", "trials", "total_steps", "num_threads")
RUNS = pathlib.Path("runs/suite")
FLOOR = "random"
EPISODES = 100
_DEFAULT_STEPS = 100_000  # for a task that PPO has no preset for
_DEFAULT_ENVS = ("CartPole-v1", "Acrobot-v1")
_DEFAULT_AGENTS = ("ppo", "dqn")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Mean returns of one agent on one task, a number a trial, or why there are none."""

    returns: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    failure: str = ""


def versions(options: Options) -> dict[str, str]:
    """No peer is run. Raises UsageError, before anything is trained, for an unknown agent."""
    for agent in agents(options):
        if agent not in registry.agent_names():
            raise UsageError(f"unknown agent {agent!r}; {nearest(agent, registry.agent_names())}")
    return {}


def agents(options: Options) -> tuple[str, ...]:
    """Those asked for, and the floor."""
    return tuple(dict.fromkeys((*(options.agents or _DEFAULT_AGENTS), FLOOR)))


def rows(options: Options) -> Iterator[Row]:
    """Trains and scores pair after pair, then compares."""
    scores: dict[str, dict[str, Scores]] = {}
    for env in options.envs or _DEFAULT_ENVS:
        steps = options.total_steps or _budget(env)
        settings = {"env": env, "steps": steps, "trials": options.trials, "episodes": EPISODES}
        scores[env] = {}
        for agent in agents(options):
            one = trained(env, agent, steps, options)
            scores[env][agent] = one
            if one.failure:
                yield Row(f"failed/{agent}", 0.0, one.failure, settings)
                continue
            mean, samples = statistics.mean(one.returns), one.returns
            low, high = reliability.interval(np.mean, np.array(samples)[:, None])
            interval = (float(low), float(high))
            yield Row(
                f"score/{agent}", mean, "return", settings, samples=samples, interval=interval
            )
            yield Row(f"time/{agent}", statistics.median(one.seconds), "s", settings)
    yield from comparison(scores)


def comparison(scores: Mapping[str, Mapping[str, Scores]]) -> Iterator[Row]:
    """The rows over all tasks, from task -> agent -> scores."""
    tasks, left_out = comparable(scores)
    settings: dict[str, Any] = {"tasks": ", ".join(tasks) or "none"}
    if left_out:
        settings["left out (nobody beats random, or it failed)"] = ", ".join(left_out)
    whole = [a for a in next(iter(scores.values())) if all(scores[t][a].returns for t in tasks)]
    if not tasks:
        return
    table = {agent: normalized(scores, tasks, agent) for agent in whole}
    for agent, mine in table.items():
        low, high = reliability.interval(reliability.interquartile_mean, mine)
        yield Row(
            f"iqm/{agent}",
            reliability.interquartile_mean(mine),
            "normalized",
            settings,
            samples=tuple(mine.ravel().tolist()),
            interval=(float(low), float(high)),
        )
    for ours, theirs in itertools.permutations(whole, 2):
        pair = table[ours], table[theirs]
        low, high = reliability.interval(reliability.probability_of_improvement, *pair)
        value = reliability.probability_of_improvement(*pair)
        name = f"improvement/{ours}_over_{theirs}"
        yield Row(name, value, "probability", settings, interval=(float(low), float(high)))


def comparable(scores: Mapping[str, Mapping[str, Scores]]) -> tuple[list[str], list[str]]:
    """Tasks that scores can be normalized on, and the others."""
    good = [t for t, of in scores.items() if of[FLOOR].returns and _top(t, of) > _floor(of)]
    return good, [task for task in scores if task not in good]


def normalized(
    scores: Mapping[str, Mapping[str, Scores]], tasks: Sequence[str], agent: str
) -> np.ndarray:
    """One agent's scores `[trials, tasks]`: 0 as the random agent, 1 as the best known."""
    returns = np.array([scores[task][agent].returns for task in tasks], dtype=float).T
    floor = np.array([_floor(scores[task]) for task in tasks])
    top = np.array([_top(task, scores[task]) for task in tasks])
    return reliability.normalized(returns, floor, top)


def finish(report: Mapping[str, Any], output: pathlib.Path) -> None:
    """Writes the Markdown and HTML reports and the plots beside `output`."""
    suite_report.write(report, output, RUNS)


def trained(env: str, agent: str, steps: int, options: Options) -> Scores:
    """Trains the trials of a pair, unless they are there, and scores them."""
    workdirs = [RUNS / env.replace(":", "-") / agent / str(i) for i in range(options.trials)]
    try:
        for seed, workdir in enumerate(workdirs):
            _run(
                "train",
                *(f"--agent={agent}", f"--env={env}", f"--seed={seed}", f"--workdir={workdir}"),
                *(f"--config.total_steps={steps}", f"--num_threads={options.num_threads}"),
                *("--eval_episodes=0", "--checkpoint_every=0", "--progress=off"),
            )
        names = ",".join(map(str, workdirs))
        _run("evaluate", f"--workdir={names}", f"--episodes={EPISODES}", "--novideo")
    except UsageError as error:
        return Scores(failure=str(error))
    results = [json.loads((workdir / "result.json").read_text()) for workdir in workdirs]
    # The likeliest action of a uniform policy means nothing.
    metric = "eval_sampled/return_mean" if agent == FLOOR else "eval/return_mean"
    return Scores(
        tuple(result[metric] for result in results),
        tuple(result["time/wall_clock_seconds"] for result in results),
    )


def _budget(env: str) -> int:
    known = presets.load("ppo")
    return known[env].config.total_steps if env in known else _DEFAULT_STEPS


def _floor(of: Mapping[str, Scores]) -> float:
    return statistics.mean(of[FLOOR].returns)


def _top(env: str, of: Mapping[str, Scores]) -> float:
    best = max(statistics.mean(scores.returns) for scores in of.values() if scores.returns)
    return PUBLISHED["ppo"].get(env.removeprefix("envpool:"), best)


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"launch.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(" ".join(done.stderr.strip().splitlines()[-1:]) or "it said nothing")
