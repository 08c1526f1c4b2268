"""CQL's losses by hand, its draws one by one, and where no gradient may flow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import cql
from rljax import normalizers
from rljax.distributions import Normal
from rljax.nn import ensemble
from rljax.nn.mlp import MLP
from tests.agents.offline_checks import SPECS
from tests.agents.samples import B, sample
from tests.agents.updates import quickly

SPEC = SPECS["box"]
CONFIG = cql.Config(batch_size=B, num_draws=3, actor_hidden_sizes=(8,), critic_hidden_sizes=(8,))
Q = jnp.array([[[1.0, 2.0]], [[0.0, 3.0]]])  # [E=2, B=1, M=2]
Q_OF_DATA = jnp.array([[0.5], [4.0]])
LOG_DENSITY = jnp.array([[-1.0, 0.5]])


def test_the_gap_by_hand_with_densities():
    gap = cql.conservative_gap(Q, Q_OF_DATA, LOG_DENSITY)
    # the dataset's action is in no sum
    expected = [np.log(np.exp(2) + np.exp(1.5)) - 0.5, np.log(np.exp(1) + np.exp(2.5)) - 4]
    np.testing.assert_allclose(gap[:, 0], expected, rtol=1e-6)


def test_the_gap_by_hand_without_densities():
    gap = cql.conservative_gap(Q, Q_OF_DATA, None)
    # the dataset's action is one of the sum, so no gap is below 0
    first, second = np.exp([1, 2, 0.5]).sum(), np.exp([0, 3, 4]).sum()
    np.testing.assert_allclose(gap[:, 0], [np.log(first) - 0.5, np.log(second) - 4], rtol=1e-6)


def test_with_densities_it_estimates_the_integral_over_the_box(key):
    # Q = 2a over [-1, 1]: ∫ exp = (e² - e⁻²) / 2, and a sum of M draws is M times that
    draws = jax.random.uniform(key, (1, 20_000), minval=-1.0)
    gap = cql.conservative_gap(
        2 * draws[None], jnp.zeros((1, 1)), jnp.full((1, 20_000), -np.log(2))
    )
    expected = np.log(20_000) + np.log((np.exp(2) - np.exp(-2)) / 2)
    assert gap[0, 0] == pytest.approx(expected, abs=0.02)
    # the same from draws of a Gaussian that hardly leaves the box, by its density
    normal = 0.3 * jax.random.normal(key, (1, 20_000))
    density = jax.scipy.stats.norm.logpdf(normal / 0.3) - np.log(0.3)
    inside = jnp.where(jnp.abs(normal) < 1, 2 * normal, -jnp.inf)
    gap = cql.conservative_gap(inside[None], jnp.zeros((1, 1)), density)
    assert gap[0, 0] == pytest.approx(expected, abs=0.1)


def test_the_gradient_of_the_gap_reaches_q_only():
    def total(*x):
        return cql.conservative_gap(*x).sum()

    slopes = jax.grad(total, argnums=(0, 1, 2))(Q, Q_OF_DATA, LOG_DENSITY)
    np.testing.assert_allclose(slopes[0], jax.nn.softmax(Q - LOG_DENSITY[None]), rtol=1e-5)
    np.testing.assert_array_equal(slopes[1], -1)
    assert not slopes[2].any()


@pytest.mark.parametrize(("log", "expected"), [(0.0, 1.0), (np.log(3), 3.0), (50.0, 1e6)])
def test_the_multiplier_is_positive_and_at_most_a_million(log, expected):
    assert cql.multiplier(jnp.float32(log)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("excess", "sign"), [(2.0, -1.0), (-2.0, 1.0)])
def test_the_multiplier_grows_while_gaps_exceed_their_target(excess, sign):
    excess = jnp.array([[excess], [excess / 2]])  # of two critics: 3 in all, or -3
    slope = jax.grad(lambda x: cql.multiplier_loss(x, excess, 5.0).sum())(jnp.float32(np.log(2)))
    assert slope == pytest.approx(
        sign * 0.5 * 2 * 5 * 3, rel=1e-5
    )  # a descent step raises it if < 0
    into_gap = jax.grad(lambda e: cql.multiplier_loss(jnp.float32(0.0), e, 5.0).sum())(excess)
    assert not into_gap.any()


def test_the_next_value_is_the_greatest_of_the_lesser_by_hand():
    q = jnp.array([[[1.0, 5.0, 3.0]], [[4.0, 0.0, 2.0]]])  # lesser: 1, 0, 2; greatest of each: 5, 4
    log_prob = jnp.array([[0.0, 1.0, -2.0]])
    np.testing.assert_allclose(cql.next_value(q, log_prob, 0.0), [2.0])
    np.testing.assert_allclose(
        cql.next_value(q, log_prob, 0.5), [3.0]
    )  # and the entropy of that one
    slope = jax.grad(lambda q: cql.next_value(q, log_prob, 0.5).sum())(q)
    assert not slope.any()


def test_densities_of_actions_on_the_edge_are_finite_and_so_is_their_gradient():
    unit = jnp.array([[1.0, -1.0], [0.3, 0.5]])

    def total(mean, log_scale):
        return cql.log_prob_of_data(Normal(mean, log_scale), unit).sum()

    zeros = jnp.zeros((2, 2))
    found = jax.value_and_grad(total, argnums=(0, 1))(zeros, zeros)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    # towards the data, whatever was drawn: arctanh(1 - 1e-5) = 6.1
    np.testing.assert_allclose(
        found[1][0], np.arctanh([[1 - 1e-5, 1e-5 - 1], [0.3, 0.5]]), rtol=1e-2
    )


def test_the_density_of_data_by_hand():
    got = cql.log_prob_of_data(
        Normal(jnp.array([[0.2]]), jnp.array([[np.log(0.5)]], jnp.float32)), jnp.array([[0.6]])
    )
    z = (np.arctanh(0.6) - 0.2) / 0.5
    expected = -0.5 * z**2 - np.log(0.5 * np.sqrt(2 * np.pi)) - np.log(1 - 0.36)
    np.testing.assert_allclose(got, [expected], rtol=1e-4)


@functools.cache
def _terms(config):
    networks = cql.networks_of(config, SPEC)
    return quickly(lambda *x: cql.terms(config, networks, *x))


def found(config, key, *, state=None, batch=None):
    """The terms of every row, on one device."""
    state = jax.jit(cql.make(config, SPEC).init)(key) if state is None else state
    batch = sample(SPEC, key) if batch is None else batch
    return state, batch, _terms(config)(state, state.params, batch, key)


def value(params, features, unit):
    """Q of one critic for one row and one action, from its parameters alone; float64."""
    params = jax.tree.map(lambda x: np.asarray(x, float), params["params"])
    x = np.concatenate([np.asarray(features, float), np.asarray(unit, float)])
    hidden = x @ params["hidden"]["Dense_0"]["kernel"] + params["hidden"]["Dense_0"]["bias"]
    last = params["ValueHead_0"]["Dense_0"]
    return float((np.maximum(hidden, 0) @ last["kernel"] + last["bias"])[0])


def policy(params, features):
    """Mean and deviation of the Gaussian before squashing, for one row."""
    params = jax.tree.map(lambda x: np.asarray(x, float), params["params"])
    torso, head = params["torso"]["Dense_0"], params["StateGaussianHead_0"]["Dense_0"]
    hidden = np.maximum(np.asarray(features, float) @ torso["kernel"] + torso["bias"], 0)
    mean, raw = np.split(hidden @ head["kernel"] + head["bias"], 2)
    return mean, np.exp(params["log_std_multiplier"] * raw + params["log_std_offset"])


def drawn(mean, scale, noise):
    """An action and its log-density, of a Gaussian squashed by tanh."""
    u = mean + scale * noise
    density = -0.5 * noise**2 - np.log(scale * np.sqrt(2 * np.pi)) - np.log(1 - np.tanh(u) ** 2)
    return np.tanh(u), density.sum()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"importance_sampling": False},
        {"max_target_backup": True, "backup_entropy": True, "initial_temperature": 0.3},
        {"gap_target": 0.7, "gap_min": 1.5, "gap_max": 2.5},
    ],
    ids=["plain", "all alike", "greatest", "learned"],
)
def test_terms_match_loops_over_rows_critics_and_draws(changes, key):
    config = dataclasses.replace(CONFIG, conservative_weight=2.0, **changes)
    agent = cql.make(config, SPEC)
    state = agent.init(key)._replace(target=agent.init(jax.random.fold_in(key, 1)).target)
    state, batch, got = found(config, key, state=state)
    normal_key, uniform_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(normal_key, (B, 8, 2)), float)  # 1 own, 3, 3 and 1
    anywhere = np.asarray(jax.random.uniform(uniform_key, (B, 3, 2), minval=-1.0), float)
    unit = (np.asarray(batch.action, float) - [0, 1]) / [1, 3]
    actor, alpha = state.params.actor, config.initial_temperature
    times = np.e if "gap_target" in changes else 1.0
    expected = {name: [] for name in ("loss/critic", "loss/conservative", "loss/actor")}
    for i in range(B):
        now, ahead = batch.observation.features[i], batch.next_observation.features[i]
        here = [drawn(*policy(actor, now), x) for x in noise[i, 1:4]]
        there = [drawn(*policy(actor, ahead), x) for x in noise[i, 4:8]]
        backed_up = there[:3] if config.max_target_backup else there[3:]
        critics, targets = (
            [jax.tree.map(lambda x, e=e: x[e], tree) for e in range(2)]
            for tree in (state.params.critic, state.target)
        )
        lesser = [min(value(c, ahead, a) for c in targets) for a, _ in backed_up]
        best = int(np.argmax(lesser))
        next_value = lesser[best] - config.backup_entropy * alpha * backed_up[best][1]
        goal = float(batch.reward[i]) + float(batch.discount[i]) * next_value
        td, excess = 0.0, 0.0
        draws = [(a, -2 * np.log(2)) for a in anywhere[i]] + here + there[:3]
        for critic in critics:
            q_of_data = value(critic, now, unit[i])
            td += (q_of_data - goal) ** 2  # no ½
            if config.importance_sampling:
                entries = [value(critic, now, a) - density for a, density in draws]
            else:
                entries = [value(critic, now, a) for a, _ in draws] + [q_of_data]
            gap = np.log(np.exp(entries).sum()) - q_of_data
            excess += np.clip(gap, config.gap_min, config.gap_max) - (config.gap_target or 0)
        own, log_prob = drawn(*policy(actor, now), noise[i, 0])
        expected["loss/critic"].append(td)
        expected["loss/conservative"].append(2.0 * times * excess)
        expected["loss/actor"].append(alpha * log_prob - min(value(c, now, own) for c in critics))
    for name, rows in expected.items():
        np.testing.assert_allclose(got[name], rows, rtol=1e-3, atol=1e-4)


def test_critics_value_all_draws_and_the_datas_action_in_one_pass(key, monkeypatch):
    asked, real = [], ensemble.apply

    def apply(network, params, features, unit):
        asked.append(unit.shape)
        return real(network, params, features, unit)

    monkeypatch.setattr(ensemble, "apply", apply)
    networks = cql.networks_of(CONFIG, SPEC)
    state = jax.eval_shape(cql.make(CONFIG, SPEC).init, key)
    rows = quickly(lambda *x: cql.terms(CONFIG, networks, *x))
    jax.eval_shape(rows, state, state.params, sample(SPEC, key), key)
    # the target's, three kinds of 3 draws beside what was done, the policy's own
    assert asked == [(B, 1, 2), (B, 3 * 3 + 1, 2), (B, 1, 2)]


@functools.cache
def reached(config):
    """Which parts of the parameters, and whether the target, have a gradient of each loss."""
    key, networks = jax.random.key(0), cql.networks_of(config, SPEC)
    state, batch = jax.jit(cql.make(config, SPEC).init)(key), sample(SPEC, key)

    def totals(params, target):
        rows = cql.terms(config, networks, state._replace(target=target), params, batch, key)
        return {name: row.sum() for name, row in rows.items() if name.startswith("loss/")}

    gradients = quickly(jax.jacrev(totals, argnums=(0, 1)))(state.params, state.target)
    assert not any(
        leaf.any() for of_loss in gradients.values() for leaf in jax.tree.leaves(of_loss[1])
    )
    return {
        name: {
            part
            for part, leaves in into_params._asdict().items()
            if any(leaf.any() for leaf in jax.tree.leaves(leaves))
        }
        for name, (into_params, _) in gradients.items()
    }


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        ("loss/critic", "critic"),
        ("loss/conservative", "critic"),
        ("loss/actor", "actor"),
        ("loss/temperature", "log_temperature"),
        ("loss/multiplier", "log_multiplier"),
    ],
)
def test_each_loss_teaches_its_own_part_and_nothing_else(loss, part):
    config = dataclasses.replace(CONFIG, gap_target=1.0, backup_entropy=True)
    assert reached(config)[loss] == {part}


def test_cloning_teaches_the_actor_alone():
    assert reached(dataclasses.replace(CONFIG, cloning_updates=1))["loss/actor"] == {"actor"}


def test_while_cloning_the_policy_learns_the_datas_actions(key):
    config = dataclasses.replace(CONFIG, cloning_updates=5, initial_temperature=0.2)
    state, batch, rows = found(config, key)
    unit = (np.asarray(batch.action, float) - [0, 1]) / [1, 3]
    noise = jax.random.normal(jax.random.split(key)[0], (B, 8, 2))[:, 0]
    for i in range(B):
        mean, scale = policy(state.params.actor, batch.observation.features[i])
        _, own = drawn(mean, scale, np.asarray(noise[i], float))
        u = np.arctanh(unit[i])
        _, of_data = drawn(mean, scale, (u - mean) / scale)
        assert rows["loss/actor"][i] == pytest.approx(0.2 * own - of_data, rel=1e-3, abs=1e-3)
    # other actions, another loss: the draws alone would not notice
    moved = batch._replace(action=0.5 * batch.action)
    assert (found(config, key, batch=moved)[2]["loss/actor"] != rows["loss/actor"]).all()
    later = state._replace(updates=jnp.int32(5))
    after = found(config, key, state=later)[2]["loss/actor"]
    plain = found(dataclasses.replace(config, cloning_updates=0), key)[2]["loss/actor"]
    np.testing.assert_allclose(after, plain, rtol=1e-5)


def test_without_weight_there_is_no_gap_in_the_loss(key):
    config = dataclasses.replace(CONFIG, conservative_weight=0.0, gap_target=1.0)
    _, _, rows = found(config, key)
    assert not rows["loss/conservative"].any()
    assert not rows["loss/multiplier"].any()
    assert rows["value/gap"].any()


@pytest.mark.parametrize(("offset", "log_std"), [(-30.0, -20.0), (0.5, 0.5), (30.0, 2.0)])
def test_log_deviations_are_scaled_moved_and_clipped(offset, log_std, key):
    actor = cql.Actor(MLP((8,)), 2, log_std_multiplier=0.0, log_std_offset=offset)
    (_, found), _ = actor.init_with_output(key, jnp.ones((1, 3)))
    np.testing.assert_allclose(found, [[log_std] * 2])


def test_a_state_holds_no_moments_unless_asked(key):
    assert cql.make(CONFIG, SPEC).init(key).observation is None
    asked = dataclasses.replace(CONFIG, normalize_observation=True)
    assert isinstance(cql.make(asked, SPEC).init(key).observation, normalizers.Moments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_updates": 0}, "total_updates"),
        ({"num_draws": 0}, "num_draws"),
        ({"conservative_weight": -1.0}, "conservative_weight"),
        ({"gap_min": 2.0, "gap_max": 1.0}, "gap_min=2.0 must be less"),
        ({"cloning_updates": -1}, "cloning_updates"),
        ({"initial_temperature": 0.0}, "initial_temperature"),
        ({"target_rate": 1.5}, "target_rate"),
        ({"actor_hidden_sizes": (0,)}, "actor_hidden_sizes"),
        ({"critic_hidden_sizes": (0,)}, "critic_hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        cql.validate(dataclasses.replace(cql.Config(), **changes))
