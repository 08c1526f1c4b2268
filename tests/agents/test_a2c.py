"""A2C's update: its numbers, endings, devices, every flag."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c
from rljax.optim import Optimizer
from tests.agents import on_policy_checks as checks
from tests.agents.rollouts import PIXELS, SPECS, B, T, rollout_of
from tests.agents.test_ppo import CHANGES as PPO_CHANGES
from tests.agents.updates import learn, same

CONFIG = a2c.Config(
    total_steps=T * B * 10,
    num_envs=B,
    rollout_length=T,
    hidden_sizes=(8,),
    policy_head_scale=1.0,
)


def n_step_advantages(config, rows, value):
    """Rewards to the end of the episode or of the rollout, then V of what comes behind, less V.

    For λ = 1 and no other: a plain sum, where the agent has a recurrence.
    """
    advantage = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            if not rows.valid[t, b]:
                continue
            total, power, k = 0.0, 1.0, t
            while True:
                total += power * rows.reward[k, b]
                power *= config.discount * rows.discount[k, b]
                k += 1
                if k == T or not rows.valid[k, b]:
                    break
            advantage[t, b] = total + power * value[k, b] - value[t, b]
    return advantage


def values_and_chance(agent, policy, batch, key):
    rows = batch.transitions
    _, _, extras = agent.act(policy, (), rows.observation, key, True)
    _, _, last = agent.act(policy, (), batch.last_observation, key, True)
    chance = jnp.take_along_axis(extras["probabilities"], rows.action[..., None], axis=-1)
    value = jnp.concatenate([extras["value"], last["value"][None]])
    return value, chance[..., 0], extras["entropy"]


def test_metrics_match_numpy_on_one_batch(key):
    config = dataclasses.replace(CONFIG, entropy_cost=0.1)
    agent = a2c.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    _, metrics = learn(agent, state, batch, key)
    rows = jax.tree.map(np.asarray, batch.transitions)
    value, chance, entropy = values_and_chance(agent, state.policy, batch, key)
    value = np.asarray(value, float)
    advantage = n_step_advantages(config, rows, value)
    weight = rows.valid / rows.valid.sum()

    def mean(x):
        return pytest.approx(float((weight * x).sum()), rel=1e-4, abs=1e-6)

    assert metrics["loss/policy"] == mean(-advantage * np.log(chance))
    assert metrics["loss/value"] == mean(advantage**2 / 2)  # G - V is A
    assert metrics["policy/entropy"] == mean(entropy)
    assert metrics["value/mean"] == mean(value[:-1])
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    residual, target = advantage[rows.valid], (advantage + value[:-1])[rows.valid]
    explained = 1 - residual.var() / target.var()
    assert metrics["value/explained_variance"] == pytest.approx(explained, rel=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_gradient_takes_targets_and_advantages_for_constants(normalize, key):
    config = dataclasses.replace(
        CONFIG,
        entropy_cost=0.1,
        value_cost=0.25,
        normalize_advantage=normalize,
        learning_rate=1e-3,
        max_grad_norm=1e6,
        optimizer_epsilon=1e3,  # so large that the step is g / ε
        anneal_learning_rate=False,
    )
    agent = a2c.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    after, metrics = learn(agent, state, batch, key)
    rows = jax.tree.map(np.asarray, batch.transitions)
    old, _, _ = values_and_chance(agent, state.policy, batch, key)
    advantage = n_step_advantages(config, rows, np.asarray(old))
    target = np.asarray(old[:-1]) + advantage
    if normalize:
        valid = advantage[rows.valid]
        advantage = (advantage - valid.mean()) / valid.std()

    def loss(params):
        policy = state.policy._replace(params=params)
        value, chance, entropy = values_and_chance(agent, policy, batch, key)
        each = -advantage * jnp.log(chance) - 0.1 * entropy
        each += 0.25 * 0.5 * (value[:-1] - target) ** 2
        return jnp.sum(jnp.where(rows.valid, each, 0.0)) / rows.valid.sum()

    expected = jax.grad(loss)(state.params)
    norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(expected)))
    assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)
    moments = after.opt_state[1].nu  # (1 - 0.99) g²: tells more digits of g than the step does
    same(
        jax.tree.map(lambda x: np.sqrt(x / 0.01), moments),
        jax.tree.map(np.abs, expected),
        rtol=2e-3,
        atol=1e-6,
    )
    downhill = jax.tree.map(lambda p, q, g: (p - q) * g >= 0, state.params, after.params, expected)
    assert all(x.all() for x in jax.tree.leaves(downhill))


def test_a_row_behind_an_ending_has_no_weight(key):
    agent = a2c.make(dataclasses.replace(CONFIG, normalize_advantage=True), SPECS["discrete"])
    batch = rollout_of(agent, agent.init(key), key)
    learned = checks.a_terminated_episodes_final_row_teaches_nothing(agent, key, batch)
    checks.a_truncated_episodes_final_row_is_its_future(agent, key, batch, learned)


def test_an_older_policy_is_reported_and_not_corrected(key):
    agent = a2c.make(CONFIG, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    rows = batch.transitions
    older = rows._replace(extras={"log_prob": rows.extras["log_prob"] - np.log(2)})
    one, _ = learn(agent, state, batch, key)
    two, metrics = learn(agent, state, batch._replace(transitions=older), key)
    same(one, two, rtol=0)
    # ratio 2: 2 - 1 - ln 2 = 0.306853
    assert metrics["policy/approx_kl"] == pytest.approx(0.306853, abs=1e-5)


@pytest.mark.parametrize(("spec", "normalize"), [("box", False), ("masked", True)])
def test_two_devices_and_pmap_give_what_one_device_gives(spec, normalize, key):
    config = dataclasses.replace(
        CONFIG, normalize_observation=True, normalize_advantage=normalize, gae_lambda=0.9
    )
    checks.devices_agree(a2c.make(config, SPECS[spec]), rollout_of, key)


def test_statistics_are_those_of_before_the_rollout_and_move_behind_it(key):
    config = dataclasses.replace(CONFIG, normalize_observation=True)
    checks.statistics_move_behind_the_rollout(a2c.make(config, SPECS["discrete"]), rollout_of, key)


CHANGES = {name: PPO_CHANGES[name] for name in set(PPO_CHANGES) & set(CONFIG.__dict__)} | {
    "normalize_advantage": True,
    "optimizer": Optimizer.ADAM,
    "optimizer_epsilon": 1e-2,
    "rmsprop_decay": 0.9,
}


def test_every_field_of_the_config_is_covered_below():
    fields = {f.name for f in dataclasses.fields(a2c.Config)}
    assert fields - set(CHANGES) == {"num_envs", "rollout_length"}  # the collector's business


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_the_outcome(name):
    base = dataclasses.replace(CONFIG, normalize_observation=name == "observation_clip")
    spec = PIXELS if name == "torso" else SPECS["box"]
    checks.a_field_matters(a2c.make, base, name, CHANGES[name], spec, rollout_of)


def test_the_rate_falls_linearly_to_0_and_stays_if_told(key):
    config = dataclasses.replace(CONFIG, total_steps=4 * T * B, learning_rate=1.0)
    checks.the_rate_falls(a2c.make, config, SPECS["discrete"], rollout_of, key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda must lie in"),
        ({"rmsprop_decay": -0.5}, "rmsprop_decay must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"value_cost": -1.0}, "value_cost must not be negative"),
        ({"hidden_sizes": (0,)}, "hidden_sizes must all be positive"),
        ({"total_steps": 10}, "less than one rollout of 48 rows"),
    ],
)
def test_what_cannot_work_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        a2c.validate(dataclasses.replace(CONFIG, **changes))
