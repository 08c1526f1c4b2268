import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo

OLD = jnp.log(jnp.array([0.5, 0.25, 0.5, 0.25]))
RATIO = jnp.array([1.5, 1.5, 0.5, 0.5])
ADVANTAGE = jnp.array([2.0, -2.0, 2.0, -2.0])


def test_policy_loss_by_hand():
    loss = ppo.policy_loss(OLD + jnp.log(RATIO), OLD, ADVANTAGE, 0.2)
    # -min(ρA, clip(ρ)A): -min(3, 2.4), -min(-3, -2.4), -min(1, 1.6), -min(-1, -1.6)
    np.testing.assert_allclose(loss, [-2.4, 3.0, -1.0, 1.6], rtol=1e-6)


def test_the_gradient_at_ratio_1_is_the_policy_gradient():
    logits = jnp.array([0.3, -0.2, 0.1])
    action = jnp.array([0, 2, 1, 0])

    def log_prob(logits):
        return jax.nn.log_softmax(logits)[action]

    old = log_prob(logits)
    ours = jax.grad(lambda x: ppo.policy_loss(log_prob(x), old, ADVANTAGE, 0.2).sum())(logits)
    reinforce = jax.grad(lambda x: -(ADVANTAGE * log_prob(x)).sum())(logits)
    assert np.abs(reinforce).max() > 0.1
    np.testing.assert_allclose(ours, reinforce, rtol=1e-6)


def test_the_gradient_is_zero_exactly_where_the_clip_binds():
    slope = jax.grad(lambda x: ppo.policy_loss(x, OLD, ADVANTAGE, 0.2).sum())
    gradient = slope(OLD + jnp.log(RATIO))
    # ratio > 1+ε with A > 0 and ratio < 1-ε with A < 0 bind; on the other sides it is -ρA
    np.testing.assert_allclose(gradient, [0.0, 3.0, -1.0, 0.0], rtol=1e-6)
    assert gradient[0] == 0
    assert gradient[3] == 0


@pytest.mark.parametrize("argument", [1, 2], ids=["old_log_prob", "advantage"])
def test_policy_loss_sends_its_gradient_into_the_log_prob_only(argument):
    new = OLD + 0.05
    gradients = jax.grad(lambda *x: ppo.policy_loss(*x, 0.2).sum(), argnums=(0, argument))
    used, stopped = gradients(new, OLD, ADVANTAGE)
    assert used.all()
    assert not stopped.any()


def test_policy_loss_refuses_a_column_of_advantages():
    with pytest.raises(TypeError):
        ppo.policy_loss(OLD, OLD, ADVANTAGE[:, None], 0.2)


def test_value_loss_by_hand():
    value, old, target = jnp.array([3.0, 1.1]), jnp.ones(2), jnp.array([4.0, 2.0])
    plain = ppo.value_loss(value, old, target, None)
    np.testing.assert_allclose(plain, [0.5, 0.405], rtol=1e-6)  # ½(3-4)², ½(1.1-2)²
    clipped = ppo.value_loss(value, old, target, 0.5)
    np.testing.assert_allclose(clipped, [3.125, 0.405], rtol=1e-6)  # ½(1.5-4)², ½(1.1-2)²


@pytest.mark.parametrize("clip_value", [None, 0.5])
def test_value_loss_sends_its_gradient_into_the_value_only(clip_value):
    gradients = jax.grad(lambda *x: ppo.value_loss(*x, clip_value).sum(), argnums=(0, 1, 2))
    used, old, target = gradients(jnp.array([1.2, 0.9]), jnp.ones(2), jnp.array([4.0, 2.0]))
    np.testing.assert_allclose(used, [-2.8, -1.1], rtol=1e-6)  # V - G
    assert not old.any()
    assert not target.any()


def test_value_loss_sends_no_gradient_into_the_old_value_where_the_clip_binds():
    # V = 3, clipped to 1 + 0.5, which is V_old + ε: a gradient would have a way into V_old here
    gradient = jax.grad(lambda old: ppo.value_loss(jnp.full(1, 3.0), old, jnp.full(1, 4.0), 0.5)[0])
    assert not gradient(jnp.ones(1)).any()


def test_the_default_config_is_valid():
    ppo.validate(ppo.Config())


@pytest.mark.parametrize(
    "change",
    [
        {"total_steps": 0},
        {"num_envs": -1},
        {"rollout_length": 0},
        {"num_epochs": 0},
        {"num_minibatches": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"adam_epsilon": -1e-5},
        {"max_grad_norm": 0.0},
        {"clip_ratio": 0.0},
        {"clip_value": 0.0},
        {"target_kl": -0.1},
        {"discount": 1.01},
        {"discount": -0.1},
        {"gae_lambda": 1.5},
        {"gae_lambda": float("nan")},
        {"entropy_cost": -0.01},
        {"value_cost": -0.5},
        {"observation_clip": 0.0},
        {"reward_clip": 0.0},
        {"hidden_sizes": (64, 0)},
        {"policy_head_scale": 0.0},
    ],
    ids=str,
)
def test_validate_names_the_field_and_its_value(change):
    ((field, value),) = change.items()
    with pytest.raises(ValueError, match=rf"config\.{field}\b.*{_escaped(value)}"):
        ppo.validate(dataclasses.replace(ppo.Config(), **change))


def _escaped(value):
    return str(value).replace(".", r"\.").replace("(", r"\(").replace(")", r"\)")


@pytest.mark.parametrize(
    "change",
    [
        {"discount": 0.0},
        {"discount": 1.0},
        {"gae_lambda": 0.0},
        {"gae_lambda": 1.0},
        {"entropy_cost": 0.0},
        {"num_minibatches": 1024},  # of one row each
        {"total_steps": 1024},  # one rollout
    ],
    ids=str,
)
def test_validate_lets_limits_pass(change):
    ppo.validate(dataclasses.replace(ppo.Config(), **change))


def test_validate_says_when_minibatches_do_not_divide():
    config = ppo.Config(num_envs=8, rollout_length=128, num_minibatches=3)
    with pytest.raises(ValueError, match=r"num_minibatches=3 does not divide the 1024 rows"):
        ppo.validate(config)


def test_validate_says_when_the_budget_is_less_than_a_rollout():
    with pytest.raises(ValueError, match=r"total_steps=1023 is less than one rollout of 1024"):
        ppo.validate(ppo.Config(total_steps=1023))
