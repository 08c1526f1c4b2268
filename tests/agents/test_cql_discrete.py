"""Discrete CQL: the gap by hand, DQN as its limit, masks, support, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import cql_discrete, dqn
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Discrete, Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

make = functools.cache(cql_discrete.make)  # so that tests share compiled programs
CONFIG = cql_discrete.Config(
    batch_size=B, learning_rate=1e-2, target_period=2, hidden_sizes=(8,), conservative_weight=0.5
)
SUPPORTED = dataclasses.replace(CONFIG, support_threshold=0.5)
KINDS = ("discrete", "masked")
each_kind = pytest.mark.parametrize("kind", KINDS)
Q = jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
ACTION = jnp.array([0, 1])


def test_the_gap_by_hand():
    gap = cql_discrete.conservative_gap(Q, ACTION, None)
    np.testing.assert_allclose(
        gap, [np.log(np.exp(1) + np.exp(2) + np.exp(4)) - 1, np.log(3)], rtol=1e-6
    )


def test_forbidden_actions_are_in_no_sum():
    mask = jnp.array([[True, True, False], [False, True, False]])
    q = Q.at[:, 2].set(1e6)
    gap = cql_discrete.conservative_gap(q, ACTION, mask)
    # two allowed actions; the only one allowed, which leaves no gap
    np.testing.assert_allclose(gap, [np.log(np.exp(1) + np.exp(2)) - 1, 0], atol=1e-6)
    slope = jax.grad(lambda q: cql_discrete.conservative_gap(q, ACTION, mask).sum())(q)
    share = np.exp(2) / (np.exp(1) + np.exp(2))
    np.testing.assert_allclose(slope, [[-share, share, 0], [0, 0, 0]], atol=1e-6)


def test_a_mask_that_forbids_all_allows_all():
    gap = cql_discrete.conservative_gap(Q, ACTION, jnp.zeros((2, 3), bool))
    same(gap, cql_discrete.conservative_gap(Q, ACTION, None), rtol=1e-6)


def test_the_gradient_of_the_gap_is_softmax_less_the_action():
    slope = jax.grad(lambda q: cql_discrete.conservative_gap(q, ACTION, None).sum())(Q)
    expected = np.asarray(jax.nn.softmax(Q)) - np.eye(3)[np.asarray(ACTION)]
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("double", [False, True])
@each_kind
def test_without_the_gap_it_is_dqn(kind, double, key):
    config = dataclasses.replace(CONFIG, conservative_weight=0.0, double=double)
    agent, batch = make(config, SPECS[kind]), checks.batch_of(SPECS[kind], key)
    state = agent.init(key)
    target = agent.init(jax.random.fold_in(key, 1)).target
    base = dqn.make(
        dqn.Config(
            total_steps=1_000,
            learning_starts=100,
            replay_capacity=1_000,
            batch_size=B,
            learning_rate=1e-2,
            target_period=2,
            hidden_sizes=(8,),
            double=double,
        ),
        SPECS[kind],
    )
    theirs = base.init(key)._replace(params=state.params.q, target=target)
    ours = state._replace(target=target)
    for i in range(2):
        ours, metrics, _ = learn(agent, ours, batch, key)
        theirs, expected, _ = learn(base, theirs, batch, key)
        assert metrics["loss/q"] == pytest.approx(expected["loss/q"], rel=1e-5), i
    same((ours.params.q, ours.target), (theirs.params, theirs.target), rtol=1e-4, atol=1e-6)


@each_kind
def test_the_loss_matches_numpy(kind, key):
    agent, batch = make(CONFIG, SPECS[kind]), checks.batch_of(SPECS[kind], key)
    state = agent.init(key)
    _, metrics, _ = learn(agent, state, batch, key)
    _, _, extras = agent.act(state.policy, (), batch.observation, key, True)
    gaps = []
    for row in range(B - 1):  # the last has no weight
        q = np.asarray(extras["action_values"][row], float)
        allowed = np.asarray(batch.observation.mask[row]) if kind == "masked" else q == q
        gaps.append(np.log(np.exp(q[allowed]).sum()) - q[batch.action[row]])
    assert metrics["loss/conservative"] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert min(gaps) >= 0


def test_the_gap_has_its_weight_beside_the_td_loss(key):
    spec = SPECS["discrete"]
    batch = checks.batch_of(spec, key)

    def moved(weight):  # a large ε makes Adam's step follow the size of the gradient
        config = dataclasses.replace(
            CONFIG,
            conservative_weight=weight,
            adam_epsilon=1e3,
            learning_rate=100.0,
            max_grad_norm=1e6,
        )
        agent = make(config, spec)
        state = agent.init(key)
        after, _, _ = learn(agent, state, batch, key)
        return jax.tree.map(lambda a, b: np.asarray(a - b), after.params.q, state.params.q)

    none, one, three = moved(0.0), moved(1.0), moved(3.0)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c - a, 3 * (b - a), rtol=0.01, atol=1e-5),
        none, one, three,
    )  # fmt: skip
    assert differs(none, one)


def bandit(key):
    """Action 1 pays ½ and action 2 nothing; nobody took 0 and 3."""
    batch = sample(SPECS["discrete"], key)
    return batch._replace(
        observation=Observation(jnp.zeros((B, 3))),
        action=jnp.array([1, 2] * 4),
        reward=jnp.array([0.5, 0.0] * 4),
        discount=jnp.zeros(B),
        weight=jnp.ones(B),
    )


def optimistic(state, value=5.0):
    """Q of action 3, which nobody took, is as it may come out of extrapolation."""
    params = jax.tree.map(jnp.copy, state.params)
    bias = params.q["params"]["layers_1"]["Dense_0"]["bias"]
    params.q["params"]["layers_1"]["Dense_0"]["bias"] = bias.at[3].set(value)
    return state._replace(params=params, target=jax.tree.map(jnp.copy, params.q))


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 3), (0.5, 1)])
def test_what_nobody_did_is_not_trusted(weight, expected, key):
    spec = SPECS["discrete"]
    config = dataclasses.replace(CONFIG, conservative_weight=weight, learning_rate=0.05)
    agent = make(config, spec)
    state, batch = optimistic(agent.init(key)), bandit(key)
    for _ in range(200):
        state, _, _ = learn(agent, state, batch, key)
    _, action, _ = agent.act(state.policy, (), batch.observation, key, True)
    assert (action == expected).all()


def test_a_forbidden_next_action_is_never_valued(key):
    spec = SPECS["masked"]
    agent = make(CONFIG, spec)
    state, batch = agent.init(key), checks.batch_of(spec, key)
    batch = batch._replace(action=batch.action % 3)

    def loss(state, third):
        mask = jnp.broadcast_to(jnp.array([[True, True, True, third]]), (B, 4))
        ahead = batch.next_observation._replace(mask=mask)
        return learn(agent, state, batch._replace(next_observation=ahead), key)[1]["loss/q"]

    high = optimistic(state, 1e6)
    assert loss(high, False) == loss(state, False)  # not even after rounding
    assert loss(high, True) > 1e4


def test_actions_without_support_are_neither_bootstrapped_from_nor_chosen(key):
    spec = SPECS["discrete"]
    state = optimistic(make(SUPPORTED, spec).init(key), 1e6)
    agent, batch = make(SUPPORTED, spec), checks.batch_of(spec, key)
    layer = state.params.behavior["params"]["layers_1"]["Dense_0"]
    layer["kernel"] *= 0
    layer["bias"] = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))  # of 0.4, half is 0.2
    _, metrics, _ = learn(agent, state, batch._replace(action=batch.action % 3), key)
    assert metrics["loss/q"] < 100
    _, action, extras = agent.act(state.policy, (), batch.observation, key, True)
    values = np.asarray(extras["action_values"])
    assert (values.argmax(1) == 3).all()
    np.testing.assert_array_equal(action, values[:, :3].argmax(1))
    np.testing.assert_allclose(extras["value"], values[:, :3].max(1))
    policy = state.policy._replace(epsilon=jnp.float32(0.6))
    observation = checks.observation_of(spec, 300, key)
    _, drawn, extras = agent.act(policy, (), observation, key, False)
    assert (extras["probabilities"][:, 3] == 0).all()
    assert set(np.unique(drawn)) == {0, 1, 2}
    layer["bias"] = jnp.zeros(4)  # now all are as common
    _, metrics, _ = learn(agent, state, batch._replace(action=batch.action % 3), key)
    assert metrics["loss/q"] > 1e4


def test_the_behavior_is_learned_from_choices_alone(key):
    config = dataclasses.replace(SUPPORTED, max_grad_norm=1e6)  # or they share the norm
    agent, batch = make(config, SPECS["masked"]), checks.batch_of(SPECS["masked"], key)
    state = agent.init(key)
    after, metrics, _ = learn(agent, state, batch, key)
    other, _, _ = learn(agent, state, batch._replace(reward=batch.reward + 9), key)
    same(after.params.behavior, other.params.behavior, rtol=0)
    assert differs(after.params.q, other.params.q)
    # its first choices are near uniform over what is allowed
    allowed = np.asarray(batch.observation.mask[:-1]).sum(1)
    assert metrics["loss/behavior"] == pytest.approx(np.log(allowed).mean(), abs=0.05)
    plain = make(dataclasses.replace(config, support_threshold=0.0), SPECS["masked"])
    assert plain.init(key).params.behavior is None


def test_the_target_moves_every_so_many_updates(key):
    agent = make(dataclasses.replace(CONFIG, target_rate=0.25), SPECS["discrete"])
    state, batch = agent.init(key), checks.batch_of(SPECS["discrete"], key)
    first, _, _ = learn(agent, state, batch, key)
    same(first.target, state.target, rtol=0)
    second, _, _ = learn(agent, first, batch, key)
    expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, second.params.q, first.target)
    same(second.target, expected, rtol=1e-5, atol=1e-7)


def test_draws_report_their_propensity(key):
    agent = make(dataclasses.replace(CONFIG, epsilon=0.4), SPECS["masked"])
    observation = checks.observation_of(SPECS["masked"], 500, key, [True, False, True, True])
    _, action, extras = agent.act(agent.init(key).policy, (), observation, key, False)
    probabilities = np.asarray(extras["probabilities"])
    expected = [0, 0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3]
    np.testing.assert_allclose(np.sort(probabilities[0]), expected, rtol=1e-5)
    taken = probabilities[np.arange(500), action]
    np.testing.assert_allclose(np.exp(extras["log_prob"]), taken, rtol=1e-5)
    _, greedy, said = agent.act(agent.init(key).policy, (), observation, key, True)
    np.testing.assert_array_equal(greedy, probabilities.argmax(1))
    np.testing.assert_allclose(said["log_prob"], 0, atol=1e-6)


@each_kind
def test_two_devices_and_pmap_give_what_one_device_gives(kind, key):
    checks.devices_agree(make(SUPPORTED, SPECS[kind]), key)


def test_a_row_without_weight_has_no_effect(key):
    checks.rows_without_weight_teach_nothing(make(SUPPORTED, SPECS["masked"]), key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    normalizing = dataclasses.replace(SUPPORTED, normalize_observation=True)
    agents = (make(c, SPECS["discrete"]) for c in (normalizing, SUPPORTED))
    checks.observations_are_normalized(*agents, key)


def test_pixels_and_named_parts_are_seen(key):
    spec = dataclasses.replace(PARTS, action=Discrete(3))
    checks.parts_are_seen(make(SUPPORTED, spec), key)


LOOP = ("total_updates", "batch_size", "discount", "num_steps", *checks.REWARDS)
CHANGES = {
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1e-3,
    "conservative_weight": 2.0,
    "double": False,
    "dueling": True,
    "target_period": 1,
    "target_rate": 0.5,
    "huber_threshold": 0.1,
    "support_threshold": 0.99,
    "normalize_observation": True,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(cql_discrete.Config)}
    assert fields == {*LOOP, *CHANGES, "epsilon", "observation_clip", "torso", "calibrated"}


def test_the_loop_gets_its_fields():
    changes = {"total_updates": 7, "discount": 0.9, "num_steps": 3, **checks.REWARDS}
    found = cql_discrete.loop(dataclasses.replace(CONFIG, **changes))
    assert {name: getattr(found, name) for name in LOOP} == {"batch_size": B, **changes}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    # small errors are clipped too, and the network leaves its target before this moves
    base = dataclasses.replace(CONFIG, max_grad_norm=0.5, learning_rate=0.05, target_period=5)
    before, after = checks.changed_by(
        cql_discrete.make, base, {name: CHANGES[name]}, SPECS["discrete"], updates=6
    )
    parts = [(x.params.q, x.target) for x in (before, after)]  # with support, there is another part
    if jax.tree.structure(parts[0]) == jax.tree.structure(parts[1]):
        assert differs(*parts)
    else:
        assert name == "dueling"


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    spec = SPECS["discrete"]
    assert differs(*checks.changed_by(cql_discrete.make, base, {"observation_clip": 0.5}, spec))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [({}, "box", "--agent=cql"), ({}, "several", "--agent=bc"),
     ({"torso": Torso.NATURE}, "discrete", r"config\.torso=nature")],
)  # fmt: skip
def test_what_does_not_fit_the_environment_is_refused_in_a_sentence(changes, kind, words):
    with pytest.raises(ValueError, match=words):
        make(dataclasses.replace(CONFIG, **changes), SPECS[kind])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_updates": 0}, "total_updates"),
        ({"conservative_weight": -1.0}, "conservative_weight"),
        ({"support_threshold": 1.1}, "support_threshold"),
        ({"epsilon": 1.1}, "epsilon"),
        ({"target_rate": 0.0}, "target_rate"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        cql_discrete.validate(dataclasses.replace(cql_discrete.Config(), **changes))


@each_kind
def test_a_bundle_answers_as_the_agent_does(kind, key):
    outputs = {"action", "log_prob", "entropy", "value", "action_values", "probabilities"}
    agent = make(SUPPORTED, SPECS[kind])
    checks.a_bundle_answers("cql_discrete", agent, SUPPORTED, key, outputs)
