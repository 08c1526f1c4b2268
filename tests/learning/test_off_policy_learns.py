"""DQN and SAC solve what they should, on two seeds each.

No threshold may be moved to where a seed happens to land: if one fails, find the cause.
"""

import dataclasses
from typing import Any

import jax
import pytest

from agents import dqn, sac
from launch.presets.dqn import PRESETS as DQN_PRESETS
from launch.presets.sac import PRESETS as SAC_PRESETS
from rljax import evaluation, registry, sources
from rljax.loops import off_policy

SEEDS = (0, 1)
CATCH = dqn.Config(
    total_steps=20_000,
    num_envs=8,
    rollout_length=4,
    num_updates=16,  # one for 2 rows
    learning_starts=1_000,
    replay_capacity=20_000,
    learning_rate=1e-3,
    target_period=100,
    exploration_fraction=0.5,
    hidden_sizes=(64, 64),
)
C51 = {"num_atoms": 51, "value_min": -2.0, "value_max": 2.0}  # returns of catch are ±1


def score(name: str, agent_name: str, config: Any, seed: int, episodes: int = 50) -> float:
    """Mean return of greedy episodes of the policy that a run ends with."""
    module = registry.agent_module(agent_name)
    env = sources.open(sources.EnvSource(name, config.num_envs, seed))
    agent = module.make(config, env.spec)
    loop = dataclasses.replace(module.loop(config), seed=seed, num_devices=1)
    *_, (_, state, _) = off_policy.run(agent, env, off_policy.init(agent, env, loop), loop, 0)
    test = sources.open(sources.EnvSource(name, episodes, seed=1_000))
    player = evaluation.player(agent, test, episodes, greedy=True)
    return float(player(state.train.policy, episodes, jax.random.key(1_000)).returns.mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rljax:cartpole", "CartPole-v1"])
def test_dqn_balances_the_pole(name, seed):
    assert score(name, "dqn", DQN_PRESETS[name].config, seed) > 450  # at most 500


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rljax:pendulum", "Pendulum-v1"])
def test_sac_swings_the_pendulum_up(name, seed):
    # published: -157; starts deviate by 120, so that the mean of 200 is uncertain by 9
    assert score(name, "sac", SAC_PRESETS[name].config, seed, episodes=200) > -200


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_discrete_sac_balances_the_pole(seed):
    assert score("rljax:cartpole", "sac", SAC_PRESETS["rljax:cartpole"].config, seed) > 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"double": False},
        {"dueling": True},
        {"num_steps": 3},
        {"prioritized": True},
        C51,
        {**C51, "prioritized": True, "dueling": True, "num_steps": 3},  # Rainbow, but for noise
    ],
    ids=["double", "single", "dueling", "three_steps", "prioritized", "c51", "all"],
)
def test_every_kind_of_dqn_catches(changes):
    config = dataclasses.replace(CATCH, **changes)
    assert score("rljax:catch", "dqn", config, seed=0, episodes=200) >= 0.95  # at most 1


@pytest.mark.slow
def test_discrete_sac_catches():
    config = sac.Config(
        total_steps=20_000,
        num_envs=8,
        rollout_length=4,
        num_updates=16,
        learning_starts=1_000,
        replay_capacity=20_000,
        batch_size=64,
        learning_rate=1e-3,
        target_entropy_fraction=0.2,
        hidden_sizes=(64, 64),
    )
    assert score("rljax:catch", "sac", config, seed=0, episodes=200) >= 0.95
