"""Behavior cloning: its losses by hand, what it learns, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import bc
from rljax import distributions
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, EnvSpec, Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import BOX, PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs

make = functools.cache(bc.make)  # so that tests share compiled programs
CONFIG = bc.Config(batch_size=B, learning_rate=1e-2, hidden_sizes=(8,))
each_kind = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def test_likelihood_by_hand():
    mask = jnp.array([[True, True, False]] * 2)
    logits = jnp.log(jnp.array([[1.0, 3.0, 50.0], [1.0, 1.0, 50.0]]))
    loss = bc.likelihood(distributions.categorical(logits, mask), jnp.array([1, 0]))
    np.testing.assert_allclose(loss, [-np.log(0.75), np.log(2)], rtol=1e-6)  # no 50 in the sum
    normal = distributions.Normal(jnp.zeros((1, 2)), jnp.log(jnp.array([[1.0, 2.0]])))
    # ½ (1² + (1/2)²) + log 1 + log 2 + log 2π
    loss = bc.likelihood(normal, jnp.ones((1, 2)))
    np.testing.assert_allclose(loss, [0.625 + np.log(2) + np.log(2 * np.pi)], rtol=1e-6)


def test_squared_error_is_a_mean_over_dimensions_by_hand():
    loss = bc.squared_error(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 4.0]]))
    np.testing.assert_allclose(loss, [6.5])  # (4 + 9) / 2


def test_a_forbidden_action_gets_no_gradient(key):
    spec = SPECS["masked"]
    agent = make(CONFIG, spec)
    state, batch = agent.init(key), checks.batch_of(spec, key)
    mask = jnp.broadcast_to(jnp.array([[True, True, True, False]]), (B, 4))
    batch = batch._replace(
        action=batch.action % 3, observation=batch.observation._replace(mask=mask)
    )
    after, _, _ = learn(agent, state, batch, key)
    moved = after.params["params"]["layers_1"]["Dense_0"]["bias"]
    assert moved[3] == 0
    assert (moved[:3] != 0).all()


def test_choices_come_to_have_the_frequencies_of_the_data(key):
    spec = SPECS["discrete"]
    agent = make(dataclasses.replace(CONFIG, learning_rate=0.05), spec)
    state, batch = agent.init(key), sample(spec, key)
    nothing = Observation(jnp.zeros((B, 3)))
    batch = batch._replace(
        observation=nothing, action=jnp.array([0, 0, 0, 0, 1, 1, 2, 3]), weight=jnp.ones(B)
    )
    for _ in range(100):
        state, metrics, _ = learn(agent, state, batch, key)
    _, _, extras = agent.act(state.policy, (), nothing, key, False)
    np.testing.assert_allclose(extras["probabilities"][0], [0.5, 0.25, 0.125, 0.125], atol=0.01)
    assert metrics["policy/accuracy"] == 0.5
    entropy = 0.5 * np.log(2) + 0.25 * np.log(4) + 0.25 * np.log(8)
    assert metrics["loss/policy"] == pytest.approx(entropy, abs=0.01)  # the least there is


@pytest.mark.parametrize("state_dependent", [False, True])
def test_a_gaussian_comes_to_have_mean_and_deviation_of_the_data(state_dependent, key):
    spec = SPECS["box"]
    config = dataclasses.replace(CONFIG, state_dependent_std=state_dependent, learning_rate=0.05)
    agent, batch = make(config, spec), sample(spec, key)
    nothing = Observation(jnp.zeros((B, 3)))
    batch = batch._replace(observation=nothing, weight=jnp.ones(B))
    state = agent.init(key)
    for _ in range(200):
        state, _, _ = learn(agent, state, batch, key)
    _, greedy, extras = agent.act(state.policy, (), nothing, key, True)
    np.testing.assert_allclose(greedy[0], batch.action.mean(0), atol=0.02)
    np.testing.assert_allclose(extras["mean"][0], batch.action.mean(0), atol=0.02)
    np.testing.assert_allclose(extras["scale"][0], batch.action.std(0), atol=0.05)


def test_squared_error_teaches_the_mean_and_leaves_the_deviation(key):
    spec = SPECS["box"]
    agent = make(dataclasses.replace(CONFIG, loss=bc.Loss.SQUARED_ERROR), spec)
    state, batch = agent.init(key), sample(spec, key)
    after, metrics, _ = learn(agent, state, batch, key)
    assert after.params["params"]["log_std"].tolist() == [0, 0]
    unit = (np.asarray(batch.action) - [0, 1]) / [1, 3]  # of a box from -1 to 1, and -2 to 4
    _, action, _ = agent.act(state.policy, (), batch.observation, key, True)
    mean = (np.asarray(action) - [0, 1]) / [1, 3]
    expected = ((mean - unit)[:-1] ** 2).mean()  # the last row has no weight
    assert metrics["loss/policy"] == pytest.approx(expected, rel=1e-4)


def test_learning_does_not_depend_on_the_units_of_the_actions(key):
    checks.units_do_not_matter(make, CONFIG, key)


def test_a_box_without_bounds_keeps_its_units(key):
    infinite = float("inf")
    spec = EnvSpec("free", (3,), "float32", Box((-infinite, 0.0), (infinite, 4.0)))
    agent = make(dataclasses.replace(CONFIG, learning_rate=0.1), spec)
    state, batch = agent.init(key), sample(SPECS["box"], key)
    nothing = Observation(jnp.zeros((B, 3)))
    action = jnp.broadcast_to(jnp.array([[3.0, 3.0]]), (B, 2))
    batch = batch._replace(observation=nothing, action=action)
    for _ in range(200):
        state, _, _ = learn(agent, state, batch, key)
    _, greedy, extras = agent.act(state.policy, (), nothing, key, True)
    np.testing.assert_allclose(greedy[0], [3, 3], rtol=0.05)
    assert extras["scale"][0, 1] < 0.5


def test_rare_choices_are_cut_off_when_acting(key):
    spec = SPECS["masked"]
    agent = make(dataclasses.replace(CONFIG, support_threshold=0.4), spec)
    state = agent.init(key)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))  # of the last, 0.4 is 0.16
    state.params["params"]["layers_1"]["Dense_0"]["bias"] = logits
    state.params["params"]["layers_1"]["Dense_0"]["kernel"] *= 0
    for mask, expected in (
        ([True] * 4, [0, 0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9]),
        ([True, True, True, False], [0, 0.4, 0.6, 0]),  # of 0.3, now the likeliest: 0.12
        ([True, True, False, False], [1 / 3, 2 / 3, 0, 0]),
    ):
        observation = checks.observation_of(spec, 500, key, mask)
        _, action, extras = agent.act(state.policy, (), observation, key, False)
        np.testing.assert_allclose(extras["probabilities"][0], expected, rtol=1e-5)
        assert set(np.unique(action)) == set(np.flatnonzero(expected))


@each_kind
def test_two_devices_and_pmap_give_what_one_device_gives(spec, key):
    checks.devices_agree(make(CONFIG, spec), key)


@pytest.mark.parametrize("name", ["box", "masked"])
def test_a_row_without_weight_has_no_effect(name, key):
    checks.rows_without_weight_teach_nothing(make(CONFIG, SPECS[name]), key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    normalizing = dataclasses.replace(CONFIG, normalize_observation=True)
    agents = (make(config, SPECS["box"]) for config in (normalizing, CONFIG))
    checks.observations_are_normalized(*agents, key)


def test_pixels_and_named_parts_are_seen(key):
    agent = make(CONFIG, PARTS)
    checks.parts_are_seen(agent, key)
    policy, observation = jax.jit(agent.init)(key).policy, sample(PARTS, key).observation
    act = jax.jit(lambda features: agent.act(policy, (), Observation(features), key, True)[1])
    plain = act(observation.features)
    for name, x in observation.features.items():
        assert differs(plain, act({**observation.features, name: jnp.roll(x, 1, axis=0)})), name


LOOP = ("total_updates", "batch_size", "top_fraction")
CHANGES = {
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "loss": bc.Loss.SQUARED_ERROR,
    "state_dependent_std": True,
    "initial_log_std": -1.0,
    "normalize_observation": True,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    elsewhere = {"observation_clip", "support_threshold", "torso"}
    fields = {field.name for field in dataclasses.fields(bc.Config)}
    assert fields == {*LOOP, *CHANGES, *elsewhere}


def test_the_loop_gets_its_fields():
    config = dataclasses.replace(CONFIG, total_updates=7, top_fraction=0.1)
    drive = bc.loop(config)
    assert [getattr(drive, name) for name in LOOP] == [7, B, 0.1]


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    assert differs(*checks.changed_by(bc.make, CONFIG, {name: CHANGES[name]}, SPECS["box"]))


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    assert differs(*checks.changed_by(bc.make, base, {"observation_clip": 0.5}, SPECS["box"]))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"loss": bc.Loss.SQUARED_ERROR}, "discrete", r"squared_error"),
        ({"support_threshold": 0.1}, "box", r"support_threshold"),
        ({"support_threshold": 0.1}, "several", r"support_threshold"),
        ({"torso": Torso.NATURE}, "box", r"config\.torso=nature"),
    ],
)
def test_what_does_not_fit_the_environment_is_refused_in_a_sentence(changes, kind, words):
    with pytest.raises(ValueError, match=words):
        make(dataclasses.replace(CONFIG, **changes), SPECS[kind])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_updates": 0}, "total_updates"),
        ({"top_fraction": 0.0}, "top_fraction"),
        ({"top_fraction": 1.5}, "top_fraction"),
        ({"support_threshold": 1.5}, "support_threshold"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
        ({"loss": bc.Loss.SQUARED_ERROR, "state_dependent_std": True}, "likelihood"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        bc.validate(dataclasses.replace(bc.Config(), **changes))


@each_kind
def test_a_bundle_answers_as_the_agent_does(spec, key):
    of_kind = {"mean", "scale"} if spec.action == BOX else {"probabilities"}
    outputs = {"action", "log_prob", "entropy"} | of_kind
    checks.a_bundle_answers("bc", make(CONFIG, spec), CONFIG, key, outputs)


def test_draws_report_their_density_in_the_units_of_the_box(key):
    agent = make(CONFIG, SPECS["box"])
    observation = checks.observation_of(SPECS["box"], 50, key)
    _, action, extras = agent.act(agent.init(key).policy, (), observation, key, False)
    mean, scale = np.asarray(extras["mean"]), np.asarray(extras["scale"])
    z = (np.asarray(action) - mean) / scale
    expected = (-0.5 * z**2 - np.log(scale * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(extras["log_prob"], expected, rtol=1e-4)
    np.testing.assert_allclose(scale, np.broadcast_to([[1.0, 3.0]], scale.shape), rtol=1e-5)
