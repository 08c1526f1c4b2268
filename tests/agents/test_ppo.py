"""PPO's update as a whole: ratios, weights, statistics, schedules, devices, and every flag."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo
from rljax import minibatches, normalizers, rollout, sharding
from rljax.envs import catch, pendulum, wrappers
from rljax.types import Observation
from tests.agents import on_policy_checks as checks
from tests.agents.rollouts import PIXELS, SPECS, B, T, rollout_of
from tests.agents.updates import differs, learn, quickly

CONFIG = ppo.Config(
    total_steps=T * B * 10,
    num_envs=B,
    rollout_length=T,
    num_epochs=2,
    num_minibatches=3,
    hidden_sizes=(8,),
    policy_head_scale=1.0,
)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_first_ratio_is_1_whatever_the_statistics(spec, key):
    config = dataclasses.replace(
        CONFIG, num_epochs=1, num_minibatches=1, normalize_observation=True
    )
    agent = ppo.make(config, spec)
    state = agent.init(key)
    moments = normalizers.Moments(jnp.float32(100.0), jnp.full(3, 2.0), jnp.full(3, 9.0))
    state = state._replace(observation=moments)
    after, metrics = learn(agent, state, rollout_of(agent, state, key), key)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/clip_fraction"] == 0
    assert differs(after.observation, moments)  # and they did move, after the epochs


def test_metrics_match_numpy_on_one_full_batch(key):
    config = dataclasses.replace(
        CONFIG, num_epochs=1, num_minibatches=1, normalize_advantage=False, entropy_cost=0.1
    )
    agent = ppo.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    _, metrics = learn(agent, state, batch, key)

    rows = jax.tree.map(np.asarray, batch.transitions)
    _, _, extras = agent.act(state.policy, (), rows.observation, key, True)
    _, _, last = agent.act(state.policy, (), batch.last_observation, key, True)
    value = np.concatenate([extras["value"], last["value"][None]]).astype(float)
    advantage = np.zeros((T, B))
    for b in range(B):
        trace = 0.0
        for t in reversed(range(T)):
            delta = rows.reward[t, b] + 0.99 * rows.discount[t, b] * value[t + 1, b] - value[t, b]
            cut = t + 1 < T and not rows.valid[t + 1, b]
            trace = delta + (0 if cut else 0.99 * 0.95 * rows.discount[t, b] * trace)
            advantage[t, b] = trace
    weight = rows.valid / rows.valid.sum()
    # at ratio 1 the surrogate is -A, and G - V is A
    assert metrics["loss/policy"] == pytest.approx(-(weight * advantage).sum(), abs=1e-5)
    assert metrics["loss/value"] == pytest.approx((weight * advantage**2).sum() / 2, rel=1e-4)
    assert metrics["policy/entropy"] == pytest.approx(
        float((weight * extras["entropy"]).sum()), rel=1e-5
    )


def test_a_row_behind_an_ending_has_no_gradient(key):
    agent = ppo.make(CONFIG, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    learned = checks.a_terminated_episodes_final_row_teaches_nothing(agent, key, batch)
    rows = batch.transitions
    valid_row = rows._replace(action=rows.action.at[3, 2].set((rows.action[3, 2] + 1) % 4))
    other, _ = learn(agent, state, batch._replace(transitions=valid_row), key)
    assert differs(learned, other.params)


@pytest.mark.parametrize("scale", ppo.RewardScale)
def test_two_devices_and_pmap_give_what_one_device_gives(scale, key):
    config = dataclasses.replace(CONFIG, normalize_observation=True, reward_scale=scale)
    checks.devices_agree(ppo.make(config, SPECS["box"]), rollout_of, key)


CHANGES = {
    "total_steps": T * B * 20,
    "num_epochs": 3,
    "num_minibatches": 2,
    "learning_rate": 1e-3,
    "anneal_learning_rate": False,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 0.01,
    "discount": 0.9,
    "gae_lambda": 0.5,
    "clip_ratio": 0.01,
    "anneal_clip_ratio": True,
    "clip_value": 0.001,
    "entropy_cost": 0.1,
    "value_cost": 0.1,
    "normalize_advantage": False,
    "recompute_advantage": True,
    "target_kl": 1e-6,
    "normalize_observation": True,
    "observation_clip": 0.5,
    "reward_scale": ppo.RewardScale.VALUE,
    "reward_clip": 0.1,
    "torso": ppo.Torso.IMPALA,
    "shared_torso": True,
    "hidden_sizes": (9,),
    "activation": ppo.Activation.RELU,
    "box_policy": ppo.BoxPolicy.TANH_NORMAL,
    "initial_log_std": -1.0,
    "policy_head_scale": 0.5,
}


def test_every_field_of_the_config_is_covered_below():
    fields = {f.name for f in dataclasses.fields(ppo.Config)}
    assert fields - set(CHANGES) == {"num_envs", "rollout_length"}  # the collector's business


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    base = dataclasses.replace(
        CONFIG,
        learning_rate=1e-2,
        clip_ratio=0.05,
        normalize_observation=name == "observation_clip",
        reward_scale=ppo.RewardScale.REWARD if name == "reward_clip" else ppo.RewardScale.NONE,
    )
    spec = PIXELS if name == "torso" else SPECS["box"]
    checks.a_field_matters(ppo.make, base, name, CHANGES[name], spec, rollout_of)


@pytest.mark.parametrize("torso", [ppo.Torso.AUTO, ppo.Torso.IMPALA])
def test_frames_fit(torso, key):  # traced alone, because convolutions take long to compile
    agent = ppo.make(dataclasses.replace(CONFIG, torso=torso), PIXELS)

    def update(key):
        state = agent.init(key)
        return state, agent.update(state, rollout_of(agent, state, key), key)

    state, (after, metrics) = jax.eval_shape(quickly(update), key)
    assert after == state  # in shapes and types
    assert all(number.shape == () for number in metrics.values())


def test_learning_rate_and_clip_ratio_fall_linearly_to_0(key):
    config = dataclasses.replace(CONFIG, total_steps=4 * T * B, anneal_clip_ratio=True)
    agent = ppo.make(config, SPECS["discrete"])
    state, rates = agent.init(key), []
    batch = rollout_of(agent, state, key)
    for _ in range(4):
        state, metrics = learn(agent, state, batch, key)
        rates.append(metrics["policy/learning_rate"])
    np.testing.assert_allclose(rates, 3e-4 * np.array([1, 0.75, 0.5, 0.25]), rtol=1e-6)


def test_target_kl_ends_the_epochs_of_an_update(key):
    config = dataclasses.replace(CONFIG, num_epochs=10, learning_rate=0.05, target_kl=0.01)
    agent = ppo.make(config, SPECS["discrete"])
    state = agent.init(key)
    _, metrics = learn(agent, state, rollout_of(agent, state, key), key)
    assert 1 <= metrics["policy/epochs"] < 10
    gentle = ppo.make(dataclasses.replace(config, target_kl=1e3), SPECS["discrete"])
    _, metrics = learn(gentle, state, rollout_of(agent, state, key), key)
    assert metrics["policy/epochs"] == 10


def test_every_minibatch_takes_each_row_once_and_epochs_differ(key):
    def rows(key):
        return minibatches.shuffled((T, B), CONFIG.num_minibatches, key)

    mapped = jax.shard_map(
        jax.vmap(rows),
        mesh=sharding.mesh(1),
        in_specs=jax.P(),
        out_specs=jax.P(),
        check_vma=False,
    )
    epochs = np.asarray(mapped(jax.random.split(key, 200)))
    assert epochs.shape == (200, 3, T * B // 3)
    assert (np.sort(epochs.reshape(200, -1), axis=1) == np.arange(T * B)).all()
    first = (epochs[:, 0] == 5).any(axis=1).mean()  # row 5 falls into minibatch 0 a third of times
    assert abs(first - 1 / 3) < 0.12  # 3.6 standard errors of 200 draws


def test_masked_actions_are_never_taken_and_served_probabilities_are_0(key):
    agent = ppo.make(CONFIG, SPECS["masked"])
    state = agent.init(key)
    mask = jnp.array([[False, True, False, True]] * 2000)
    observation = Observation(jax.random.normal(key, (2000, 3)), mask)
    for greedy in (False, True):
        _, action, extras = agent.act(state.policy, (), observation, key, greedy)
        assert set(np.unique(action)) <= {1, 3}
        assert (extras["probabilities"][:, [0, 2]] == 0).all()


def test_observation_statistics_skip_rows_that_are_not_valid(key):
    config = dataclasses.replace(CONFIG, normalize_observation=True)
    agent = ppo.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    state, _ = learn(agent, state, batch, key)
    rows = batch.transitions
    seen = np.asarray(rows.observation.features)[np.asarray(rows.valid)]
    np.testing.assert_allclose(state.observation.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state.observation.variance, seen.var(0), rtol=1e-4)


def test_reward_scale_follows_the_running_sum_across_rollouts(key):
    config = dataclasses.replace(CONFIG, reward_scale=ppo.RewardScale.REWARD, discount=0.5)
    agent = ppo.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key, ended=jnp.zeros((T, B), bool))
    ones = batch._replace(transitions=batch.transitions._replace(reward=jnp.ones((T, B))))
    state, _ = learn(agent, state, ones, key)
    # 1 + ½ + … + ½⁵ = 1.96875; the next rollout goes on from there: 1 + ½·1.96875 + …
    np.testing.assert_allclose(state.running_sum, np.full(B, 1.96875), rtol=1e-6)
    state, _ = learn(agent, state, ones, key)
    np.testing.assert_allclose(state.running_sum, np.full(B, 2 - 2.0**-11), rtol=1e-6)
    sums = 2 - 2.0 ** -np.arange(12)
    np.testing.assert_allclose(state.rewards.variance, sums.var(), rtol=1e-3)


@pytest.mark.parametrize(
    ("env", "kind"), [(catch.make(), "discrete"), (pendulum.make(), "box")], ids=["catch", "box"]
)
def test_a_collected_batch_has_the_axes_and_the_extras(env, kind, key):
    agent = ppo.make(dataclasses.replace(CONFIG, num_envs=4), env.spec)
    collector = rollout.make(agent, wrappers.autoreset(env), 4, 5, rollout.Kind.AUTO)
    _, batch, _ = collector.collect(agent.init(key).policy, collector.init(key), key)
    assert batch.transitions.reward.shape == (5, 4)
    assert set(batch.transitions.extras) == {"log_prob"}
    assert batch.transitions.action.dtype == {"discrete": jnp.int32, "box": jnp.float32}[kind]
