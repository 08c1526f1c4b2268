"""DAgger balances the pole, with fewer labels than a clone of the expert's own steps needs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dagger as dagger_agent
from rljax import evaluation, sources
from rljax.agent import Agent
from rljax.loops import dagger

WEIGHTS = (0.1, 0.3, 3.0, 1.0)  # of position, angle and their velocities: pushes where it falls


def _act(policy, carry, observation, key, greedy):
    del key, greedy
    return carry, (observation.features @ policy > 0).astype(jnp.int32), {}


@functools.cache
def _task() -> dagger.Lesson:
    env = sources.open(sources.EnvSource("rljax:cartpole", 1))
    nothing: Any = None
    expert = Agent(env.spec, nothing, lambda batch: (), _act, nothing)
    return dagger.Lesson(env, expert, jnp.array(WEIGHTS))


@functools.cache
def _learner(config) -> tuple[Agent, Any]:
    agent = dagger_agent.make(config, _task().spec)
    return agent, evaluation.player(agent, _task().env, 50, greedy=True)


def score(config, seed: int, betas: tuple[float, ...]) -> float:
    """Mean return of 50 greedy episodes of what is learned with these β."""
    agent, play = _learner(config)
    loop = dataclasses.replace(dagger_agent.loop(config), seed=seed, betas=betas, num_devices=1)
    state = dagger.init(agent, _task(), loop)
    *_, (_, state, _) = dagger.run(agent, _task(), state, loop, 0)
    return float(play(state.train.policy, 50, jax.random.key(1_000)).returns.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pole_is_balanced(seed):
    config = dagger_agent.Config(
        num_rounds=10,
        num_envs=4,
        rollout_length=16,  # 640 labels in all
        num_updates=200,
        batch_size=64,
        hidden_sizes=(64, 64),
    )
    assert score(config, seed, dagger_agent.betas(config)) > 475


@pytest.mark.slow
def test_labels_of_its_own_states_are_worth_more_than_those_of_the_experts():
    config = dagger_agent.Config(
        num_rounds=10,
        num_envs=2,
        rollout_length=8,  # 160 labels in all: few enough for both to fail at times
        num_updates=100,
        batch_size=64,
        hidden_sizes=(64, 64),
    )
    own, experts = (
        np.mean([score(config, seed, betas) for seed in range(6)])
        for betas in (dagger_agent.betas(config), (1.0,) * 10)
    )
    assert own > experts
