"""From offline to online: from a command line to `Online`, and from there to the loop's config.

    --init_from=runs/offline_iql --env=HalfCheetah-v4       agent, config and dataset are that run's
    --online_steps=100_000 --dataset_fraction=0.25          its budget, and what batches are made of
    --return_floor=3000 --floor_episodes=10                 ends the run where the last 10 are worse

The run that it goes on from is looked at while flags are read.
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from launch import experiment as experiments
from launch.experiment import ActorKind, Experiment, Online
from rljax import registry
from rljax.config import UsageError

if TYPE_CHECKING:
    from rljax.agent import Agent
    from rljax.loops import fine_tuning, offline

EXIT_CODE = 3  # of a run that the floor has ended
# Agents that can go on by acting, and what their configs then have. The cosine of IQL's policy has
# reached 0 with the updates on the dataset: online its rate is constant.
AGENTS: dict[str, dict[str, Any]] = {
    "iql": {"anneal_actor_learning_rate": False},
    "cql": {},
    "cql_discrete": {},
    "td3_bc": {},
}
# They fit in shape, and would break it or do nothing.
_FIXED = ("activation", "cloning_updates", "reward_multiplier", "reward_bias")
FLAGS: dict[str, tuple[Any, str, int | None]] = {  # name -> type, help, minimum; unset by default
    "init_from": (
        str,
        "The workdir of a run that learned from a dataset: its policy goes on in --env. Its agent, "
        "config and dataset are the defaults.",
        None,
    ),
    "online_steps": (int, "Rows to collect with --init_from; default: 250,000.", 1),
    "online_envs": (int, "Environments that collect; default: 4.", 1),
    "online_rollout_length": (int, "Rows of each between updates; default: 16.", 1),
    "online_updates": (int, "Updates after each rollout; default: one for each of its rows.", 1),
    "online_capacity": (int, "Collected rows that are kept; default: all.", 1),
    "dataset_fraction": (
        float,
        "Share of a batch that is the dataset's, in [0, 1); default: 0.5.",
        None,
    ),
    "return_floor": (
        float,
        "Stops exploring where the mean return of the last --floor_episodes is lower.",
        None,
    ),
    "floor_episodes": (int, "Ended episodes that --return_floor judges by; default: 20.", 1),
}


def read(values: Any) -> Online:
    """What parsed flags ask for.

    Raises:
        UsageError: flags that would change nothing.
    """
    given = {name: values[name].value for name in FLAGS if values[name].value is not None}
    for name in given:
        if not values.init_from:
            raise UsageError(
                f"--{name} is of runs that go on from another: add --init_from, or leave it out."
            )
    if "floor_episodes" in given and "return_floor" not in given:
        raise UsageError("--floor_episodes changes nothing without --return_floor: add that.")
    floor = given.get("return_floor", 0.0)
    if not math.isfinite(floor):
        raise UsageError(f"--return_floor must be a number that returns can be under, not {floor}.")
    given = {name.removeprefix("online_"): value for name, value in given.items()}
    if given:
        given["init_from"] = os.path.expanduser(values.init_from)
    return Online(**given)


def starting_config(values: Any) -> Any:
    """The config to go on with; agent, dataset and options of the environment default in `values`.

    Raises:
        UsageError: there is no such run, it cannot go on, or a flag contradicts it.
    """
    path = os.path.expanduser(values.init_from)
    try:
        origin = experiments.load(path)
    except UsageError as error:
        raise UsageError(f"--init_from: {error}") from None
    if origin.agent not in AGENTS or not origin.dataset:
        raise UsageError(
            f"--init_from={path} holds a run of {origin.agent}; those that go on from a dataset by "
            f"acting are {', '.join(AGENTS)}."
        )
    if values["agent"].present and values.agent != origin.agent:
        raise UsageError(
            f"--agent={values.agent} cannot go on with what {origin.agent} has learned in {path}: "
            f"leave --agent out."
        )
    if values.preset is not None:
        raise UsageError(f"--preset changes nothing here: the config is that of {path}.")
    if not values.env:
        raise UsageError("--env is missing: with --init_from a policy goes on learning by acting.")
    values["agent"].value = origin.agent
    if values.dataset is None:
        values["dataset"].value = origin.dataset
    if values.env_options is None and values.env == origin.source.name:
        values["env_options"].value = json.dumps(dict(origin.source.options))
    return dataclasses.replace(origin.config, **AGENTS[origin.agent])


def loop(experiment: Experiment, inner: "offline.Config") -> "fine_tuning.Config":
    """The fine-tuning loop with the batches of the agent's own.

    Raises:
        ValueError: flags of other loops.
    """
    from rljax import rollout, sharding
    from rljax.loops import fine_tuning, off_policy

    if experiment.actors.kind is not ActorKind.NONE or experiment.num_seeds > 1 or experiment.vary:
        raise ValueError(
            "--actors, --num_seeds and --vary are for agents that learn from rollouts: with "
            "--init_from leave them out."
        )
    asked = experiment.online
    rows = asked.envs * asked.rollout_length
    room = asked.capacity or asked.steps + inner.num_steps * asked.envs
    online = off_policy.Config(
        total_steps=asked.steps,
        num_envs=asked.envs,
        rollout_length=asked.rollout_length,
        num_updates=asked.updates or rows,
        learning_starts=0,
        replay=off_policy.Replay(room, inner.batch_size, inner.discount, inner.num_steps),
        seed=experiment.seed,
        collector=rollout.Kind(experiment.collector.value),
        parallel=sharding.Parallel(experiment.parallel.value),
        num_devices=experiment.num_devices,
    )
    return fine_tuning.Config(
        online, asked.dataset_fraction, asked.return_floor, asked.floor_episodes, inner.change
    )


def open(experiment: Experiment) -> "fine_tuning.Source":
    """The environments and the dataset.

    Raises:
        ValueError: they cannot be opened, are not what the policy knows, or the dataset of the run
            that it comes from has changed since.
    """
    from launch import data
    from rljax import sources
    from rljax.loops import fine_tuning

    path = experiment.online.init_from
    known, env = data.spec(path), sources.open(experiment.source)
    if (known.parts, known.action, known.has_mask) != (
        env.spec.parts,
        env.spec.action,
        env.spec.has_mask,
    ):
        raise ValueError(
            f"{experiment.source.name} shows or takes something else than what the policy of "
            f"{path} knows, which has learned from {known.name}."
        )
    dataset = data.open(experiment)
    if experiment.dataset == experiments.load(path).dataset:
        data.check_same(dataset, pathlib.Path(path), "mix another with --dataset")
    return fine_tuning.Source(env, dataset)


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with the step that it starts from: when it is resumed, the same as before.

    Raises:
        UsageError: there is no checkpoint to start from, or it would be the workdir's own.
    """
    import jax

    from rljax import checkpoint

    online = experiment.online
    if not online.init_from or jax.process_count() > 1:  # which is refused
        return experiment
    workdir, origin = pathlib.Path(experiment.workdir), pathlib.Path(online.init_from)
    if workdir.absolute() == origin.absolute():
        raise UsageError("--workdir and --init_from must be two: nothing is learned over a run.")
    step = None
    if (workdir / experiments.CONFIG_FILE).exists():
        before = experiments.load(workdir).online
        step = before.init_step if before.init_from == online.init_from else None
    if step is None:
        with checkpoint.Manager(origin / "checkpoints") as checkpoints:
            if not checkpoints.steps:
                raise UsageError(f"--init_from={origin} has no checkpoint yet: train it first.")
            step = checkpoints.steps[-1]
    return dataclasses.replace(experiment, online=dataclasses.replace(online, init_step=step))


