"""DAgger's loop: who acts, who labels, what is kept, resume, devices, what is refused."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dagger as dagger_agent
from rljax import rollout, sharding, sources
from rljax.agent import Agent
from rljax.loops import dagger
from rljax.loops.iterations import State
from rljax.replay import memory
from rljax.types import Box, Discrete, EnvSpec

NUM_ENVS, LENGTH = 4, 12
CONFIG = dagger_agent.Config(
    num_rounds=3,
    num_envs=NUM_ENVS,
    rollout_length=LENGTH,
    num_updates=2,
    batch_size=8,
    hidden_sizes=(8,),
    learning_rate=1e-2,
)


def scripted(spec: EnvSpec, choose) -> Agent:
    """Takes `choose(features)`; its carry counts the steps of the episode."""

    def act(policy, carry, observation, key, greedy):
        del key
        assert greedy, "an expert that is asked is not to be drawn from"
        return carry + 1, choose(observation.features) + 0 * policy, {}

    def nothing(*_):
        raise AssertionError("an expert that is asked does not learn")

    return Agent(spec, nothing, lambda batch: jnp.zeros(batch, jnp.int32), act, nothing)


def leaning(features):
    """Pushes to where the pole falls."""
    return (features[..., 2] + 0.5 * features[..., 3] > 0).astype(jnp.int32)


def steep(features):
    """A torque that is often beyond the bounds of ±2."""
    return 5.0 * features[..., 1:2]


def lesson_of(name: str, num_envs=NUM_ENVS) -> dagger.Lesson:
    env = sources.open(sources.EnvSource(name, num_envs, seed=3))
    boxed = isinstance(env.spec.action, Box)
    if boxed:
        return dagger.Lesson(env, scripted(env.spec, steep), jnp.float32(0.0))
    return dagger.Lesson(env, scripted(env.spec, leaning), jnp.int32(0))


@functools.cache
def parts(name="rljax:cartpole", num_envs=NUM_ENVS) -> tuple[dagger.Lesson, Agent]:
    lesson = lesson_of(name, num_envs)
    return lesson, dagger_agent.make(CONFIG, lesson.spec)


def loop_of(**changes: Any) -> dagger.Config:
    loop = dagger_agent.loop(CONFIG)
    return dataclasses.replace(loop, **({"seed": 5, "num_devices": 1} | changes))


def copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


@functools.cache
def straight() -> tuple[list[int], list[State], list[dict]]:
    """An undisturbed run of three rounds; copies of its states."""
    lesson, agent = parts()
    loop = loop_of()
    steps, states, metrics = [], [], []
    for step, state, measured in dagger.run(
        agent, lesson, dagger.init(agent, lesson, loop), loop, 0
    ):
        steps.append(step)
        states.append(copied(state))
        metrics.append(measured)
    return steps, states, metrics


@functools.cache
def acted(beta, name="rljax:cartpole", rows=64):
    """Valid rows of a mixture: what was seen, done, labeled, by whom; and what each would do."""
    lesson, agent = parts(name, 16)
    collector = rollout.make(
        dagger.mixture(lesson.expert, agent), lesson.env, 16, rows, rollout.Kind.AUTO
    )
    key = jax.random.key(0)
    learner = agent.init(key).policy
    policy = dagger.Mixed(jnp.float32(beta), lesson.policy, learner)
    _, trajectory, _ = collector.collect(policy, collector.init(key), key)
    rows = trajectory.transitions
    _, own, _ = agent.act(learner, (), rows.observation, key, True)
    met = np.asarray(rows.valid)
    expert = np.asarray((steep if "endulum" in name else leaning)(rows.observation.features))
    label, by_expert = rows.extras[dagger.LABEL], rows.extras[dagger.BY_EXPERT]
    return [np.asarray(x)[met] for x in (rows.action, label, by_expert, own, expert)]


def test_the_expert_always_acts_at_1_never_at_0_and_half_the_steps_at_a_half():
    for beta in (0.0, 1.0):
        action, label, by_expert, own, _ = acted(beta)
        assert (by_expert == bool(beta)).all()
        np.testing.assert_array_equal(action, label if beta else own)
    action, label, by_expert, own, _ = acted(0.5)
    deviation = 0.5 / np.sqrt(len(by_expert))
    assert abs(by_expert.mean() - 0.5) < 5 * deviation
    np.testing.assert_array_equal(action, np.where(by_expert, label, own))
    assert (label != own).any()  # else nothing was told apart


def test_who_acts_is_drawn_anew_in_every_step_of_every_environment():
    lesson, agent = parts(num_envs=16)
    mixture = dagger.mixture(lesson.expert, agent)
    policy = dagger.Mixed(jnp.float32(0.5), lesson.policy, agent.init(jax.random.key(0)).policy)
    act = jax.jit(
        lambda key: mixture.act(
            policy, mixture.initial_carry(400), lesson.spec.example((400,)), key, False
        )
    )
    one, two = (act(jax.random.key(n))[2][dagger.BY_EXPERT] for n in (1, 2))
    assert abs((one != two).mean() - 0.5) < 0.125  # five deviations
    assert abs((one[1:] != one[:-1]).mean() - 0.5) < 0.125


def test_labels_are_the_experts_whoever_acts():
    for beta in (0.0, 0.5, 1.0):
        _, label, _, _, expert = acted(beta)
        np.testing.assert_array_equal(label, expert)


def test_labels_of_boxes_are_what_the_environment_would_take():
    _, label, by_expert, _, expert = acted(0.0, "rljax:pendulum")
    assert not by_expert.any()
    assert (abs(expert) > 2).any()
    np.testing.assert_array_equal(label, np.clip(expert, -2, 2))


def test_an_expert_that_remembers_is_started_anew_with_every_episode():
    lesson, agent = parts()
    collector = rollout.make(
        dagger.mixture(lesson.expert, agent), lesson.env, NUM_ENVS, 64, rollout.Kind.AUTO
    )
    key = jax.random.key(0)
    policy = dagger.Mixed(jnp.float32(0.0), lesson.policy, agent.init(key).policy)
    state, _, _ = collector.collect(policy, collector.init(key), key)
    assert (state.episode_length < 64).all()  # every environment's episode ended once
    expected = np.where(state.ended, 0, state.episode_length)
    np.testing.assert_array_equal(state.carry[0], expected)


def test_rows_are_kept_with_the_experts_actions_and_nothing_beside():
    _, states, _ = straight()
    rows = states[-1].replay.rows
    assert rows.extras == {}
    met = np.asarray(rows.valid)
    np.testing.assert_array_equal(rows.action[met], leaning(rows.observation.features)[met])


def test_the_aggregate_holds_the_rows_of_every_round_once():
    steps, states, metrics = straight()
    assert steps == [48, 96, 144]
    assert [measured["replay/size"] for measured in metrics] == [48, 96, 144]
    whole = states[-1].replay
    assert whole.rows.reward.shape == (3 * LENGTH, NUM_ENVS)  # no more room than that
    for number, state in enumerate(states, start=1):
        kept = number * LENGTH
        assert int(state.replay.size) == kept
        jax.tree.map(
            lambda now, then, kept=kept: np.testing.assert_array_equal(now[:kept], then[:kept]),
            whole.rows,
            state.replay.rows,
        )
        assert not np.asarray(state.replay.rows.valid)[kept:].any()  # room that is left
    seen = np.asarray(whole.rows.observation.features)[np.asarray(whole.rows.valid)]
    assert len(np.unique(seen, axis=0)) == len(seen)


def test_every_step_of_the_aggregate_is_drawn_and_no_other_row():
    _, states, _ = straight()
    replay = states[-1].replay
    sample = jax.jit(jax.vmap(dagger.aggregate(loop_of()).sample, in_axes=(None, 0)))(
        replay, jax.random.split(jax.random.key(0), 400)
    )
    assert (sample.weight == 1).all()
    counts = np.bincount(np.asarray(sample.index).reshape(-1), minlength=144).reshape(-1, NUM_ENVS)
    np.testing.assert_array_equal(counts > 0, replay.rows.valid)  # the newest rows among them
    place, env = np.divmod(np.asarray(sample.index), NUM_ENVS)
    np.testing.assert_array_equal(sample.action, np.asarray(replay.rows.action)[place, env])


def test_metrics_tell_who_acted_and_how_often_they_agreed():
    _, _, metrics = straight()
    assert [measured["expert/beta"] for measured in metrics] == [1.0, 0.0, 0.0]
    assert [measured["expert/acted"] for measured in metrics] == [1.0, 0.0, 0.0]
    assert "expert/agreement" not in metrics[0]  # nobody else acted
    assert 0 < metrics[1]["expert/agreement"] < 1
    assert all(np.isfinite(measured["loss/policy"]) for measured in metrics)


def test_a_resumed_run_is_an_undisturbed_one():
    lesson, agent = parts()
    steps, states, _ = straight()
    loop = loop_of()
    resumed = list(dagger.run(agent, lesson, copied(states[0]), loop, steps[0]))
    assert [step for step, _, _ in resumed] == steps[1:]

    def data(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(data(a), data(b)), resumed[-1][1], states[-1]
    )


def test_two_devices_learn_what_one_does():
    lesson, agent = parts()
    loop = loop_of(num_devices=2)
    *_, (_, state, _) = dagger.run(agent, lesson, dagger.init(agent, lesson, loop), loop, 0)
    one = straight()[1][-1].train.params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        sharding.local(state.train.params),
        one,
    )


def test_simulators_on_the_host_are_taught_too():
    lesson, agent = parts("gymnasium:CartPole-v1")
    loop = loop_of(betas=(1.0, 0.0))
    *_, (step, state, metrics) = dagger.run(
        agent, lesson, dagger.init(agent, lesson, loop), loop, 0
    )
    lesson.env.close()
    assert (step, metrics["replay/size"]) == (96, 96)
    assert state.rollout is None
    rows = state.replay.rows
    met = np.asarray(rows.valid)
    np.testing.assert_array_equal(rows.action[met], leaning(rows.observation.features)[met])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation_shape": (3,)}, r"observations .* are float32 \(3,\), not float32 \(4,\)"),
        ({"action": Discrete(3)}, r"actions .*Discrete.*3.*, not Discrete.*2"),
        ({"has_mask": True}, "masks .* are given, not none"),
    ],
)
def test_an_expert_of_another_task_is_refused_in_a_sentence(changes, words):
    lesson, _ = parts()
    spec = dataclasses.replace(lesson.spec, name="another", **changes)
    other = lesson._replace(expert=lesson.expert._replace(spec=spec))
    with pytest.raises(ValueError, match="the " + words):
        dagger.check(other, loop_of())


def test_sizes_that_do_not_fit_are_refused_in_a_sentence(monkeypatch):
    lesson, _ = parts()
    with pytest.raises(ValueError, match="batch_size=7 cannot be split over 2 devices"):
        dagger.check(lesson, loop_of(batch_size=7, num_devices=2))
    with pytest.raises(ValueError, match="--collector=host needs a simulator"):
        dagger.check(lesson, loop_of(collector=rollout.Kind.HOST))
    monkeypatch.setattr(memory, "available", lambda device: 100)
    with pytest.raises(ValueError, match="a replay of 144 rows takes"):
        dagger.check(lesson, loop_of())
