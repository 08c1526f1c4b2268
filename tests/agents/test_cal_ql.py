"""Cal-QL's bound by hand, for boxes and discrete actions, and where it leaves no gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import cql, cql_discrete
from rljax.offline.outlook import RETURN_TO_GO
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, quickly, same

Q = jnp.array([[[1.0, 2.0, -1.0]], [[0.0, 3.0, 4.0]]])  # [E=2, B=1, M=3]: one uniform, two of π
BY_POLICY = np.array([False, True, True])
BOX = cql.Config(batch_size=B, num_draws=3, actor_hidden_sizes=(8,), critic_hidden_sizes=(8,))
DISCRETE = cql_discrete.Config(batch_size=B, hidden_sizes=(8,))


def known(batch, return_to_go):
    return batch._replace(extras={RETURN_TO_GO: jnp.asarray(return_to_go, jnp.float32)})


def test_values_of_the_policys_draws_are_at_least_the_return_to_go_by_hand():
    bounded = cql.calibrated(Q, jnp.array([2.5]), BY_POLICY)
    np.testing.assert_array_equal(bounded, [[[1, 2.5, 2.5]], [[0, 3, 4]]])
    gap = cql.conservative_gap(bounded, jnp.array([[0.5], [0.5]]), jnp.zeros((1, 3)))
    expected = [np.log(np.exp(x).sum()) - 0.5 for x in ([1, 2.5, 2.5], [0, 3, 4])]
    np.testing.assert_allclose(gap[:, 0], expected, rtol=1e-6)


def test_what_the_bound_replaces_gets_no_gradient():
    def total(q, return_to_go):
        bounded = cql.calibrated(q, return_to_go, BY_POLICY)
        return cql.conservative_gap(bounded, jnp.zeros((2, 1)), jnp.zeros((1, 3))).sum()

    slope = jax.grad(total)(Q, jnp.array([2.5]))
    first, second = np.exp([1, 2.5, 2.5]), np.exp([0, 3, 4])
    expected = [[[first[0] / first.sum(), 0, 0]], [second / second.sum()]]
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_a_bound_that_is_not_known_changes_nothing():
    unknown = jnp.array([-math.inf])
    np.testing.assert_array_equal(cql.calibrated(Q, unknown, BY_POLICY), Q)
    slope = jax.grad(lambda q: (cql.calibrated(q, unknown, BY_POLICY) ** 2).sum())(Q)
    np.testing.assert_array_equal(slope, 2 * Q)


def test_discrete_values_are_bounded_in_the_sum_alone_by_hand():
    q, action, bound = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([0]), jnp.array([3.0])
    gap = cql_discrete.conservative_gap(q, action, None, bound)
    np.testing.assert_allclose(gap, [np.log(2 * np.exp(3) + np.exp(4)) - 1], rtol=1e-6)
    # the last is pushed down, the data's up; the bound holds the middle where it is
    slope = jax.grad(lambda q: cql_discrete.conservative_gap(q, action, None, bound).sum())(q)
    share = np.exp(4) / (2 * np.exp(3) + np.exp(4))
    np.testing.assert_allclose(slope, [[-1, 0, share]], rtol=1e-6)
    mask = jnp.array([[True, True, False]])
    gap = cql_discrete.conservative_gap(q, action, mask, bound)
    np.testing.assert_allclose(gap, [np.log(2 * np.exp(3)) - 1], rtol=1e-6)
    unknown = cql_discrete.conservative_gap(q, action, mask, jnp.array([-math.inf]))
    np.testing.assert_allclose(unknown, cql_discrete.conservative_gap(q, action, mask), rtol=1e-6)


def test_the_draws_of_the_policy_are_those_that_are_bounded_and_no_others(key):
    """The loss beside the same critics and draws, with every draw's value and density found out."""
    spec, plain = SPECS["box"], dataclasses.replace(BOX, conservative_weight=1.0)
    config = dataclasses.replace(plain, calibrated=True)
    networks, state = cql.networks_of(config, spec), cql.make(config, spec).init(key)
    batch = known(sample(spec, key), jnp.linspace(-0.1, 0.1, B))
    rows = quickly(lambda *x: cql.terms(config, networks, *x))(state, state.params, batch, key)
    normal_key, uniform_key = jax.random.split(key)
    noise = jax.random.normal(normal_key, (B, 8, 2))  # 1 own, 3, 3 and 1
    anywhere = jax.random.uniform(uniform_key, (B, 3, 2), minval=-1.0)
    here, here_density = cql.drawn(
        networks.look(state.params.actor, batch.observation), noise[:, 1:4]
    )
    ahead, ahead_density = cql.drawn(
        networks.look(state.params.actor, batch.next_observation), noise[:, 4:7]
    )
    q = [networks.q(state.params.critic, batch.observation, x) for x in (anywhere, here, ahead)]
    bound = batch.extras[RETURN_TO_GO][None, :, None]
    entries = jnp.concatenate(
        [
            q[0] + 2 * np.log(2),
            jnp.maximum(q[1], bound) - here_density[None],
            jnp.maximum(q[2], bound) - ahead_density[None],
        ],
        axis=-1,
    )
    unit = (batch.action - jnp.array([[0.0, 1.0]])) / jnp.array([[1.0, 3.0]])
    q_of_data = networks.q(state.params.critic, batch.observation, unit[:, None])[..., 0]
    gap = (jax.nn.logsumexp(entries, axis=-1) - q_of_data).sum(0)
    np.testing.assert_allclose(rows["loss/conservative"], gap, rtol=1e-4, atol=1e-4)
    rate = jnp.concatenate(q[1:], axis=-1) < bound
    np.testing.assert_allclose(rows["value/bound_rate"], rate.mean((0, 2)), atol=1e-6)
    assert 0 < rate.mean() < 1


@pytest.mark.parametrize(
    ("module", "base", "kind"), [(cql, BOX, "box"), (cql_discrete, DISCRETE, "discrete")]
)
def test_it_is_cql_where_nothing_is_known_and_else_it_is_not(module, base, kind, key):
    spec = SPECS[kind]
    plain = module.make(base, spec)
    agent = module.make(dataclasses.replace(base, calibrated=True), spec)
    assert (plain.stores, agent.stores) == ((), (RETURN_TO_GO,))
    batch, state = checks.batch_of(spec, key), plain.init(key)
    expected, metrics, _ = learn(plain, state, batch, key)
    assert "value/bound_rate" not in metrics
    got, _, _ = learn(agent, state, known(batch, jnp.full(B, -math.inf)), key)
    same(got, expected, rtol=1e-5, atol=1e-7)
    high, _, _ = learn(agent, state, known(batch, jnp.full(B, 5.0)), key)
    assert differs(high.params, expected.params)


def test_returns_to_go_are_scaled_with_the_rewards(key):
    config = dataclasses.replace(BOX, calibrated=True)
    plain = cql.make(config, SPECS["box"])
    scaling = cql.make(dataclasses.replace(config, normalize_reward=True), SPECS["box"])
    batch = checks.batch_of(SPECS["box"], key)
    state = scaling.init(key)._replace(reward_scale=jnp.float32(0.5))
    one, metrics, _ = learn(scaling, state, known(batch, jnp.linspace(-1, 1, B)), key)
    by_hand = known(batch._replace(reward=0.5 * batch.reward), 0.5 * jnp.linspace(-1, 1, B))
    two, metrics_two, _ = learn(plain, plain.init(key), by_hand, key)
    same(metrics, metrics_two, rtol=1e-5, atol=1e-6)  # Adam's first step tells little
    same(one.params, two.params, rtol=1e-5, atol=1e-6)
