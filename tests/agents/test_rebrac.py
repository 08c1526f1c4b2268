"""ReBRAC: both penalties by hand, targets and gradients against NumPy, delays, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import rebrac
from rljax import delayed_policy
from rljax.delayed_policy import Params
from rljax.loops import offline
from rljax.nn.mlp import MLP, Activation
from rljax.nn.torsos import Torso
from rljax.offline import dataset
from rljax.offline.outlook import KNOWS_NEXT_ACTION, NEXT_ACTION
from rljax.types import Box, EnvSpec, Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

SPEC = SPECS["box"]
make = functools.cache(rebrac.make)  # so that tests share compiled programs
CONFIG = rebrac.Config(
    batch_size=B,
    actor_penalty=0.3,
    critic_penalty=0.7,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    target_rate=0.25,
    hidden_sizes=(8, 8),
)
Q = jnp.array([[1.0, 5.0], [3.0, 4.0]])  # of two critics at two rows: the lesser are 1 and 4
UNIT, DONE = jnp.array([[0.0, 1.0], [0.5, 0.5]]), jnp.array([[0.5, -0.5], [0.0, 1.0]])


def test_the_distance_is_a_sum_over_dimensions():
    np.testing.assert_allclose(rebrac.distance(UNIT, DONE), [2.5, 0.5])  # ¼ + 9/4, and ¼ + ¼


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([1.0, 1.0], [1 - 0.2 * 2.5, 4 - 0.2 * 0.5]),
        ([0.0, 1.0], [1.0, 3.9]),  # where nobody knows what was done, nothing is subtracted
    ],
)
def test_the_penalty_of_critics_by_hand(known, expected):
    got = rebrac.penalized_value(Q, UNIT, DONE, jnp.array(known), 0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_penalty_of_the_policy_by_hand():
    got = rebrac.actor_loss(Q, UNIT, DONE, 0.5, 0.1)
    np.testing.assert_allclose(got, [-0.5 + 0.25, -2 + 0.05], rtol=1e-6)
    slopes = jax.grad(lambda q, u: rebrac.actor_loss(q, u, DONE, 0.5, 0.1).sum(), argnums=(0, 1))(
        Q, UNIT
    )
    np.testing.assert_allclose(slopes[0], [[-0.5, 0], [0, -0.5]])  # into the lesser alone
    np.testing.assert_allclose(slopes[1], [[-0.1, 0.3], [0.1, -0.1]], rtol=1e-6)


def test_layer_norm_follows_every_activation(key):
    network = MLP((5, 4), Activation.RELU, layer_norm=True)
    x = jax.random.normal(key, (3, 2))
    params = network.init(key, x)
    hidden = np.asarray(x)
    for number in range(2):
        layer = params["params"][f"Dense_{number}"]
        hidden = np.maximum(hidden @ layer["kernel"] + np.asarray(layer["bias"])[None], 0)
        spread = np.sqrt(hidden.var(1, keepdims=True) + 1e-6)
        hidden = (hidden - hidden.mean(1, keepdims=True)) / spread
    np.testing.assert_allclose(network.apply(params, x), hidden, rtol=1e-4, atol=1e-5)


def test_hidden_layers_of_the_critics_alone_are_normalized(key):
    params = jax.eval_shape(make(CONFIG, SPEC).init, key).params
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normed = [name for name in names if "LayerNorm" in name]
    assert len(normed) == 4  # scale and bias of two layers
    assert all(".critic" in name for name in normed)


def dense(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])[None]


def twins(critics, features, unit):
    """Q of both critics, in NumPy."""
    values = []
    for number in range(2):
        params = jax.tree.map(lambda p, n=number: np.asarray(p[n]), critics)["params"]
        x = np.concatenate([features, unit], axis=-1)
        for layer in range(2):
            x = np.maximum(dense(params["hidden"][f"Dense_{layer}"], x), 0)
            norm = params["hidden"][f"LayerNorm_{layer}"]
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
            x = x * norm["scale"][None] + norm["bias"][None]
        values.append(dense(params["ValueHead_0"]["Dense_0"], x)[:, 0])
    return np.array(values)


def choice(agent, actor, observation):
    policy = agent.init(jax.random.key(0)).policy
    policy = policy._replace(params=policy.params._replace(actor=actor))
    _, action, _ = agent.act(policy, (), observation, jax.random.key(0), True)
    return unit_of(action)


def unit_of(action):
    return (np.asarray(action) - [0, 1]) / [1, 3]  # of a box from -1 to 1, and -2 to 4


def elsewhere(agent, key):
    """A state whose targets are others, and whose next update moves the policy."""
    target = agent.init(jax.random.fold_in(key, 1)).target
    return agent.init(key)._replace(target=target, updates=jnp.int32(1))


def test_target_and_losses_match_numpy(key):
    agent, batch = make(CONFIG, SPEC), sample(SPEC, key)
    state = elsewhere(agent, key)
    after, metrics, _ = learn(agent, state, batch, key)
    noise = np.clip(0.2 * np.asarray(jax.random.normal(key, (B, 2))), -0.5, 0.5)
    ahead = np.clip(choice(agent, state.target.actor, batch.next_observation) + noise, -1, 1)
    lesser = twins(state.target.critic, batch.next_observation.features, ahead).min(0)
    seen, done = np.asarray(batch.observation.features), unit_of(batch.action)
    q = twins(state.params.critic, seen, done)
    errors = []
    for row in range(B - 1):  # the last has no weight
        goal = lesser[row]
        if row != 1:  # nobody knows what was done after the second
            apart = ahead[row] - unit_of(batch.extras[NEXT_ACTION])[row]
            goal -= 0.7 * (apart[0] ** 2 + apart[1] ** 2)
        goal = batch.reward[row] + (0.9 * goal if row else 0)  # the first terminated
        errors.append(0.5 * (q[0, row] - goal) ** 2 + 0.5 * (q[1, row] - goal) ** 2)
    assert metrics["loss/critic"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert metrics["value/mean"] == pytest.approx(q.min(0)[:-1].mean(), rel=1e-4)
    # the policy is judged by the lesser of the critics as this update left them
    own = choice(agent, state.params.actor, batch.observation)
    value = twins(after.params.critic, seen, own).min(0)[:-1]
    apart = ((own - done) ** 2).sum(1)[:-1].mean()
    expected = -value.mean() / np.abs(value).mean() + 0.3 * apart
    assert metrics["loss/actor"] == pytest.approx(expected, rel=1e-3)
    assert metrics["policy/distance"] == pytest.approx(apart, rel=1e-3)


def test_no_gradient_flows_into_targets_or_through_the_scale(key):
    """Adam's first moments after one update are a tenth of the gradients: here with constants."""
    agent, batch = make(CONFIG, SPEC), sample(SPEC, key)
    state = elsewhere(agent, key)
    after, _, _ = learn(agent, state, batch, key)
    nets = delayed_policy.networks("rebrac", CONFIG, SPEC, layer_norm=True)
    done = jnp.float32(unit_of(batch.action))
    share = batch.weight / batch.weight.sum()
    noise = jnp.clip(0.2 * jax.random.normal(key, (B, 2)), -0.5, 0.5)
    ahead = jnp.clip(nets.choice(state.target.actor, batch.next_observation) + noise, -1, 1)
    apart = ((ahead - jnp.float32(unit_of(batch.extras[NEXT_ACTION]))) ** 2).sum(1)
    known = batch.extras[KNOWS_NEXT_ACTION]
    value = nets.q(state.target.critic, batch.next_observation, ahead).min(0)
    goal = np.asarray(batch.reward + batch.discount * (value - 0.7 * known * apart))
    own = nets.q(after.params.critic, batch.observation, nets.choice(state.params.actor, batch[0]))
    scale = float(1 / (share * jnp.abs(own.min(0))).sum())

    def critic_loss(critics):
        return (share * 0.5 * ((nets.q(critics, batch[0], done) - goal[None]) ** 2).sum(0)).sum()

    def actor_loss(actor):
        unit = nets.choice(actor, batch[0])
        q = nets.q(after.params.critic, batch[0], unit).min(0)
        return (share * (0.3 * ((unit - done) ** 2).sum(1) - scale * q)).sum()

    expected = Params(
        jax.grad(actor_loss)(state.params.actor), jax.grad(critic_loss)(state.params.critic)
    )
    found = Params(after.opt_state.actor.mu, after.opt_state.critic.mu)
    same(found, jax.tree.map(lambda x: 0.1 * x, expected), rtol=1e-3, atol=1e-6)


