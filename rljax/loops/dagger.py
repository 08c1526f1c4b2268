"""Imitate an expert where the learner itself goes: DAgger (Ross et al. 2011, arXiv:1011.0686).

Round i has three parts (their algorithm 3.1): a mixture of both policies collects rows; the expert
says of every state that was met what it would have done there; and the learner goes on cloning from
all rows of all rounds. Which of the two acts is drawn anew in every step, the expert with
probability β_i; both act greedily. An episode that is running where a round ends goes on in the
next one. The learner starts a round from what it was, not from scratch.

The aggregate, a replay that has room for all rounds, is part of the state: a resumed run goes on
with every label that it had.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from rljax import faults, rollout, sharding
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import iterations
from rljax.loops.episodes import Window
from rljax.loops.iterations import State
from rljax.loops.on_policy import keys
from rljax.replay import base, device, memory
from rljax.replay.base import Buffer
from rljax.types import Box, EnvSpec, Metrics, Observation, Transition

LABEL = "label"  # what the expert would have done, `[T, B, ...]`
BY_EXPERT = "by_expert"  # bool `[T, B]`: whether the expert acted


@dataclasses.dataclass(frozen=True)
class Config:
    """How many rounds of what; steps are rows over all environments."""

    betas: tuple[float, ...]  # of each round: how likely it is that the expert acts, in [0, 1]
    num_envs: int
    rollout_length: int  # rows of each environment in a round
    num_updates: int  # after every round
    batch_size: int  # rows of an update, drawn with replacement from all rounds
    seed: int = 0
    collector: rollout.Kind = rollout.Kind.AUTO
    parallel: sharding.Parallel = sharding.Parallel.SHARD_MAP
    num_devices: int = 0  # 0: all of this process; each learns from its share of a batch

    @property
    def rows(self) -> int:
        """Rows of one round."""
        return self.num_envs * self.rollout_length

    @property
    def last_step(self) -> int:
        """Where training ends."""
        return len(self.betas) * self.rows


class Lesson(NamedTuple):
    """What a learner needs: a task, and whom to ask."""

    env: HostEnv | JaxEnv
    expert: Agent
    policy: Any  # of the expert

    @property
    def spec(self) -> EnvSpec:
        """Of the task."""
        return self.env.spec


class Mixed(NamedTuple):
    """The policy of a `mixture`."""

    beta: Float[Array, ""]
    expert: Any
    learner: Any


def mixture(expert: Agent, learner: Agent) -> Agent:
    """Acts as the expert in a share β of all steps, else as the learner; both greedily.

    Its extras hold what the expert would have done, and whether it did. It acts by a `Mixed`
    policy; it does not learn.
    """
    action_spec = learner.spec.action

    def initial_carry(batch: int) -> tuple[Any, Any]:
        return expert.initial_carry(batch), learner.initial_carry(batch)

    def act(
        policy: Mixed, carry: tuple[Any, Any], observation: Observation, key: Array, greedy: bool
    ) -> tuple[tuple[Any, Any], Array, dict[str, Array]]:
        del greedy  # always
        asked, label, _ = expert.act(policy.expert, carry[0], observation, key, True)
        own, action, _ = learner.act(policy.learner, carry[1], observation, key, True)
        if isinstance(action_spec, Box):  # as environments take it
            low, high = (jnp.float32(x)[None] for x in (action_spec.low, action_spec.high))
            label = jnp.clip(label, low, high)
        by_expert = jax.random.uniform(key, label.shape[:1]) < policy.beta
        action = jnp.where(_like(by_expert, label), label, action)
        return (asked, own), action, {LABEL: label, BY_EXPERT: by_expert}

    return learner._replace(initial_carry=initial_carry, act=act, stores=(LABEL, BY_EXPERT))


def labeled(rows: Transition) -> Transition:
    """Rows of a `mixture` as the aggregate keeps them: the expert's actions, whoever acted."""
    return rows._replace(action=rows.extras[LABEL], extras={})


def aggregate(config: Config) -> Buffer:
    """Room for the rows of all rounds; every step among them is as likely to be drawn."""
    return device.make(config.last_step, config.num_envs, config.batch_size, 1.0, num_steps=0)


def check(lesson: Lesson, config: Config) -> None:
    """Raises ValueError where task, expert, devices and memory do not fit together."""
    _check_sizes(lesson, config)
    place = sharding.mesh(config.num_devices).devices.flat[0]
    memory.check_on(place, config.last_step, memory.row_bytes(memory.row_of(lesson.spec)))


