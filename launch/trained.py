"""From an experiment to what it runs, and from a workdir back to the policy that it trained."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from launch import actors, data, fine_tuning, graph
from launch import experiment as experiments
from launch.command_line import usage_errors
from launch.experiment import ActorKind, Experiment
from rljax import checkpoint, registry, rollout, sharding, sources
from rljax.agent import Agent
from rljax.config import UsageError
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import LOOPS, actor_learner, dagger, in_graph, offline, on_policy
from rljax.loops import fine_tuning as tuning_loop
from rljax.offline.dataset import Dataset

EVAL_ENVS = 16  # environments that an evaluation plays in at once
_EVAL_SEED = 2**30  # training's lie below

Source = HostEnv | JaxEnv | sources.Pools | Dataset | dagger.Lesson | tuning_loop.Source


class Run(NamedTuple):
    """The parts of a run, joined: hand them to the loop of `loop_config`."""

    agent: Agent
    source: Source
    loop_config: Any


class Trained(NamedTuple):
    """A policy as a workdir holds it."""

    experiment: Experiment
    agent: Agent
    policy: Any
    step: int


def build(experiment: Experiment) -> Run:
    """Opens the environments and makes the agent. Raises ValueError where they do not fit."""
    module = registry.agent_module(experiment.agent)
    loop_config = loop_of(experiment)
    if jax.process_count() > 1 and not isinstance(
        loop_config, on_policy.Config | actor_learner.Config
    ):
        raise ValueError(
            f"--agent={experiment.agent} cannot run --distributed with these flags: several "
            "processes learn from rollouts, as ppo does by default."
        )
    source = _open(experiment, loop_config)
    LOOPS[type(loop_config)].check(source, loop_config)
    agent = module.make(experiment.config, source.spec)
    if experiment.online.init_from:
        fine_tuning.check(experiment, agent)
    if isinstance(loop_config, in_graph.Config):
        in_graph.check_vary(agent, loop_config)
    return Run(agent, source, loop_config)


def loop_of(experiment: Experiment) -> Any:
    """The config of the loop that drives the experiment's agent."""
    inner = registry.agent_module(experiment.agent).loop(experiment.config)
    if experiment.online.init_from:
        return fine_tuning.loop(experiment, inner)
    if isinstance(inner, offline.Config):
        return data.loop(experiment, inner)
    inner = dataclasses.replace(
        inner,
        seed=experiment.seed,
        collector=rollout.Kind(experiment.collector.value),
        parallel=sharding.Parallel(experiment.parallel.value),
        num_devices=experiment.num_devices,
    )
    if graph.applies(experiment, inner):
        return graph.loop(experiment, inner)
    alone = experiment.actors.kind is ActorKind.NONE
    return inner if alone else actors.loop(experiment, inner)


def _open(experiment: Experiment, loop_config: Any) -> Source:
    """This process's environments, as the loop wants them; or the dataset."""
    if isinstance(loop_config, offline.Config):
        return data.open(experiment)
    if experiment.online.init_from:
        return fine_tuning.open(experiment)
    source = own(experiment.source)
    if isinstance(loop_config, dagger.Config):
        return dagger.Lesson(sources.open(source), *_expert(experiment))
    if not isinstance(loop_config, actor_learner.Config):
        return sources.open(source)
    elsewhere = experiment.actors.kind is ActorKind.RAY
    make = sources.describe_pools if elsewhere else sources.open_pools
    return make(source, loop_config.num_actors)


def pinned(experiment: Experiment) -> Experiment:
    """The same, with the checkpoint of its expert: of a resumed run the one that it asked before.

    Labels of two experts would mix otherwise, where the expert's run has gone on meanwhile.
    """
    if not experiment.expert or jax.process_count() > 1:  # which is refused
        return experiment
    if (pathlib.Path(experiment.workdir) / experiments.CONFIG_FILE).exists():
        before = experiments.load(experiment.workdir)
        if before.expert == experiment.expert:
            return dataclasses.replace(experiment, expert_step=before.expert_step)
    try:
        experiments.load(experiment.expert)  # nothing is made where no run is
    except UsageError as error:
        raise UsageError(f"--expert: {error}") from error
    with checkpoint.Manager(pathlib.Path(experiment.expert) / "checkpoints") as checkpoints:
        step = max(checkpoints.steps, default=0)
    return dataclasses.replace(experiment, expert_step=step)