def test_policy_and_targets_move_at_every_second_update_only(key):
    checks.policy_and_targets_wait(make(CONFIG, SPEC), 2, 0.25, key)


def test_what_was_done_next_matters_only_where_it_is_known_and_not_after_a_termination(key):
    agent, batch = make(CONFIG, SPEC), sample(SPEC, key)
    state = agent.init(key)

    def with_next_action(row):
        extras = {**batch.extras, NEXT_ACTION: batch.extras[NEXT_ACTION].at[row].set(-1.0)}
        return learn(agent, state, batch._replace(extras=extras), key)[0].params

    plain = learn(agent, state, batch, key)[0].params
    same(plain, with_next_action(0), rtol=0)  # terminated
    same(plain, with_next_action(1), rtol=0)  # unknown
    assert differs(plain.critic, with_next_action(2).critic)


def test_it_learns_from_a_dataset_whose_episodes_end_both_ways(key):
    def episode(steps, terminated):
        keys = jax.random.split(jax.random.fold_in(key, steps), 2)
        features = np.asarray(jax.random.normal(keys[0], (steps + 1, 3)))
        action = np.asarray(jax.random.uniform(keys[1], (steps, 2)))
        return dataset.Episode(
            Observation(features), action, np.ones(steps, np.float32), terminated
        )

    agent, data = make(CONFIG, SPEC), dataset.make(SPEC, [episode(3, True), episode(4, False)])
    config = dataclasses.replace(
        rebrac.loop(dataclasses.replace(CONFIG, total_updates=4)), num_devices=1
    )
    state = offline.init(agent, data, config)
    before = jax.tree.map(np.asarray, state.train.params)
    *_, (step, state, metrics) = offline.run(agent, data, state, config, 0)
    assert step == 4
    assert np.isfinite(list(metrics.values())).all()
    assert differs(before, state.train.params)


