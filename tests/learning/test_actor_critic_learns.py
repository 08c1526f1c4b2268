"""IMPALA and A2C solve CartPole by their presets, in step with their actors and behind them."""

import dataclasses
from typing import Any

import jax
import pytest

from launch import presets
from rljax import evaluation, registry, rollout, sources
from rljax.actors.threads import Threads
from rljax.agent import Agent
from rljax.loops import actor_learner, on_policy

SEEDS = (0, 1)


def made(agent: str, name: str, seed: int) -> tuple[Agent, Any, sources.EnvSource, Any]:
    """The agent of a preset, its config, its source and the loop's config."""
    module, config = registry.agent_module(agent), presets.load(agent)[name].config
    source = sources.EnvSource(name, config.num_envs, seed)
    loop = dataclasses.replace(module.loop(config), seed=seed, num_devices=1)
    spec = sources.open(dataclasses.replace(source, num_envs=1)).spec
    return module.make(config, spec), config, source, loop


def score(agent: Agent, policy: Any) -> float:
    """Mean return of 100 greedy episodes in environments that training did not see."""
    env = sources.open(sources.EnvSource(agent.spec.name, 50, seed=1_000))
    play = evaluation.player(agent, env, 50, greedy=True)
    return float(play(policy, 100, jax.random.key(1_000)).returns.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rljax:cartpole", "CartPole-v1"])
@pytest.mark.parametrize("agent_name", ["impala", "a2c"])
def test_cartpole_is_learned(agent_name, name, seed):
    agent, _, source, loop = made(agent_name, name, seed)
    env = sources.open(source)
    *_, (_, state, _) = on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0)
    assert score(agent, state.train.policy) > 400  # at most 500


@pytest.mark.slow
def test_impala_learns_from_two_actors_that_are_an_update_behind():
    agent, _, source, inner = made("impala", "CartPole-v1", 0)
    inner = dataclasses.replace(inner, collector=rollout.Kind.HOST)
    loop = actor_learner.Config(inner, Threads(), num_actors=2, staleness=1)
    pools = sources.open_pools(source, 2)
    start = actor_learner.init(agent, pools, loop)
    *_, (_, state, metrics) = actor_learner.run(agent, pools, start, loop, 0)
    assert metrics["actor/staleness"] == 1
    assert score(agent, state.train.policy) > 400
