"""What is accepted as logged episodes, and what their ends mean."""

import numpy as np
import pytest

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories, from_episodes

TWO = [np.array([1.0, 2.0]), np.array([3.0])]
LOG_RATIOS = [np.log([2.0, 0.5]), np.log([4.0])]


def test_weights_stay_behind_an_end_and_rewards_are_0():
    logged = from_episodes(TWO, LOG_RATIOS, 0.5)
    np.testing.assert_array_equal(logged.reward, [[1, 2], [3, 0]])
    np.testing.assert_array_equal(logged.valid, [[True, True], [True, False]])
    rho = np.exp(trajectories_lib.log_weights(logged))
    np.testing.assert_allclose(rho, [[2, 1], [4, 4]])  # 2, 2·½; 4 and still 4
    np.testing.assert_allclose(trajectories_lib.returns(logged), [2, 3])  # 1 + ½·2; 3


def test_what_lies_in_the_padding_counts_for_nothing():
    valid = np.array([[True, True], [True, False]])
    reward = np.array([[1.0, 2.0], [3.0, np.nan]])
    log_ratio = np.array([[0.0, 0.0], [0.0, np.inf]])
    logged = Trajectories(reward, log_ratio, valid, 1.0, q=reward, v=reward)
    for column in (logged.reward, logged.log_ratio, logged.q, logged.v):
        assert column[1, 1] == 0
    assert np.isnan(reward[1, 1])  # the caller's array is left alone


def test_a_time_limit_adds_the_discounted_value_of_what_follows():
    logged = from_episodes(TWO, LOG_RATIOS, 0.5, last_value=np.array([8.0, 10.0]))
    np.testing.assert_allclose(trajectories_lib.rewards(logged), [[1, 2 + 4], [3 + 5, 0]])
    np.testing.assert_allclose(trajectories_lib.returns(logged), [1 + 0.5 * 6, 8])


@pytest.mark.parametrize(("discount", "expected"), [(0.0, [1, 0, 0]), (1.0, [1, 1, 1])])
def test_discounts_at_their_limits(discount, expected):
    logged = from_episodes([np.zeros(3)], [np.zeros(3)], discount)
    np.testing.assert_array_equal(np.exp(trajectories_lib.log_discounts(logged)), expected)


ONES = np.ones((2, 2))
ALL = np.ones((2, 2), bool)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reward": np.ones((2, 3))}, r"reward must have the shape \(2, 2\), not \(2, 3\)"),
        ({"last_value": np.ones(3)}, r"last_value must have the shape \(2,\)"),
        ({"reward": np.array([[1.0, np.nan], [1.0, 1.0]])}, "reward of episode 0, step 1 is nan"),
        ({"q": np.array([[1.0, 1.0], [np.inf, 1.0]])}, "q of episode 1, step 0 is inf"),
        ({"log_ratio": np.full((2, 2), np.nan)}, "log_ratio of episode 0, step 0 is nan"),
        ({"last_value": np.array([0.0, np.nan])}, "last_value of episode 1 is nan"),
        ({"valid": np.array([[True, True], [False, True]])}, "episode 1 has no first step"),
        ({"valid": np.array([[True, True], [False, False]])}, "episode 1 has no first step"),
        ({"discount": 1.5}, r"discount must lie in \[0, 1\], not 1.5"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change, sentence):
    fields = {"reward": ONES, "log_ratio": ONES, "valid": ALL, "discount": 0.9}
    with pytest.raises(ValueError, match=sentence):
        Trajectories(**(fields | change))


def test_a_gap_is_refused():
    valid = np.array([[True, False, True]])
    with pytest.raises(ValueError, match="steps of episode 0 have a gap"):
        Trajectories(np.ones((1, 3)), np.ones((1, 3)), valid, 0.9)


def test_episodes_whose_columns_differ_are_refused():
    with pytest.raises(ValueError, match="log_ratio must have one number for each"):
        from_episodes(TWO, LOG_RATIOS[::-1], 0.9)
    with pytest.raises(ValueError, match="there is no episode"):
        from_episodes([], [], 0.9)


def test_a_logged_action_cannot_have_had_no_chance():
    logged = from_episodes(TWO, [np.array([0.0, np.inf]), np.zeros(1)], 0.9)
    with pytest.raises(ValueError, match="episode 0 has an action in step 1 whose logged prop"):
        trajectories_lib.log_weights(logged)