def test_held_back_enough_the_policy_is_cloned(key):
    agent = make(dataclasses.replace(CONFIG, actor_penalty=100.0, policy_period=1), SPEC)
    state, batch = agent.init(key), sample(SPEC, key)
    nothing = Observation(jnp.zeros((B, 3)))
    batch = batch._replace(observation=nothing, weight=jnp.ones(B))
    for _ in range(150):
        state, _, _ = learn(agent, state, batch, key)
    _, action, _ = agent.act(state.policy, (), nothing, key, True)
    np.testing.assert_allclose(unit_of(action[0]), unit_of(batch.action).mean(0), atol=0.05)


def test_two_devices_and_pmap_give_what_one_device_gives(key):
    checks.devices_agree(make(CONFIG, SPEC), key, updates=4)


def test_a_row_without_weight_has_no_effect(key):
    agent = make(dataclasses.replace(CONFIG, policy_period=1), SPEC)
    checks.rows_without_weight_teach_nothing(agent, key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    plain = dataclasses.replace(CONFIG, policy_period=1)
    normalizing = dataclasses.replace(plain, normalize_observation=True)
    agents = (make(config, SPEC) for config in (normalizing, plain))
    checks.observations_are_normalized(*agents, key)


def test_pixels_and_named_parts_are_seen(key):
    checks.parts_are_seen(make(CONFIG, PARTS), key)


LOOP = ("total_updates", "batch_size", "discount", *checks.REWARDS)
CHANGES = {
    "actor_penalty": 0.1,
    "critic_penalty": 0.1,
    "policy_period": 1,
    "target_noise": 0.1,
    "target_noise_clip": 0.05,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "target_rate": 0.5,
    "normalize_observation": True,
    "hidden_sizes": (8, 9),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(rebrac.Config)}
    assert fields == {*LOOP, *CHANGES, "exploration_noise", "observation_clip", "torso"}


def test_the_loop_gets_its_fields():
    changes = {"total_updates": 7, "discount": 0.9, **checks.REWARDS}
    found = rebrac.loop(dataclasses.replace(CONFIG, **changes))
    assert {name: getattr(found, name) for name in LOOP} == {"batch_size": B, **changes}
    assert found.num_steps == 1  # the next action is of the next step


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    assert differs(*checks.changed_by(rebrac.make, CONFIG, {name: CHANGES[name]}, SPEC, updates=3))


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    assert differs(*checks.changed_by(rebrac.make, base, {"observation_clip": 0.5}, SPEC))


def test_draws_are_as_far_from_the_choice_as_asked(key):
    observation = checks.observation_of(SPEC, 500, key)
    scales = []
    for noise in (0.1, 0.4):
        agent = make(dataclasses.replace(CONFIG, exploration_noise=noise), SPEC)
        _, _, extras = agent.act(agent.init(key).policy, (), observation, key, False)
        scales.append(extras["scale"])
    np.testing.assert_allclose(scales[0], np.full((500, 2), [0.1, 0.3]), rtol=1e-5)
    np.testing.assert_allclose(scales[1], 4 * scales[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SPECS["discrete"], "rebrac takes a box .* --agent=iql"),
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
        ({"actor_penalty": -1.0}, "actor_penalty"),
        ({"critic_penalty": -1.0}, "critic_penalty"),
        ({"policy_period": 0}, "policy_period"),
        ({"target_noise": -0.1}, "target_noise"),
        ({"exploration_noise": 0.0}, "exploration_noise"),
        ({"target_rate": 1.5}, "target_rate"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        rebrac.validate(dataclasses.replace(rebrac.Config(), **changes))


def test_a_bundle_answers_as_the_agent_does(key):
    outputs = {"action", "log_prob", "entropy", "mean", "scale", "value"}
    checks.a_bundle_answers("rebrac", make(CONFIG, SPEC), CONFIG, key, outputs)
