"""CQL as a whole: rates, targets, what it distrusts, devices, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import cql
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, EnvSpec, Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

SPEC = SPECS["box"]
make = functools.cache(cql.make)  # so that tests share compiled programs
CONFIG = cql.Config(
    batch_size=B,
    actor_learning_rate=3e-3,
    critic_learning_rate=1e-2,
    target_rate=0.25,
    num_draws=3,
    actor_hidden_sizes=(8,),
    critic_hidden_sizes=(8,),
)


def test_policy_and_temperature_have_one_rate_and_critics_and_multiplier_another(key):
    agent = make(dataclasses.replace(CONFIG, gap_target=0.1), SPEC)
    state, batch = agent.init(key), sample(SPEC, key)
    after, _, _ = learn(agent, state, batch, key)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params)
    # Adam's first step is the rate, wherever there is a gradient
    for name, rate in zip(cql.Params._fields, (3e-3, 1e-2, 3e-3, 1e-2), strict=True):
        largest = max(jax.tree.leaves(getattr(moved, name)))
        assert largest == pytest.approx(rate, rel=1e-2), name
    for name, start in (("log_std_multiplier", 1), ("log_std_offset", -1)):
        assert state.params.actor["params"][name] == start
        assert moved.actor["params"][name] == pytest.approx(3e-3, rel=1e-2)  # learned, too
    assert after.params.log_multiplier > state.params.log_multiplier == 1  # gaps are greater
    unlearned, _, _ = learn(make(CONFIG, SPEC), state, batch, key)
    assert unlearned.params.log_multiplier == 1


def test_every_number_is_logged_under_a_name_of_its_own(key):
    names = "loss/critic loss/conservative loss/actor loss/temperature policy/entropy"
    names += " policy/temperature value/mean value/gap"
    for gap_target, more in ((None, ""), (0.1, " loss/multiplier value/gap_multiplier")):
        agent = make(dataclasses.replace(CONFIG, gap_target=gap_target), SPEC)
        _, metrics, _ = learn(agent, agent.init(key), sample(SPEC, key), key)
        assert set(metrics) == set((names + more).split())


def test_the_target_follows_at_its_rate(key):
    agent = make(CONFIG, SPEC)
    state, batch = agent.init(key), sample(SPEC, key)
    after, _, _ = learn(agent, state, batch, key)
    expected = jax.tree.map(
        lambda new, old: 0.25 * new + 0.75 * old, after.params.critic, state.target
    )
    same(after.target, expected, rtol=1e-5, atol=1e-7)


def test_what_comes_after_a_termination_is_worth_nothing(key):
    config = dataclasses.replace(CONFIG, conservative_weight=0.0)  # else the gap's draws move
    checks.nothing_comes_after_a_termination(make(config, SPEC), key, rtol=1e-6)


@pytest.mark.parametrize(("weight", "trusted"), [(0.0, True), (5.0, False)])
def test_what_nobody_did_is_worth_less(weight, trusted, key):
    config = dataclasses.replace(CONFIG, conservative_weight=weight)
    agent, state = make(config, SPEC), make(config, SPEC).init(key)
    # more was paid the greater the action, but nobody went beyond the middle of the box
    batch = sample(SPEC, key, 64)
    unit = -jax.random.uniform(key, (64, 2))
    batch = batch._replace(
        observation=Observation(jnp.zeros((64, 3))),
        action=jnp.array([[0.0, 1.0]]) + jnp.array([[1.0, 3.0]]) * unit,
        reward=unit.sum(-1),
        discount=jnp.zeros(64),
        weight=jnp.ones(64),
    )
    for i in range(150):
        state, _, _ = learn(agent, state, batch, jax.random.fold_in(key, i))
    networks = cql.networks_of(config, SPEC)
    actions = jnp.array([[[-0.5, -0.5], [0.9, 0.9]]])
    q = networks.q(state.params.critic, Observation(jnp.zeros((1, 3))), actions).min(0)[0]
    assert (q[1] > q[0]) == trusted


def test_cloning_brings_the_policy_to_the_data(key):
    config = dataclasses.replace(
        CONFIG, cloning_updates=1_000, actor_learning_rate=3e-2, learn_temperature=False,
        initial_temperature=1e-3,
    )  # fmt: skip
    agent, batch = make(config, SPEC), sample(SPEC, key)
    state, nothing = agent.init(key), Observation(jnp.zeros((B, 3)))
    action = jnp.broadcast_to(jnp.array([[0.5, -1.0]]), (B, 2))
    batch = batch._replace(observation=nothing, action=action)
    for i in range(150):
        state, _, _ = learn(agent, state, batch, jax.random.fold_in(key, i))
    _, greedy, _ = agent.act(state.policy, (), nothing, key, True)
    np.testing.assert_allclose(greedy, action, atol=0.1)


def test_two_devices_and_pmap_give_what_one_device_gives(key):
    config = dataclasses.replace(CONFIG, gap_target=0.1, cloning_updates=1, max_target_backup=True)
    checks.devices_agree(make(config, SPEC), key)


def test_a_row_without_weight_has_no_effect(key):
    checks.rows_without_weight_teach_nothing(make(CONFIG, SPEC), key)


def test_learning_does_not_depend_on_the_units_of_the_actions(key):
    checks.units_do_not_matter(make, CONFIG, key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    normalizing = dataclasses.replace(CONFIG, normalize_observation=True)
    agents = (make(config, SPEC) for config in (normalizing, CONFIG))
    checks.observations_are_normalized(*agents, key)


def test_rewards_are_scaled_by_the_number_in_the_state(key):
    scaling = dataclasses.replace(CONFIG, normalize_reward=True)
    agents = (make(config, SPEC) for config in (scaling, CONFIG))
    checks.rewards_are_scaled(*agents, key)


def test_actions_on_the_edge_of_the_box_leave_everything_finite(key):
    agent = make(dataclasses.replace(CONFIG, cloning_updates=1), SPEC)
    state, batch = agent.init(key), sample(SPEC, key)
    edge = jnp.where(batch.action > 1, jnp.array([[1.0, 4.0]]), jnp.array([[-1.0, -2.0]]))
    for i in range(3):  # one update of cloning, two of learning
        state, metrics, _ = learn(agent, state, batch._replace(action=edge), key)
        assert all(np.isfinite(number) for number in metrics.values()), i
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_draws_lie_within_the_bounds(key):
    agent = make(CONFIG, SPEC)
    observation = checks.observation_of(SPEC, 500, key)
    for greedy in (False, True):
        _, action, extras = agent.act(agent.init(key).policy, (), observation, key, greedy)
        low, high = np.array(SPEC.action.low)[None], np.array(SPEC.action.high)[None]
        assert ((action >= low) & (action <= high)).all()
        assert np.isfinite(extras["log_prob"]).all()


def test_pixels_and_named_parts_are_seen(key):
    checks.parts_are_seen(make(CONFIG, PARTS), key)


LOOP = ("total_updates", "batch_size", "discount", "num_steps", "normalize_reward", *checks.REWARDS)
CHANGES = {
    "actor_learning_rate": 1e-4,
    "critic_learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "target_rate": 0.5,
    "conservative_weight": 1.0,
    "num_draws": 2,
    "importance_sampling": False,
    "gap_target": 1.0,
    "gap_min": 100.0,
    "gap_max": -100.0,
    "max_target_backup": True,
    "backup_entropy": True,
    "cloning_updates": 1,
    "initial_temperature": 0.1,
    "learn_temperature": False,
    "target_entropy": 100.0,
    "log_std_multiplier": 0.5,
    "log_std_offset": 0.0,
    "normalize_observation": True,
    "normalize_reward": True,
    "actor_hidden_sizes": (9,),
    "critic_hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(cql.Config)}
    assert fields == {*LOOP, *CHANGES, "observation_clip", "torso", "calibrated"}


def test_the_loop_gets_its_fields():
    changes = {
        "total_updates": 7,
        "discount": 0.9,
        "num_steps": 3,
        "normalize_reward": True,
        **checks.REWARDS,
    }
    found = cql.loop(dataclasses.replace(CONFIG, **changes))
    assert {name: getattr(found, name) for name in LOOP} == {"batch_size": B, **changes}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    assert differs(*checks.changed_by(cql.make, CONFIG, {name: CHANGES[name]}, SPEC))


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    assert differs(*checks.changed_by(cql.make, base, {"observation_clip": 0.5}, SPEC))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SPECS["discrete"], "--agent=cql_discrete"),
        (EnvSpec("free", (3,), "float32", Box((0.0,), (float("inf"),))), "bounds"),
    ],
)
def test_other_actions_are_refused_in_a_sentence(spec, words):
    with pytest.raises(ValueError, match=words):
        make(CONFIG, spec)


def test_the_torso_is_asked_for():
    with pytest.raises(ValueError, match=r"config\.torso=nature"):
        make(dataclasses.replace(CONFIG, torso=Torso.NATURE), SPEC)


def test_a_bundle_answers_as_the_agent_does(key):
    outputs = {"action", "log_prob", "entropy", "mean", "scale", "value"}
    checks.a_bundle_answers("cql", make(CONFIG, SPEC), CONFIG, key, outputs)
