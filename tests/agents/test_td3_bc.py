"""TD3+BC: losses by hand, delays, what the policy follows, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import td3_bc
from rljax import delayed_policy, sharding
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, EnvSpec, Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

SPEC = SPECS["box"]
make = functools.cache(td3_bc.make)  # so that tests share compiled programs
CONFIG = td3_bc.Config(
    batch_size=B,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    target_rate=0.25,
    hidden_sizes=(8,),
)


def test_smoothing_by_hand():
    action = jnp.array([[0.0, 0.0, 0.9, -0.9]])
    noise = jnp.array([[1.0, -9.0, 9.0, -1.0]])
    # 0.2; clipped to -½; 0.9 + ½, kept within the box; -0.9 - 0.2 likewise
    got = delayed_policy.smoothed(action, noise, 0.2, 0.5)
    np.testing.assert_allclose(got, [[0.2, -0.5, 1.0, -1.0]], rtol=1e-6)


def on_one_device(function, *arguments):
    mapped = jax.shard_map(
        function, mesh=sharding.mesh(1), in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    return mapped(*arguments)


def test_the_value_is_scaled_by_its_size_over_weighted_rows():
    q, share = jnp.array([1.0, -3.0, 99.0]), jnp.array([0.5, 0.5, 0.0])
    scale = on_one_device(lambda q, share: td3_bc.value_scale(q, share, 2.5), q, share)
    assert scale == pytest.approx(2.5 / 2)  # mean |Q| = 2
    slope = on_one_device(jax.grad(lambda q: td3_bc.value_scale(q, share, 2.5)), q)
    assert not slope.any()
    zero = on_one_device(lambda q, share: td3_bc.value_scale(q, share, 2.5), 0 * q, share)
    assert np.isfinite(zero)


def test_actor_loss_by_hand():
    unit, action = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, -0.5]])
    loss = td3_bc.actor_loss(jnp.array([4.0]), unit, action, 0.5)
    np.testing.assert_allclose(loss, [-2 + 1.25])  # (0.25 + 2.25) / 2: a mean over dimensions
    slopes = jax.grad(lambda q, u: td3_bc.actor_loss(q, u, action, 0.5).sum(), argnums=(0, 1))(
        jnp.array([4.0]), unit
    )
    np.testing.assert_allclose(slopes[0], [-0.5])
    np.testing.assert_allclose(slopes[1], [[-0.5, 1.5]])


def mlp(params, x):
    first, last = (params["params"][name] for name in ("hidden", "ValueHead_0"))
    hidden = jnp.maximum(x @ first["Dense_0"]["kernel"] + first["Dense_0"]["bias"][None], 0)
    return (hidden @ last["Dense_0"]["kernel"] + last["Dense_0"]["bias"][None])[:, 0]


def twins(critics, features, unit):
    x = jnp.concatenate([features, unit], axis=-1)
    return np.array([mlp(jax.tree.map(lambda p, i=i: p[i], critics), x) for i in range(2)])


def choice(agent, actor, observation):
    policy = agent.init(jax.random.key(0)).policy
    policy = policy._replace(params=policy.params._replace(actor=actor))
    _, action, _ = agent.act(policy, (), observation, jax.random.key(0), True)
    return (np.asarray(action) - [0, 1]) / [1, 3]  # of a box from -1 to 1, and -2 to 4


def test_critic_and_actor_losses_match_numpy(key):
    agent, batch = make(CONFIG, SPEC), sample(SPEC, key)
    state = agent.init(key)._replace(
        target=agent.init(jax.random.fold_in(key, 1)).target, updates=jnp.int32(1)
    )
    after, metrics, _ = learn(agent, state, batch, key)
    rows = slice(0, B - 1)  # the last has no weight
    noise = np.clip(0.2 * np.asarray(jax.random.normal(key, (B, 2))), -0.5, 0.5)
    ahead = np.clip(choice(agent, state.target.actor, batch.next_observation) + noise, -1, 1)
    value = twins(state.target.critic, batch.next_observation.features, ahead).min(0)
    goal = np.asarray(batch.reward + batch.discount * value)
    unit = (np.asarray(batch.action) - [0, 1]) / [1, 3]
    q = twins(state.params.critic, batch.observation.features, unit)
    expected = (0.5 * (q - goal) ** 2).sum(0)[rows].mean()
    assert metrics["loss/critic"] == pytest.approx(expected, rel=1e-4)
    # the policy is judged by the first critic as this update left it
    own = choice(agent, state.params.actor, batch.observation)
    first = twins(after.params.critic, batch.observation.features, own)[0][rows]
    cloned = ((own - unit)[rows] ** 2).mean()
    expected = -2.5 * first.mean() / np.abs(first).mean() + cloned
    assert metrics["loss/actor"] == pytest.approx(expected, rel=1e-3)
    assert metrics["policy/squared_error"] == pytest.approx(cloned, rel=1e-3)


@pytest.mark.parametrize("period", [2, 3])
def test_policy_and_targets_move_at_every_so_many_updates_only(period, key):
    agent = make(dataclasses.replace(CONFIG, policy_period=period), SPEC)
    checks.policy_and_targets_wait(agent, period, 0.25, key)


def test_the_policy_follows_the_first_critic_alone(key):
    agent, batch = make(CONFIG, SPEC), sample(SPEC, key)
    state = agent.init(key)._replace(updates=jnp.int32(1))
    other = agent.init(jax.random.fold_in(key, 1)).params.critic

    def with_critic(number):
        mixed = jax.tree.map(lambda a, b: a.at[number].set(b[number]), state.params.critic, other)
        changed = state._replace(params=state.params._replace(critic=mixed))
        return learn(agent, changed, batch, key)[0].params.actor

    plain, _, _ = learn(agent, state, batch, key)
    same(plain.params.actor, with_critic(1), rtol=1e-6, atol=1e-7)
    assert differs(plain.params.actor, with_critic(0))


def test_without_value_the_policy_is_cloned(key):
    agent = make(dataclasses.replace(CONFIG, value_weight=0.0, policy_period=1), SPEC)
    state, batch = agent.init(key), sample(SPEC, key)
    nothing = Observation(jnp.zeros((B, 3)))
    batch = batch._replace(observation=nothing, weight=jnp.ones(B))
    for _ in range(150):
        state, _, _ = learn(agent, state, batch, key)
    _, action, _ = agent.act(state.policy, (), nothing, key, True)
    np.testing.assert_allclose(action[0], batch.action.mean(0), atol=0.03)


def test_it_prefers_what_pays_among_what_was_done(key):
    agent = make(
        dataclasses.replace(CONFIG, critic_learning_rate=3e-2, actor_learning_rate=3e-2), SPEC
    )
    batch, state = sample(SPEC, key, 64), agent.init(key)
    nothing = Observation(jnp.zeros((64, 3)))
    unit = (batch.action - jnp.array([[0.0, 1.0]])) / jnp.array([[1.0, 3.0]])
    batch = batch._replace(
        observation=nothing, reward=unit[:, 0], discount=jnp.zeros(64), weight=jnp.ones(64)
    )
    for _ in range(300):
        state, _, _ = learn(agent, state, batch, key)
    _, action, _ = agent.act(state.policy, (), nothing, key, True)
    assert action[0, 0] > 0.6  # the first dimension pays
    np.testing.assert_allclose(action[0, 1], batch.action[:, 1].mean(), atol=1.0)


def test_what_comes_after_a_termination_is_worth_nothing(key):
    checks.nothing_comes_after_a_termination(make(CONFIG, SPEC), key)


def test_two_devices_and_pmap_give_what_one_device_gives(key):
    checks.devices_agree(make(CONFIG, SPEC), key, updates=4)


def test_a_row_without_weight_has_no_effect(key):
    agent = make(dataclasses.replace(CONFIG, policy_period=1), SPEC)
    checks.rows_without_weight_teach_nothing(agent, key)


def test_learning_does_not_depend_on_the_units_of_the_actions(key):
    checks.units_do_not_matter(make, dataclasses.replace(CONFIG, policy_period=1), key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    plain = dataclasses.replace(CONFIG, policy_period=1)
    normalizing = dataclasses.replace(plain, normalize_observation=True)
    agents = (make(config, SPEC) for config in (normalizing, plain))
    checks.observations_are_normalized(*agents, key)


def test_draws_are_near_the_choice_and_report_their_density(key):
    agent = make(CONFIG, SPEC)
    observation = checks.observation_of(SPEC, 2_000, key)
    policy = agent.init(key).policy
    _, greedy, _ = agent.act(policy, (), observation, key, True)
    _, action, extras = agent.act(policy, (), observation, key, False)
    scale = np.array([0.1, 0.3])  # of half-widths 1 and 3
    np.testing.assert_allclose((action - greedy).std(0), scale, rtol=0.1)
    z = np.asarray(action - greedy) / scale
    expected = (-0.5 * z**2 - np.log(scale * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(extras["log_prob"], expected, rtol=1e-3, atol=1e-3)


def test_pixels_and_named_parts_are_seen(key):
    checks.parts_are_seen(make(CONFIG, PARTS), key)


LOOP = ("total_updates", "batch_size", "discount", "num_steps", *checks.REWARDS)
CHANGES = {
    "value_weight": 0.5,
    "policy_period": 1,
    "target_noise": 0.1,
    "target_noise_clip": 0.05,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "target_rate": 0.5,
    "normalize_observation": True,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(td3_bc.Config)}
    assert fields == {*LOOP, *CHANGES, "exploration_noise", "observation_clip", "torso"}


def test_the_loop_gets_its_fields():
    changes = {"total_updates": 7, "discount": 0.9, "num_steps": 3, **checks.REWARDS}
    found = td3_bc.loop(dataclasses.replace(CONFIG, **changes))
    assert {name: getattr(found, name) for name in LOOP} == {"batch_size": B, **changes}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    assert differs(*checks.changed_by(td3_bc.make, CONFIG, {name: CHANGES[name]}, SPEC, updates=3))


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    assert differs(*checks.changed_by(td3_bc.make, base, {"observation_clip": 0.5}, SPEC))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SPECS["discrete"], "--agent=iql"),
        (EnvSpec("free", (3,), "float32", Box((0.0,), (float("inf"),))), "bounds"),
    ],
)
def test_other_actions_are_refused_in_a_sentence(spec, words):
    with pytest.raises(ValueError, match=words):
        make(CONFIG, spec)


def test_the_torso_is_asked_for():
    with pytest.raises(ValueError, match=r"config\.torso=nature"):
        make(dataclasses.replace(CONFIG, torso=Torso.NATURE), SPEC)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_updates": 0}, "total_updates"),
        ({"value_weight": -1.0}, "value_weight"),
        ({"policy_period": 0}, "policy_period"),
        ({"target_noise": -0.1}, "target_noise"),
        ({"exploration_noise": 0.0}, "exploration_noise"),
        ({"target_rate": 1.5}, "target_rate"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        td3_bc.validate(dataclasses.replace(td3_bc.Config(), **changes))


def test_a_bundle_answers_as_the_agent_does(key):
    outputs = {"action", "log_prob", "entropy", "mean", "scale", "value"}
    checks.a_bundle_answers("td3_bc", make(CONFIG, SPEC), CONFIG, key, outputs)