def init(agent: Agent, lesson: Lesson, config: Config) -> State:
    """The state before the first round, with nothing in the aggregate."""
    train_key, rollout_key = keys(config.seed, -1)
    running = None
    if isinstance(lesson.env, JaxEnv):
        running = _collector(agent, lesson, config).init(rollout_key)
    replay = jax.jit(lambda: aggregate(config).init(base.row_of(agent, config.num_envs)))()
    return State(jax.jit(agent.init)(train_key), replay, running)


def run(
    agent: Agent, lesson: Lesson, state: State, config: Config, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    """Learns from the round that `first_step` begins; yields once a round.

    The arrays of a yielded state are donated to the next round: save or copy them before asking for
    it. Raises what `check` raises, at once; not for memory, as the aggregate is there.
    """
    _check_sizes(lesson, config)
    mesh = sharding.mesh(config.num_devices)
    return _rounds(agent, lesson, state, config, mesh, first_step)


def _rounds(
    agent: Agent, lesson: Lesson, state: State, config: Config, mesh: Mesh, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    collector, buffer = _collector(agent, lesson, config), aggregate(config)
    learn = iterations.learner_over(mesh, config.parallel, agent, buffer, config.num_updates)
    train, running = sharding.replicate(state.train, mesh), state.rollout
    replay = sharding.on_first(state.replay, mesh)
    if running is None:
        running = collector.init(keys(config.seed, -1)[1])
    window = Window()
    for number in range(first_step // config.rows, len(config.betas)):
        collect_key, learn_key = keys(config.seed, number)
        mixed = Mixed(
            jnp.float32(config.betas[number]), lesson.policy, sharding.local(train.policy)
        )
        running, trajectory, episodes = collector.collect(mixed, running, collect_key)
        rows = jax.block_until_ready(trajectory.transitions)
        (train, replay), (metrics, fault) = learn((train, replay), labeled(rows), learn_key)
        # Once a round: with more in flight, emulated devices may deadlock.
        metrics, fault = jax.device_get((metrics, fault))
        faults.check(fault, lesson.spec.name, number * config.rows, config.num_envs)
        met = np.asarray(rows.valid)
        measured = metrics | window.add(episodes) | _compared(rows, lesson.spec)
        measured["expert/beta"] = config.betas[number]
        measured["expert/acted"] = np.asarray(rows.extras[BY_EXPERT])[met].mean()
        measured["replay/size"] = np.asarray(buffer.size(replay))
        saved = State(train, replay, running if collector.resumable else None)
        yield (number + 1) * config.rows, saved, measured


def _compared(rows: Transition, spec: EnvSpec) -> dict[str, Any]:
    """How near the learner was to what the expert would have done, in the steps that it took."""
    took = np.asarray(rows.valid & ~rows.extras[BY_EXPERT])
    if not took.any():
        return {}
    action, label = (np.asarray(x)[took] for x in (rows.action, rows.extras[LABEL]))
    if isinstance(spec.action, Box):
        return {"expert/distance": np.abs(action - label).mean()}  # in units of the action
    return {"expert/agreement": (action == label).reshape(len(action), -1).all(axis=1).mean()}


def _collector(agent: Agent, lesson: Lesson, config: Config) -> rollout.Collector:
    mixed = mixture(lesson.expert, agent)
    return rollout.make(mixed, lesson.env, config.num_envs, config.rollout_length, config.collector)


def _check_sizes(lesson: Lesson, config: Config) -> None:
    sharding.check_split("batch_size", config.batch_size, config.num_devices)
    ours, theirs = lesson.spec, lesson.expert.spec
    for what, here, there in zip(_SPACES, _spaces(ours), _spaces(theirs), strict=True):
        if here != there:
            raise ValueError(
                f"the expert cannot say what to do in {ours.name}: the {what} of {theirs.name}, "
                f"which it knows, are {there}, not {here}; give an expert of the same task."
            )
    rollout.resolve(lesson.env, config.collector)


_SPACES = ("observations", "masks", "actions")


def _spaces(spec: EnvSpec) -> tuple[str, str, str]:
    """What must be alike, in words."""
    names = {part: f"{part.name} " if spec.named_parts else "" for part in spec.parts}
    seen = ", ".join(f"{name}{part.dtype} {part.shape}" for part, name in names.items())
    return seen, "given" if spec.has_mask else "none", str(spec.action)


def _like(share: Bool[Array, " B"], x: Array) -> Array:
    """`[B]` with axes behind it, as many as `x` `[B, ...]` has."""
    return share.reshape(share.shape + (1,) * (x.ndim - 1))
