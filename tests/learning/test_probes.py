"""PPO on the probe environments: what each must learn is known in closed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from agents import ppo
from rljax.agent import Agent
from rljax.envs.base import JaxEnv
from rljax.loops import on_policy
from rljax.nn.policies import BoxPolicy
from rljax.types import Observation
from tests.learning import probes

GAMMA = 0.8
SIGNS = [[-1.0], [1.0]]
CONFIG = ppo.Config(
    total_steps=40 * 32 * 16,
    num_envs=32,
    rollout_length=16,
    num_minibatches=2,
    learning_rate=1e-2,
    discount=GAMMA,
    gae_lambda=0.95,
    hidden_sizes=(16,),
)


def make(env: JaxEnv, box_policy: BoxPolicy = BoxPolicy.NORMAL) -> Agent:
    return ppo.make(dataclasses.replace(CONFIG, box_policy=box_policy), env.spec)


def learned(agent: Agent, env: JaxEnv, observations: list[list[float]]) -> dict[str, Array]:
    """What the trained policy says of these observations: its greedy action, V, and the rest."""
    loop = dataclasses.replace(ppo.loop(CONFIG), num_devices=1)
    *_, (_, state, _) = on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0)
    observation = Observation(jnp.array(observations))
    _, action, extras = agent.act(state.train.policy, (), observation, jax.random.key(0), True)
    return {"action": action, **extras}


@pytest.mark.parametrize(
    ("env", "observations", "values"),
    [
        pytest.param(probes.constant(), [[1.0]], [1.0], id="constant"),
        pytest.param(probes.shown(), SIGNS, [-1.0, 1.0], id="shown"),
        pytest.param(probes.delayed(), [[0.0], [1.0]], [GAMMA, 1.0], id="delayed"),
        pytest.param(probes.endless(3), SIGNS, [-5.0, 5.0], id="endless"),  # ±1 / (1 - 0.8)
    ],
)
def test_values_are_the_expected_discounted_returns(env, observations, values):
    got = learned(make(env), env, observations)
    np.testing.assert_allclose(got["value"], values, atol=0.02)


def test_a_time_limit_taken_for_an_end_would_show():
    env = probes.endless(max_steps=3)
    agent = make(env)

    def update(state: Any, batch: Any, key: Array) -> Any:
        rows = batch.transitions
        goes_on = jnp.concatenate([rows.valid[1:], jnp.ones_like(rows.valid[:1])])
        rows = rows._replace(discount=rows.discount * goes_on)  # the `1 - done` of many a learner
        return agent.update(state, batch._replace(transitions=rows), key)

    # V of the sign +1 is the mean target of a limit's three rows, from its last one backwards:
    #   G₁ = 1        G₂ = 1 + γ(0.05 V + 0.95 G₁) = 1.76 + 0.04 V
    #   G₃ = 1 + γ(0.05 V + 0.95 G₂) = 2.3376 + 0.0704 V
    # so V = (5.0976 + 0.1104 V) / 3 = 5.0976 / 2.8896, a third of what it should be.
    got = learned(agent._replace(update=update), env, SIGNS)
    np.testing.assert_allclose(got["value"], [-1.764, 1.764], atol=0.02)


def test_the_policy_takes_the_better_arm():
    env = probes.two_armed()
    got = learned(make(env), env, [[1.0]])
    assert got["action"] == 1
    assert got["probabilities"][0, 1] > 0.95
    np.testing.assert_allclose(got["value"], 1, atol=0.1)


def test_the_policy_matches_what_it_sees():
    env = probes.matching()
    got = learned(make(env), env, SIGNS)
    np.testing.assert_array_equal(got["action"], [0, 1])
    assert got["probabilities"][0, 0] > 0.95
    assert got["probabilities"][1, 1] > 0.95
    np.testing.assert_allclose(got["value"], 1, atol=0.1)


@pytest.mark.parametrize("box_policy", BoxPolicy)
def test_a_policy_over_a_box_finds_the_best_action_for_what_it_sees(box_policy):
    env = probes.tracking()
    got = learned(make(env, box_policy), env, SIGNS)
    np.testing.assert_allclose(got["action"], [[-0.5], [0.5]], atol=0.1)
