r"""Agents that learn from a dataset against each other, and against whoever made the dataset.

    python -m launch.benchmark offline --dataset=data/mixed --env=CartPole-v1 \
        --agents=bc,cql,iql --trials=5

Behavior cloning (bc) is always among them: all must beat it. Of choices, cql is cql_discrete. Every
agent has the same number of updates, --total_steps, or else what its preset for the task has. Rows:

    score/AGENT              interquartile mean over the seeds of the mean return of 100 greedy
                             episodes, beside the mean return in the dataset; with --env
    ope/AGENT                mean over the seeds of the discounted value by off-policy evaluation,
                             beside what the log earned; for discrete actions, actions sampled. Its
                             interval is of the log; how far to trust it stands in the settings
    time/AGENT               s of a training run
    advantage/A_over_B       difference of means, of scores or, without --env, by OPE

Then it says which agent to take (`offline_choice`): by playing with --env, else by OPE alone, where
no policy is named that the log tells nothing of. In runs/offline/DATASET `best.json` names the run;
its runs stay there, so that an interrupted benchmark trains no run twice, and `results.json` with a
Markdown report, unless --output is somewhere else. A run that fails is reported, and the others go
on.
"""

import dataclasses
import json
import math
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launch.benchmarks import Options, offline_report
from launch.benchmarks.offline_choice import BASELINE, Result, choose
from launch.benchmarks.table import Row
from launch.command_line import usage_errors
from rljax import registry, reliability, sources
from rljax.config import UsageError, nearest
from rljax.offline import sources as datasets
from rljax.types import Discrete

TAKES = ("dataset", "env", "agents", "trials", "total_steps", "num_threads")
RUNS = pathlib.Path("runs/offline")
EPISODES = 100
ESTIMATOR = "wdr"  # weighted doubly robust: it needs neither the weights nor the model alone
BANDIT_ESTIMATOR = "sndr"  # the same where every episode is one decision
OPE_UPDATES = 20_000  # at most, of the value's model
_DISCRETE = ("bc", "cql_discrete", "iql")
_OF_CHOICES = {"cql": "cql_discrete"}  # what an agent of real actions is called for choices
_REAL = ("bc", "td3_bc", "rebrac", "iql", "cql")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is asked of the dataset."""

    path: str
    returns: float  # mean, undiscounted
    discrete: bool


def versions(options: Options) -> dict[str, str]:
    """No peer is run. Raises UsageError, before anything is trained, for what cannot be."""
    if not options.dataset:
        raise UsageError("--dataset is missing: what all agents learn from.")
    for agent in options.agents:
        if not hasattr(registry.agent_module(agent).Config, "total_updates"):
            known = nearest(agent, dict.fromkeys((*_DISCRETE, *_REAL)))
            raise UsageError(f"{agent} learns by acting, not from a --dataset; {known}")
    data = opened(options)
    if not (options.env or data.discrete):
        raise UsageError(
            f"--env is missing: the actions in {data.path} are real, of which only playing tells."
        )
    return {}


def runs_of(dataset: str) -> pathlib.Path:
    """Where the runs on a dataset stay."""
    return RUNS / pathlib.Path(dataset).resolve().name


def output(options: Options) -> pathlib.Path:
    """Where the results land without --output."""
    return runs_of(options.dataset or "") / "results.json"


def opened(options: Options) -> Data:
    """The dataset. Raises UsageError where it cannot be read, or is not of --env."""
    with usage_errors():
        spec = sources.open(sources.EnvSource(options.env, 1)).spec if options.env else None
        found = datasets.open(options.dataset or "", spec)
    discrete = isinstance(found.spec.action, Discrete)
    return Data(options.dataset or "", float(found.returns().mean()), discrete)


def agents(options: Options, data: Data) -> tuple[str, ...]:
    """Those asked for, and the one that all must beat."""
    chosen = options.agents or (_DISCRETE if data.discrete else _REAL)
    if data.discrete:
        chosen = tuple(_OF_CHOICES.get(agent, agent) for agent in chosen)
    return tuple(dict.fromkeys((BASELINE, *chosen)))


def rows(options: Options) -> Iterator[Row]:
    """Trains agent after agent, plays, evaluates by the log, then compares."""
    data = opened(options)
    settings: dict[str, Any] = {
        "dataset": data.path,
        "env": options.env or "none",
        "updates": options.total_steps or "of the presets",
        "trials": options.trials,
        "episodes": EPISODES if options.env else 0,
        "return in the dataset": round(data.returns, 3),
    }
    runs: dict[str, list[pathlib.Path]] = {}
    results: dict[str, Result] = {}
    failed: UsageError | None = None
    for agent in agents(options, data):
        workdirs = [runs_of(data.path) / f"{agent}-{seed}" for seed in range(options.trials)]
        try:
            numbers = trained(agent, workdirs, options)
        except UsageError as error:
            failed = error
            yield Row(f"failed/{agent}", 0.0, str(error), settings)
            continue
        runs[agent] = workdirs
        if options.env:
            found = tuple(float(each["eval/return_mean"]) for each in numbers)
            results[agent] = Result(found)
            yield score_row(agent, found, data.returns, settings)
        seconds = tuple(each["time/wall_clock_seconds"] for each in numbers)
        yield Row(f"time/{agent}", statistics.median(seconds), "s", settings, samples=seconds)
    if not runs:
        raise UsageError(f"no agent could be trained; the last one said: {failed}")
    if data.discrete:
        by_log = yield from ope_rows(runs, settings, options)
        results = results or by_log
    settings = settings | {"by": "playing" if options.env else "OPE"}
    for found in choose(results).differences:
        interval = None if math.isinf(found.low) else (found.low, found.high)
        name = f"advantage/{found.ours}_over_{found.theirs}"
        yield Row(name, found.value, "return", settings, interval=interval)


def score_row(
    agent: str, values: tuple[float, ...], logged: float, settings: dict[str, Any]
) -> Row:
    """One agent's scores, one a seed, beside the mean return in the dataset."""
    value = reliability.interquartile_mean(np.array(values)[:, None])
    low, high = reliability.interval(reliability.interquartile_mean, np.array(values)[:, None])
    # A ratio of returns has a meaning only where both are gains, or both are costs.
    peer = ("dataset", logged) if value * logged > 0 else (None, None)
    interval = (float(low), float(high))
    return Row(f"score/{agent}", value, "return", settings, *peer, values, interval)