def check(experiment: Experiment, agent: "Agent") -> None:
    """Raises ValueError where fields of the config changed that cannot, or to no effect."""
    import jax
    import numpy as np

    origin = experiments.load(experiment.online.init_from)
    module, required = registry.agent_module(experiment.agent), AGENTS[experiment.agent]
    before = dataclasses.replace(origin.config, **required)

    def start(config: Any) -> Any:
        state = module.make(config, agent.spec).init(jax.random.key(0))
        return state._replace(schedules=())

    for field in dataclasses.fields(before):
        name, value = field.name, getattr(experiment.config, field.name)
        if value == getattr(before, name):
            continue
        if name == "total_updates":
            raise ValueError(
                "--config.total_updates is of learning from the dataset alone: with --init_from "
                "--online_steps and --online_updates say how long it goes on."
            )
        if name in _FIXED:
            raise ValueError(
                f"--config.{name} is what {experiment.online.init_from} has learned with: leave it "
                "out."
            )
        if name in required:
            raise ValueError(
                f"--config.{name}={value} cannot be with --init_from, where it is {required[name]}."
            )
        after = dataclasses.replace(before, **{name: value})
        if jax.eval_shape(lambda: start(before)) != jax.eval_shape(
            lambda after=after: start(after)
        ):
            raise ValueError(
                f"--config.{name}={value} does not fit what {experiment.online.init_from} has "
                f"learned with {getattr(before, name)}."
            )
        leaves = zip(jax.tree.leaves(start(before)), jax.tree.leaves(start(after)), strict=True)
        if not all(np.array_equal(x, y) for x, y in leaves):
            raise ValueError(
                f"--config.{name} says where learning starts, and with --init_from that is where "
                f"{experiment.online.init_from} ended: leave it out."
            )


def take_over(experiment: Experiment, state: "fine_tuning.State") -> "fine_tuning.State":
    """The state with what the run before has learned; hyper-parameters are those of the config.

    Raises:
        UsageError: its checkpoint is damaged, or gone.
    """
    import jax

    from launch import data
    from rljax import checkpoint

    path, step = experiment.online.init_from, experiment.online.init_step
    origin = experiments.load(path)
    agent = registry.agent_module(origin.agent).make(origin.config, data.spec(path))
    with checkpoint.Manager(pathlib.Path(path) / "checkpoints") as checkpoints:
        _, train = checkpoints.restore(lambda: agent.init(jax.random.key(0)), step, part="train")
    return state._replace(train=train._replace(schedules=state.train.schedules))


def has_stopped(loop_config: Any, state: Any) -> bool:
    """Whether the floor has ended the run."""
    from rljax.loops import fine_tuning

    tunes = isinstance(loop_config, fine_tuning.Config)
    return tunes and fine_tuning.is_under_floor(state, loop_config)


def sentence(experiment: Experiment, state: "fine_tuning.State", step: int) -> str:
    """Why exploration has stopped."""
    from rljax.loops import fine_tuning

    online = experiment.online
    mean = fine_tuning.recent_return(state, online.floor_episodes)
    return (
        f"stopped exploring at step {step:,}: the mean return of the last {online.floor_episodes} "
        f"episodes is {mean:,.1f}, under --return_floor={online.return_floor:,.1f}."
    )
