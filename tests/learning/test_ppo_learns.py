"""PPO solves what it should, to published scores and known optima, on three seeds each.

No threshold may be moved to where a seed happens to land: if one in three fails, find the cause.
"""

import dataclasses
import math
import statistics
from typing import Any

import jax
import numpy as np
import pytest

from agents import ppo
from launch.presets.ppo import PRESETS
from rljax import evaluation, sources
from rljax.agent import Agent
from rljax.envs import masked_bandit
from rljax.loops import on_policy
from rljax.nn.policies import BoxPolicy
from rljax.types import Metrics

SEEDS = (0, 1, 2)
SMALL = ppo.Config(  # for tasks of a few steps
    total_steps=300_000,
    num_envs=64,
    rollout_length=32,
    learning_rate=3e-3,
    entropy_cost=0.01,
)


def train(name: str, config: ppo.Config, seed: int) -> tuple[Agent, Any, list[Metrics]]:
    """The agent, the policy that it ends with, and the metrics of every update."""
    env = sources.open(sources.EnvSource(name, config.num_envs, seed))
    agent = ppo.make(config, env.spec)
    loop = dataclasses.replace(ppo.loop(config), seed=seed, num_devices=1)
    updates = list(on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0))
    _, state, _ = updates[-1]
    return agent, state.train.policy, [metrics for _, _, metrics in updates]


def play(agent: Agent, policy: Any, episodes: int, *, greedy: bool = True) -> np.ndarray:
    """Returns of that many episodes in other environments of the same task, up to 200 at once."""
    num_envs = min(episodes, 200)
    env = sources.open(sources.EnvSource(agent.spec.name, num_envs, seed=1_000))
    player = evaluation.player(agent, env, num_envs, greedy=greedy)
    return player(policy, episodes, jax.random.key(1_000)).returns


def pendulum_score(name: str, config: ppo.Config) -> float:
    """Mean return of 200 greedy episodes, the median over the seeds.

    Returns depend on where the pendulum starts: they deviate by 120, so that the mean of only 20
    would be uncertain by 27.
    """
    return statistics.median(play(*train(name, config, seed)[:2], 200).mean() for seed in SEEDS)


def test_masked_bandit_to_its_optimum_and_never_a_forbidden_action(monkeypatch):
    monkeypatch.setattr(masked_bandit, "PENALTY", -math.inf)  # shows in any mean it enters
    agent, policy, metrics = train(
        "rljax:masked_bandit", dataclasses.replace(SMALL, total_steps=100_000), seed=0
    )
    assert all(math.isfinite(m["episode/return_mean"]) for m in metrics)
    greedy = play(agent, policy, 2_000)
    assert greedy.mean() == pytest.approx(0.75, abs=0.05)  # E[max of 3 uniform numbers] = 3/4
    assert np.isfinite(greedy).all()
    assert np.isfinite(play(agent, policy, 2_000, greedy=False)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rljax:cartpole", "CartPole-v1"])
def test_cartpole_is_solved_by_its_preset(name, seed):
    agent, policy, _ = train(name, PRESETS[name].config, seed)
    assert play(agent, policy, 20).mean() >= 475  # where Gymnasium calls CartPole-v1 solved


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_catch_is_caught(seed):
    agent, policy, _ = train("rljax:catch", SMALL, seed)
    assert play(agent, policy, 200).mean() >= 0.95  # at most 1: one column of five missed gives 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_corridor_is_left_on_the_shortest_way(seed):
    agent, policy, _ = train("rljax:corridor", SMALL, seed)
    np.testing.assert_allclose(play(agent, policy, 100), 0.5, atol=1e-5)  # 1 - 0.1 · 5 steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rljax:pendulum", "Pendulum-v1"])
def test_pendulum_swings_up_by_its_preset(name):
    assert pendulum_score(name, PRESETS[name].config) >= -250  # published: -172


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"box_policy": BoxPolicy.TANH_NORMAL},
        {"reward_scale": ppo.RewardScale.VALUE},
        {"reward_scale": ppo.RewardScale.REWARD},
    ],
    ids=lambda changes: str(*changes.values()),
)
def test_pendulum_swings_up_with(changes):
    config = dataclasses.replace(PRESETS["rljax:pendulum"].config, **changes)
    assert pendulum_score("rljax:pendulum", config) >= -250
