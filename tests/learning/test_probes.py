"""PPO on the probe environments: what each must learn is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo
from rljax.agent import Agent
from rljax.envs.base import JaxEnv
from rljax.loops import on_policy
from rljax.nn.policies import BoxPolicy
from rljax.types import Observation
from tests.learning import probes

GAMMA = 0.8
SIGNS = [[-1.0], [1.0]]


def config(num_updates: int = 60, **changes) -> ppo.Config:
    return ppo.Config(
        **{
            "total_steps": num_updates * 16 * 32,
            "num_envs": 32,
            "rollout_length": 16,
            "num_minibatches": 2,
            "learning_rate": 1e-2,
            "discount": GAMMA,
            "hidden_sizes": (16,),
            **changes,
        }
    )


def learn(agent: Agent, env: JaxEnv, config: ppo.Config):
    """The policy at the end."""
    loop = on_policy.Config(
        config.total_steps, config.num_envs, config.rollout_length, num_devices=1
    )
    for _, state, _ in on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0):
        pass
    return state.train.policy


def learned(env: JaxEnv, observations: list[list[float]], config: ppo.Config):
    """Greedy action, value, and the rest that `act` says of these observations."""
    agent = ppo.make(config, env.spec)
    policy = learn(agent, env, config)
    observation = Observation(jnp.array(observations))
    _, action, extras = agent.act(policy, (), observation, jax.random.key(0), True)
    return {"action": action, **extras}


@pytest.mark.parametrize(
    ("env", "observations", "values"),
    [
        (probes.constant(), [[1.0]], [1.0]),
        (probes.shown(), SIGNS, [-1.0, 1.0]),
        (probes.delayed(), [[0.0], [1.0]], [GAMMA, 1.0]),
        (probes.endless(max_steps=3), SIGNS, [-5.0, 5.0]),  # ±1 / (1 - 0.8)
    ],
    ids=lambda x: x.spec.name if isinstance(x, JaxEnv) else "",
)
def test_values_are_the_expected_discounted_returns(env, observations, values):
    got = learned(env, observations, config())
    np.testing.assert_allclose(got["value"], values, atol=0.05)


def test_the_policy_takes_the_better_arm():
    got = learned(probes.two_armed(), [[1.0]], config())
    assert got["action"] == 1
    assert got["probabilities"][0, 1] > 0.95
    np.testing.assert_allclose(got["value"], 1, atol=0.1)


def test_the_policy_matches_what_it_sees():
    got = learned(probes.matching(), SIGNS, config())
    np.testing.assert_array_equal(got["action"], [0, 1])
    assert got["probabilities"][0, 0] > 0.95
    assert got["probabilities"][1, 1] > 0.95
    np.testing.assert_allclose(got["value"], 1, atol=0.1)


@pytest.mark.parametrize("box_policy", BoxPolicy)
def test_a_policy_over_a_box_finds_the_best_action_for_what_it_sees(box_policy):
    got = learned(probes.tracking(), SIGNS, config(box_policy=box_policy))
    np.testing.assert_allclose(got["action"], [[-0.5], [0.5]], atol=0.1)