def _expert(experiment: Experiment) -> tuple[Agent, Any]:
    """Whom the run asks. Raises UsageError where there is nobody."""
    try:
        expert = load(experiment.expert, experiment.expert_step or None)
    except UsageError as error:
        raise UsageError(f"--expert: {error}") from error
    return expert.agent, expert.policy


def own(source: sources.EnvSource) -> sources.EnvSource:
    """This process's part of the environments; together the parts are those of one process.

    Raises ValueError where they cannot be split.
    """
    count = jax.process_count()
    if source.num_envs % count:
        raise ValueError(
            f"num_envs={source.num_envs} cannot be split over {count} processes: choose a multiple."
        )
    each = source.num_envs // count
    return dataclasses.replace(source, num_envs=each, seed=source.seed + jax.process_index() * each)


def fresh_source(
    experiment: Experiment, num_envs: int = EVAL_ENVS, seed: int = 0
) -> HostEnv | JaxEnv:
    """Other environments of the same task, none of them seeded as those of training.

    Raises UsageError where the run has none: it learned from a dataset, without an --env.
    """
    if not experiment.source.name:
        raise UsageError(
            f"{experiment.workdir} learned from {experiment.dataset} without --env, so there is "
            "nothing to play: train it with --env."
        )
    seed = _EVAL_SEED + (1000 * experiment.seed + seed) % (_EVAL_SEED - 10_000)
    return sources.open(dataclasses.replace(experiment.source, num_envs=num_envs, seed=seed))


def load(
    workdir: str | pathlib.Path, step: int | str | None = None, number: int | None = None
) -> Trained:
    """The policy of a workdir: of `step`, of the "best" evaluation, or the last (None, "latest").

    Where several runs were trained in one program, that of run `number`, by default 0, and the
    experiment with that run's own seed and hyper-parameters.

    Raises:
        UsageError: there is no run, no such one, no such checkpoint, or a damaged one.
    """
    experiment = experiments.load(workdir)
    with usage_errors():
        module = registry.agent_module(experiment.agent)
        if experiment.dataset:
            source, spec = None, data.spec(workdir)
        else:
            source = sources.open(dataclasses.replace(experiment.source, num_envs=1))
            spec = source.spec
        agent = module.make(experiment.config, spec)
        loop_config = loop_of(experiment)
        several = isinstance(loop_config, in_graph.Config)
        member = in_graph.member(loop_config, number or 0) if several else None
        if number and not several:
            raise ValueError(f"there is no run {number}: {workdir} holds one run.")
    with checkpoint.Manager(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        if step == "best":
            step = checkpoints.best_step
        restored, train = checkpoints.restore(
            lambda: _train_state(agent, source, loop_config),
            None if step in (None, "latest") else int(step),
            part="train",  # a replay may not fit where its policy plays
        )
    if member is not None:
        train = in_graph.select(train, loop_config, number or 0)
        experiment = of_member(experiment, member)
    return Trained(experiment, agent, train.policy, restored)


def _train_state(agent: Agent, source: HostEnv | JaxEnv | None, loop_config: Any) -> Any:
    """What the loop's state has under `train`."""
    if source and isinstance(loop_config, in_graph.Config):  # several side by side
        return in_graph.init(agent, source, loop_config).train
    return agent.init(jax.random.key(0))


def of_member(experiment: Experiment, member: in_graph.Member) -> Experiment:
    """The experiment that would train this one run alone."""
    names = {field.name for field in dataclasses.fields(experiment.config)}
    settings = {name: value for name, value in member.settings.items() if name in names}
    config = dataclasses.replace(experiment.config, **settings)
    return dataclasses.replace(experiment, config=config, seed=member.seed, num_seeds=1, vary=())
