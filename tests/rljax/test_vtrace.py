"""V-trace by hand, at its limits, against its definition, and at its fixed point."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import returns
from rljax.returns import VTraceConstants
from tests.rljax.test_returns import RESET, TERMINAL, TRUNCATED, column, legal_patterns

INFINITE = {"rho_bound": math.inf, "c_bound": math.inf, "policy_rho_bound": math.inf}


def vtrace(ratio, reward, discount, valid, value, last_value, **constants):
    """One environment in; targets and advantages out, each a list."""
    target, advantage = returns.vtrace(
        jnp.log(column(*ratio)),
        column(*reward),
        column(*discount),
        column(*valid, dtype=bool),
        column(*value),
        jnp.asarray([last_value], jnp.float32),
        VTraceConstants(**{"gamma": 0.5, **constants}),
    )
    return np.asarray(target)[:, 0], np.asarray(advantage)[:, 0]


TWO = {
    "ratio": [2.0, 0.5],
    "reward": [1.0, 2.0],
    "discount": [1.0, 1.0],
    "valid": [True, True],
    "value": [1.0, 3.0],
    "last_value": 4.0,
}


def test_two_steps_by_hand():
    # γ = ½. TD errors: 1 + ½·3 - 1 = 1.5 and 2 + ½·4 - 3 = 1. ρ = c = [1, 0.5]
    # v_1 = 3 + 0.5·1 = 3.5;  v_0 = 1 + 1·1.5 + ½·1·(3.5 - 3) = 2.75
    # A_1 = 0.5 (2 + ½·4 - 3) = 0.5;  A_0 = 1 (1 + ½·3.5 - 1) = 1.75
    target, advantage = vtrace(**TWO)
    np.testing.assert_allclose(target, [2.75, 3.5], rtol=1e-6)
    np.testing.assert_allclose(advantage, [1.75, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("constants", "target", "advantage"),
    [
        # ρ̄: the TD error of row 0 counts double: v_0 = 1 + 2·1.5 + ½·1·0.5
        ({"rho_bound": 3.0}, [4.25, 3.5], [1.75, 0.5]),
        # c̄: the trace counts double: v_0 = 1 + 1·1.5 + ½·2·0.5
        ({"c_bound": 3.0}, [3.0, 3.5], [1.75, 0.5]),
        # ρ̄ of the policy alone: A_0 = 2 (1 + ½·3.5 - 1)
        ({"policy_rho_bound": 3.0}, [2.75, 3.5], [3.5, 0.5]),
        # v_1 = 3 + ¼;  v_0 = 1 + ¼·1.5 + ½·1·¼;  A_0 = 1 (1 + ½·3.25 - 1)
        ({"rho_bound": 0.25}, [1.5, 3.25], [1.625, 0.5]),
        # λ = ½: v_0 = 1 + 1.5 + ½·½·0.5;  A_0 = 1 + ½ (3 + ½·0.5) - 1
        ({"lambda_": 0.5}, [2.625, 3.5], [1.625, 0.5]),
        # λ = 0: one step, v = V + ρδ, A = ρδ
        ({"lambda_": 0.0}, [2.5, 3.5], [1.5, 0.5]),
    ],
)
def test_each_constant_does_its_own_part(constants, target, advantage):
    got = vtrace(**TWO, **constants)
    np.testing.assert_allclose(got[0], target, rtol=1e-6)
    np.testing.assert_allclose(got[1], advantage, rtol=1e-6)


# Rows 0 and 1 are an episode, row 2 is the autoreset's, row 3 starts the next.
SPLIT = {
    "ratio": [1.0, 1.0, 1.0, 1.0],
    "reward": [1.0, 2.0, 0.0, 3.0],
    "valid": [True, True, False, True],
    "value": [1.0, 3.0, 8.0, 2.0],
    "last_value": 4.0,
}


def test_a_terminated_row_has_no_successor():
    # v_1 = 2;  v_0 = 1 + ½·2 = 2;  v_3 = 3 + ½·4 = 5
    target, advantage = vtrace(**SPLIT, discount=[1.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(target, [2.0, 2.0, 8.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(advantage, [1.0, -1.0, 0.0, 3.0], rtol=1e-6)


def test_a_truncated_row_bootstraps_from_v_of_the_next_row_and_from_nothing_behind_it():
    discount = [1.0, 1.0, 1.0, 1.0]
    # v_1 = 2 + ½·8 = 6;  v_0 = 1 + ½·6 = 4
    target, advantage = vtrace(**SPLIT, discount=discount)
    np.testing.assert_allclose(target, [4.0, 6.0, 8.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(advantage, [3.0, 3.0, 0.0, 3.0], rtol=1e-6)
    junk = {**SPLIT, "reward": [1.0, 2.0, 1e6, -1e6], "ratio": [1.0, 1.0, 77.0, 1.0]}
    other, _ = vtrace(**junk, discount=discount)
    np.testing.assert_array_equal(other[:3], target[:3])


def slow_vtrace(rows, ratio, reward, value, constants):
    """Eq. 1: V_t + Σ_s γ^{s-t} (Π c) ρ_s δ_s to the end of the episode or of the rollout."""
    gamma, lambda_, rho_bound, c_bound, policy_rho_bound = constants
    length = len(rows)
    target, advantage = value[:-1].copy(), np.zeros(length)
    for t in range(length):
        if rows[t] == RESET:
            continue
        weight = 1.0  # γ^{s-t} Π_{i=t}^{s-1} c_i
        for s in range(t, length):
            bootstrap = 0.0 if rows[s] == TERMINAL else gamma * value[s + 1]
            target[t] += weight * min(rho_bound, ratio[s]) * (reward[s] + bootstrap - value[s])
            weight *= gamma * lambda_ * min(c_bound, ratio[s])
            if rows[s] in (TERMINAL, TRUNCATED):
                break
    for t in range(length):
        if rows[t] == RESET:
            continue
        successor = value[t + 1]
        if t + 1 < length and rows[t] != TRUNCATED:
            successor = (1 - lambda_) * value[t + 1] + lambda_ * target[t + 1]
        q = reward[t] + (0.0 if rows[t] == TERMINAL else gamma * successor)
        advantage[t] = min(policy_rho_bound, ratio[t]) * (q - value[t])
    return target, advantage


def every_pattern(length):
    """All legal patterns side by side: kinds `[T, B]`, and the random rest of a rollout."""
    kinds = np.array(list(legal_patterns(length))).T
    rng = np.random.default_rng(length)
    return (
        kinds,
        rng.normal(size=kinds.shape),  # log ratio
        np.where(kinds == RESET, 0.0, rng.normal(size=kinds.shape)),  # reward
        rng.normal(size=(length + 1, kinds.shape[1])),  # value
    )


def of_pattern(kinds, log_ratio, reward, value, constants):
    return returns.vtrace(
        jnp.asarray(log_ratio, jnp.float32),
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(kinds != TERMINAL, jnp.float32),
        jnp.asarray(kinds != RESET),
        jnp.asarray(value[:-1], jnp.float32),
        jnp.asarray(value[-1], jnp.float32),
        constants,
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "constants",
    [
        VTraceConstants(0.9),
        VTraceConstants(0.9, 0.8, 2.0, 0.7, 1.5),
        VTraceConstants(1.0, 1.0, math.inf, math.inf, math.inf),
        VTraceConstants(0.99, 0.0, 0.5, 0.5, 0.5),
        VTraceConstants(0.0),
    ],
)
def test_vtrace_equals_the_sum_of_products_on_every_legal_pattern(length, constants):
    kinds, log_ratio, reward, value = every_pattern(length)
    got = of_pattern(kinds, log_ratio, reward, value, constants)
    for b in range(kinds.shape[1]):
        target, advantage = slow_vtrace(
            kinds[:, b], np.exp(log_ratio[:, b]), reward[:, b], value[:, b], constants
        )
        np.testing.assert_allclose(got.target[:, b], target, atol=2e-5, err_msg=str(kinds[:, b]))
        np.testing.assert_allclose(got.advantage[:, b], advantage, atol=2e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_on_policy_it_is_gae(lambda_):
    kinds, log_ratio, reward, value = every_pattern(5)
    got = of_pattern(kinds, 0 * log_ratio, reward, value, VTraceConstants(0.9, lambda_))
    advantage = returns.gae(
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(kinds != TERMINAL, jnp.float32),
        jnp.asarray(kinds != RESET),
        jnp.asarray(value[:-1], jnp.float32),
        jnp.asarray(value[-1], jnp.float32),
        0.9,
        lambda_,
    )
    np.testing.assert_allclose(got.advantage, advantage, atol=1e-5)
    np.testing.assert_allclose(got.target, advantage + value[:-1], atol=1e-5)


def test_on_policy_at_lambda_1_targets_are_bootstrapped_n_step_returns():
    # 1 + ½·2 + ¼·3 + ⅛·4;  2 + ½·3 + ¼·4;  3 + ½·4: no V but the last one counts
    for value in ([0.0, 0.0, 0.0], [7.0, -9.0, 5.0]):
        target, _ = vtrace([1.0] * 3, [1.0, 2.0, 3.0], [1.0] * 3, [True] * 3, value, 4.0)
        np.testing.assert_allclose(target, [3.25, 4.5, 5.0], rtol=1e-5)


def test_without_bounds_it_is_the_importance_weighted_return():
    # With V = 0: v_0 = ρ_0 r_0 + γ ρ_0 ρ_1 r_1 = 2·1 + ½·2·3·2
    target, advantage = vtrace(
        [2.0, 3.0], [1.0, 2.0], [1.0, 0.0], [True, True], [0.0, 0.0], 9.0, **INFINITE
    )
    np.testing.assert_allclose(target, [8.0, 6.0], rtol=1e-6)
    np.testing.assert_allclose(advantage, [8.0, 6.0], rtol=1e-6)  # ρ_0 (1 + ½·6)


def test_bounds_of_0_learn_nothing():
    target, advantage = vtrace(**TWO, rho_bound=0.0, c_bound=0.0, policy_rho_bound=0.0)
    np.testing.assert_array_equal(target, TWO["value"])
    np.testing.assert_array_equal(advantage, [0.0, 0.0])


@pytest.mark.parametrize("bound", [1.0, math.inf])
def test_a_ratio_beyond_float32_stays_a_number(bound):
    constants = {"rho_bound": bound, "c_bound": bound, "policy_rho_bound": bound}
    huge = jnp.full((2, 1), 500.0)
    rows = jnp.ones((2, 1))
    got = returns.vtrace(
        huge, 0 * rows, rows, rows > 0, 0 * rows, 0 * rows[0], VTraceConstants(0.9, **constants)
    )
    np.testing.assert_array_equal(got.target, 0 * rows)  # every TD error is 0


def test_no_gradient_flows_through_targets_and_advantages():
    def total(log_ratio, value, last_value):
        got = returns.vtrace(
            log_ratio, rows, rows, rows > 0, value, last_value, VTraceConstants(0.9, **INFINITE)
        )
        return jnp.sum(got.target) + jnp.sum(got.advantage)

    rows = jnp.ones((3, 2))
    for gradient in jax.grad(total, argnums=(0, 1, 2))(0.1 * rows, 2 * rows, rows[0]):
        np.testing.assert_array_equal(gradient, 0 * gradient)


def test_refuses_one_row_of_ratios_for_all_times():
    rows = jnp.ones((3, 2))
    with pytest.raises(TypeError):  # [1, B] would broadcast over time in silence
        returns.vtrace(rows[:1], rows, rows, rows > 0, rows, rows[0], VTraceConstants(0.9))


# A bandit that never ends: one state, rewards by action, so that V^π = Σ π r / (1 - γ).
MU, PI, REWARD = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5]), np.array([1.0, -2.0, 3.0])


def expected_targets(value, length, **constants):
    """E_μ[v_0], exactly: over every sequence of `length` actions, by its probability."""
    actions = np.array(list(itertools.product(range(3), repeat=length))).T  # [T, B]
    rows = jnp.ones(actions.shape, jnp.float32)
    got = returns.vtrace(
        jnp.asarray(np.log(PI / MU)[actions], jnp.float32),
        jnp.asarray(REWARD[actions], jnp.float32),
        rows,
        rows > 0,
        value * rows,
        value * rows[0],
        VTraceConstants(0.9, **constants),
    )
    return float(np.sum(np.prod(MU[actions], axis=0) * np.asarray(got.target[0], float)))


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize(
    ("rho_bound", "value"),
    [
        (math.inf, 11.0),  # V^π = (0.2·1 - 0.3·2 + 0.5·3) / 0.1
        (1.0, 2.0),  # π_1 ∝ min(μ, π) = (0.2, 0.2, 0.1): (0.2 - 0.4 + 0.3) / 0.5 / 0.1
        (0.1, 6.0),  # π_0.1 ∝ 0.1 μ: that is V^μ, which a learner without ratios would find
    ],
)
def test_the_fixed_point_is_the_value_of_the_policy_between_mu_and_pi(length, rho_bound, value):
    # eq. 3: π_ρ̄ ∝ min(ρ̄ μ, π). c̄ does not enter.
    for c_bound in (0.3, 1.0):
        expected = expected_targets(value, length, rho_bound=rho_bound, c_bound=c_bound)
        assert expected == pytest.approx(value, rel=2e-5)
        # and it attracts: from V = v + 1 the target moves back
        assert expected_targets(value + 1, length, rho_bound=rho_bound, c_bound=c_bound) < value + 1


def test_ratios_are_of_the_whole_trace_and_not_of_one_step():
    # at ρ̄ = c̄ = ∞ from V = 0: Σ_k γ^k E_π[r] over 3 steps = 1.1 (1 + 0.9 + 0.81)
    expected = expected_targets(0.0, 3, rho_bound=math.inf, c_bound=math.inf)
    assert expected == pytest.approx(1.1 * 2.71, rel=1e-5)
