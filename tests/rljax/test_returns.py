import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import returns

GAMMA, LAMBDA = 0.9, 0.8


def column(*xs, dtype=jnp.float32):
    """One environment: `[T]` numbers as `[T, 1]`."""
    return jnp.asarray(xs, dtype)[:, None]


def gae(reward, discount, valid, value, last_value, lambda_=LAMBDA):
    """One environment in, one list out."""
    advantage = returns.gae(
        column(*reward),
        column(*discount),
        column(*valid, dtype=bool),
        column(*value),
        jnp.asarray([last_value], jnp.float32),
        GAMMA,
        lambda_,
    )
    return np.asarray(advantage)[:, 0]


# Two episodes in one rollout: rows 0 and 1, which ends by termination, and 3 and 4, which goes on;
# row 2 is the autoreset's.
SPLIT = {
    "reward": [1.0, 2.0, 0.0, 3.0, 4.0],
    "discount": [1.0, 0.0, 1.0, 1.0, 1.0],
    "valid": [True, True, False, True, True],
    "value": [0.5, 0.25, 7.0, 1.0, 2.0],
    "last_value": 3.0,
}


def test_linear_recurrence_by_hand():
    add, multiply = column(1.0, 2.0, 3.0), column(9.0, 0.5, 2.0)
    forward = returns.linear_recurrence(add, multiply)
    # 1, 2 + 0.5·1, 3 + 2·2.5: the first factor meets nothing
    np.testing.assert_allclose(forward[:, 0], [1.0, 2.5, 8.0])
    backward = returns.linear_recurrence(add, multiply, reverse=True)
    # from the end: 3, 2 + 0.5·3, 1 + 9·3.5
    np.testing.assert_allclose(backward[:, 0], [32.5, 3.5, 3.0])


def test_gae_by_hand():
    # No ending. δ = [1 + 0.9·0.25 - 0.5, 2 + 0.9·3 - 0.25] = [0.725, 4.45]; γλ = 0.72
    # A_1 = 4.45; A_0 = 0.725 + 0.72·4.45 = 3.929
    advantage = gae([1.0, 2.0], [1.0, 1.0], [True, True], [0.5, 0.25], 3.0)
    np.testing.assert_allclose(advantage, [3.929, 4.45], rtol=1e-6)


def test_gae_over_an_episode_split_by_hand():
    # δ_0 = 1 + 0.9·0.25 - 0.5 = 0.725;  δ_1 = 2 - 0.25 = 1.75 (terminated: no bootstrap, no trace)
    # A_0 = 0.725 + 0.72·1.75 = 1.985
    # δ_3 = 3 + 0.9·2 - 1 = 3.8;  δ_4 = 4 + 0.9·3 - 2 = 4.7;  A_3 = 3.8 + 0.72·4.7 = 7.184
    np.testing.assert_allclose(gae(**SPLIT), [1.985, 1.75, 0.0, 7.184, 4.7], rtol=1e-6)


def test_gae_at_lambda_0_is_the_td_error():
    # the δ of the test above, on either side of the split
    np.testing.assert_allclose(gae(**SPLIT, lambda_=0.0), [0.725, 1.75, 0, 3.8, 4.7], rtol=1e-6)


def test_gae_at_lambda_1_is_monte_carlo_minus_value_on_both_sides_of_a_split():
    first, second = [1 + 0.9 * 2, 2], [3 + 0.9 * 4 + 0.81 * 3, 4 + 0.9 * 3]  # returns, row by row
    assert first
    assert second
    expected = np.array([*first, 7.0, *second]) - SPLIT["value"]  # 7 - 7: the invalid row gets 0
    np.testing.assert_allclose(gae(**SPLIT, lambda_=1.0), expected, rtol=1e-6)


def test_a_truncated_row_bootstraps_from_the_next_row_and_a_terminated_one_does_not():
    truncated = {**SPLIT, "discount": [1.0, 1.0, 1.0, 1.0, 1.0]}
    # δ_1 = 2 + 0.9·7 - 0.25 = 8.05 with V of the true final observation, 7, in row 2;
    # cut behind it: A_1 = δ_1; A_0 = 0.725 + 0.72·8.05 = 6.521
    np.testing.assert_allclose(gae(**truncated), [6.521, 8.05, 0.0, 7.184, 4.7], rtol=1e-6)
    other = {**truncated, "value": [0.5, 0.25, 8.0, 1.0, 2.0]}
    # one more unit of V there is worth γ = 0.9 in row 1, γ·γλ = 0.648 in row 0, nothing elsewhere
    np.testing.assert_allclose(gae(**other) - gae(**truncated), [0.648, 0.9, 0, 0, 0], atol=2e-6)


@pytest.mark.parametrize("discount", [0.0, 1.0], ids=["terminated", "truncated"])
def test_the_invalid_row_leaks_nothing_in_either_direction(discount):
    split = {**SPLIT, "discount": [1.0, discount, 1.0, 1.0, 1.0]}
    junk = {**split, "reward": [1.0, 2.0, 1e6, 3.0, 4.0]}
    np.testing.assert_array_equal(gae(**junk), gae(**split))
    # what comes after the split reaches row 2 at most
    later = {**split, "reward": [1.0, 2.0, 0.0, -50.0, 4.0], "last_value": 90.0}
    np.testing.assert_array_equal(gae(**later)[:3], gae(**split)[:3])
    # what comes before it does not reach the rows behind
    earlier = {**split, "reward": [-50.0, 90.0, 0.0, 3.0, 4.0]}
    np.testing.assert_array_equal(gae(**earlier)[2:], gae(**split)[2:])


