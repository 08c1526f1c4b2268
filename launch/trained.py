"""From an experiment to what it runs, and from a workdir back to the policy that it trained."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from launch import experiment as experiments
from launch.command_line import usage_errors
from launch.experiment import Experiment
from rljax import checkpoint, registry, rollout, sharding, sources
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import LOOPS

EVAL_ENVS = 16  # environments that an evaluation plays in at once
_EVAL_SEED = 2**30  # training's lie below


class Run(NamedTuple):
    """The parts of a run, joined: hand them to the loop of `loop_config`."""

    agent: Agent
    source: HostEnv | JaxEnv
    loop_config: Any


class Trained(NamedTuple):
    """A policy as a workdir holds it."""

    experiment: Experiment
    agent: Agent
    policy: Any
    step: int


def build(experiment: Experiment) -> Run:
    """Opens the environments and makes the agent. Raises ValueError where they do not fit."""
    source = sources.open(experiment.source)
    module = registry.agent_module(experiment.agent)
    loop_config = dataclasses.replace(
        module.loop(experiment.config),
        seed=experiment.seed,
        collector=rollout.Kind(experiment.collector.value),
        parallel=sharding.Parallel(experiment.parallel.value),
        num_devices=experiment.num_devices,
    )
    LOOPS[type(loop_config)].check(source, loop_config)
    return Run(module.make(experiment.config, source.spec), source, loop_config)


def fresh_source(
    experiment: Experiment, num_envs: int = EVAL_ENVS, seed: int = 0
) -> HostEnv | JaxEnv:
    """Other environments of the same task, none of them seeded as those of training."""
    seed = _EVAL_SEED + (1000 * experiment.seed + seed) % (_EVAL_SEED - 10_000)
    return sources.open(dataclasses.replace(experiment.source, num_envs=num_envs, seed=seed))


def load(workdir: str | pathlib.Path, step: int | str | None = None) -> Trained:
    """The policy of a run: of `step`, of the "best" evaluation, or the last (None, "latest").

    Raises:
        UsageError: there is no run, no such checkpoint, or a damaged one.
    """
    experiment = experiments.load(workdir)
    with usage_errors():
        module = registry.agent_module(experiment.agent)
        source = sources.open(dataclasses.replace(experiment.source, num_envs=1))
        agent = module.make(experiment.config, source.spec)
        loop_config = module.loop(experiment.config)
    with checkpoint.Manager(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        if step == "best":
            step = checkpoints.best_step
        restored, state = checkpoints.restore(
            lambda: LOOPS[type(loop_config)].init(agent, source, loop_config),
            None if step in (None, "latest") else int(step),
        )
    return Trained(experiment, agent, state.train.policy, restored)