def ope_rows(
    runs: Mapping[str, Sequence[pathlib.Path]], settings: dict[str, Any], options: Options
) -> Iterator[Any]:
    """Yields the rows by OPE; returns the results, agent by agent."""
    reports: dict[str, list[dict[str, Any]]] = {}
    updates = min(OPE_UPDATES, options.total_steps or OPE_UPDATES)
    told = settings | {"estimator": ESTIMATOR, "policy": "sampled"}
    failures = []
    for agent, workdirs in runs.items():
        names = ",".join(map(str, workdirs))
        try:
            _run(
                "evaluate",
                *(f"--workdir={names}", f"--dataset={options.dataset}", "--ope"),
                f"--ope_updates={updates}",
            )
            found = [json.loads((workdir / "ope.json").read_text()) for workdir in workdirs]
            check(found)
        except UsageError as error:
            failures.append(Row(f"failed/ope_{agent}", 0.0, str(error), settings))
            continue
        reports[agent] = found
    results = {agent: by_log(found) for agent, found in reports.items()}
    told |= {f"trust of {agent}": reason(found) for agent, found in reports.items()}
    for agent, result in results.items():
        logged = reports[agent][0]["logged"]["value"]
        value = statistics.mean(result.values)
        peer = ("log", logged) if value * logged > 0 else (None, None)
        known = result.log is not None and np.isfinite(result.log).all()
        interval = result.log if known else None
        yield Row(f"ope/{agent}", value, "value", told, *peer, result.values, interval)
    yield from failures
    return results


def check(found: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError where the estimator could not answer for a seed."""
    for report in found:
        estimate = _estimate(report)
        if estimate["value"] is None:
            raise UsageError(f"{estimate['name']} has no value: {estimate['note']}")


def by_log(found: Sequence[Mapping[str, Any]]) -> Result:
    """The reports of all seeds of one agent; it is trusted as its least trusted seed is."""
    estimates = [_estimate(report) for report in found]
    values = tuple(float(each["value"]) for each in estimates)
    # An estimate without an interval may be off by anything.
    lows = [-math.inf if each["low"] is None else each["low"] for each in estimates]
    highs = [math.inf if each["high"] is None else each["high"] for each in estimates]
    interval = (statistics.mean(lows), statistics.mean(highs))
    return Result(values, interval, reason(found).partition(":")[0])


def reason(found: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on the least trusted seed, with its gravest reason."""
    order = ("none", "low", "high")
    worst = min((report["verdict"] for report in found), key=lambda v: order.index(v["trust"]))
    return ": ".join([worst["trust"], *worst["reasons"][:1]])


def finish(report: Mapping[str, Any], output: pathlib.Path) -> None:
    """Prints what to take, writes the Markdown report, and leaves `best.json` by the runs."""
    for line in offline_report.write(report, output, RUNS):
        print(line)


def trained(agent: str, workdirs: Sequence[pathlib.Path], options: Options) -> list[dict[str, Any]]:
    """Trains the seeds of an agent, unless they are there, and plays; their result.json."""
    budget = options.total_steps
    for seed, workdir in enumerate(workdirs):
        _run(
            "train",
            *(f"--agent={agent}", f"--dataset={options.dataset}", f"--seed={seed}"),
            *(f"--workdir={workdir}", f"--num_threads={options.num_threads}"),
            *((f"--config.total_updates={budget}",) if budget else ()),
            *((f"--env={options.env}", "--eval_episodes=0") if options.env else ()),
            *("--checkpoint_every=0", "--progress=off"),
        )
    if options.env:
        names = ",".join(map(str, workdirs))
        _run("evaluate", f"--workdir={names}", f"--episodes={EPISODES}", "--novideo")
    return [json.loads((workdir / "result.json").read_text()) for workdir in workdirs]


def _estimate(report: Mapping[str, Any]) -> dict[str, Any]:
    names = (ESTIMATOR, BANDIT_ESTIMATOR)
    return next(each for each in report["estimates"] if each["name"] in names)


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"launch.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(said(done.stderr))


def said(stderr: str) -> str:
    """What a command ended with, in one line: its error, which may have several, or its last."""
    lines = [line.strip() for line in stderr.strip().splitlines()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    told = lines[errors[-1] :] if errors else lines[-1:]
    return " ".join(told).removeprefix("error: ") or "it said nothing"