def test_value_in_the_row_behind_a_termination_counts_for_nothing():
    other = {**SPLIT, "value": [0.5, 0.25, -1e6, 1.0, 2.0]}
    np.testing.assert_array_equal(gae(**other), gae(**SPLIT))


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (1.0, 2 + 0.9 * 3 - 0.25),  # truncated, or going on: the last value is the bootstrap
        (0.0, 2 - 0.25),  # terminated in the last row
    ],
)
def test_gae_at_the_rollout_edge(discount, expected):
    # row 0 is the reset behind an episode that ended with the rollout before
    advantage = gae([0.0, 2.0], [1.0, discount], [False, True], [5.0, 0.25], 3.0)
    np.testing.assert_allclose(advantage, [0.0, expected], rtol=1e-6)


STEP, TERMINAL, TRUNCATED, RESET = range(4)


def legal_patterns(length):
    """Every sequence of rows that autoreset can produce: an ending is followed by one reset row."""
    for rows in itertools.product(range(4), repeat=length):
        ends = [row in (TERMINAL, TRUNCATED) for row in rows]
        resets = [row == RESET for row in rows]
        if resets[1:] == ends[:-1]:  # the first row may be a reset: of the rollout before
            yield rows


def slow_gae(rows, reward, value, gamma, lambda_):
    """Σ_l (γλ)^l δ_{t+l} to the end of the episode or of the rollout, straight from eq. 16."""
    length = len(rows)
    advantage = np.zeros(length)
    for t in range(length):
        if rows[t] == RESET:
            continue
        weight = 1.0
        for k in range(t, length):
            bootstrap = 0.0 if rows[k] == TERMINAL else gamma * value[k + 1]
            advantage[t] += weight * (reward[k] + bootstrap - value[k])
            weight *= gamma * lambda_
            if rows[k] in (TERMINAL, TRUNCATED):
                break
    return advantage


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.95)])
def test_gae_equals_the_slow_sum_on_every_legal_pattern(length, gamma, lambda_):
    patterns = list(legal_patterns(length))
    # from a running episode f(n) = f(n-1) + 2·f(n-2): 3, 5, 11, 21, 43;
    # behind a reset row f(n-1): 1, 3, 5, 11, 21
    assert len(patterns) == {1: 4, 2: 8, 3: 16, 4: 32, 5: 64}[length]
    kinds = np.array(patterns).T  # [T, B]
    rng = np.random.default_rng(length)
    reward = np.where(kinds == RESET, 0.0, rng.normal(size=kinds.shape))
    value = rng.normal(size=(length + 1, kinds.shape[1]))
    advantage = returns.gae(
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(kinds != TERMINAL, jnp.float32),
        jnp.asarray(kinds != RESET),
        jnp.asarray(value[:-1], jnp.float32),
        jnp.asarray(value[-1], jnp.float32),
        gamma,
        lambda_,
    )
    for b, rows in enumerate(patterns):
        expected = slow_gae(rows, reward[:, b], value[:, b], gamma, lambda_)
        np.testing.assert_allclose(advantage[:, b], expected, atol=1e-5, err_msg=str(rows))


def test_gae_refuses_one_row_of_values_for_all_times():
    rows = jnp.ones((3, 2))
    with pytest.raises(TypeError):  # [1, B] would broadcast over time in silence
        returns.gae(rows, rows, rows > 0, rows[:1], rows[0], GAMMA, LAMBDA)


def test_running_discounted_sum_by_hand():
    sums = returns.running_discounted_sum(
        column(1.0, 2.0, 0.0, 3.0),
        column(True, True, False, True, dtype=bool),
        jnp.asarray([10.0]),
        0.5,
    )
    # 1 + 0.5·10, 2 + 0.5·6, restarted, 3 + 0.5·0
    np.testing.assert_allclose(sums[:, 0], [6.0, 5.0, 0.0, 3.0])


def test_running_discounted_sum_forgets_an_episode_that_ended_with_the_rollout_before():
    sums = returns.running_discounted_sum(
        column(0.0, 2.0), column(False, True, dtype=bool), jnp.asarray([10.0]), 0.5
    )
    np.testing.assert_allclose(sums[:, 0], [0.0, 2.0])


def test_running_discounted_sum_of_two_halves_equals_that_of_the_whole(key):
    reward = jax.random.normal(key, (6, 3))
    valid = jnp.ones((6, 3), bool).at[2, 0].set(False).at[3, 1].set(False)
    reward = jnp.where(valid, reward, 0.0)
    before = jnp.array([1.0, -2.0, 3.0])
    whole = returns.running_discounted_sum(reward, valid, before, GAMMA)
    first = returns.running_discounted_sum(reward[:3], valid[:3], before, GAMMA)
    second = returns.running_discounted_sum(reward[3:], valid[3:], first[-1], GAMMA)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, rtol=1e-5)
