"""Steps weighed by visits: by hand, and where they must be what is known otherwise."""

import numpy as np
import pytest

from rljax.ope import importance, table, visits, weighted
from rljax.ope.trajectories import Trajectories, from_episodes

# Action 0 ends in place A; action 1 leads from A to B and pays 1; in B it pays 4, and all ends.
# The log takes either by ½, π takes 1 by 0.8: ρ = 0.4, 1.6. γ = ½. Steps of A, B: 4 and 2 of 6.
LOGGED = from_episodes(
    [np.array([0.0]), np.array([0.0]), np.array([1.0, 0.0]), np.array([1.0, 4.0])],
    [np.log([0.4]), np.log([0.4]), np.log([1.6, 0.4]), np.log([1.6, 1.6])],
    0.5,
)
# d_π = 1, ½·0.8; over 4/6, 2/6
RIGHT = np.tile([1.5, 1.2], (4, 1))


def test_the_value_of_a_walk_by_hand():
    # 0.8·1 + ½·0.8·0.8·4 = 2.08
    means = visits.marginalized_ratios(LOGGED, RIGHT)
    assert weighted.estimate(means) == pytest.approx(2.08)
    # w ρ (1 - γ c): 2 of 1.5·0.4, 2 of 1.5·1.6·½, 1.2·0.4, 1.2·1.6: 6 in all, of 6 steps
    assert visits.mass(LOGGED, RIGHT) == pytest.approx(1.0)


def test_a_factor_of_all_ratios_changes_the_mass_and_not_the_value():
    less = 0.25 * RIGHT
    found = weighted.estimate(visits.marginalized_ratios(LOGGED, less))
    assert found == pytest.approx(2.08)
    assert visits.mass(LOGGED, less) == pytest.approx(0.25)


def test_behind_a_time_limit_stands_the_models_word():
    """Pays 1 for ever, and was cut after 3 steps: 1.75 and γ³ of what follows."""
    ones, all_valid = np.ones((2, 3)), np.ones((2, 3), bool)
    right = np.tile([1.0, 0.5, 0.25], (2, 1))
    for last_value, expected in ((None, 1.75), (np.full(2, 2.0), 2.0)):
        logged = Trajectories(ones, 0 * ones, all_valid, 0.5, last_value=last_value)
        found = weighted.estimate(visits.marginalized_ratios(logged, right))
        assert found == pytest.approx(expected)


def test_where_each_state_is_seen_once_it_is_per_decision_importance_sampling():
    """There w is γ^t and the product of the ratios before: no more is known of any state."""
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(size=(50, 4))
    log_ratio -= np.log(np.exp(log_ratio).mean(axis=0))[None]
    logged = Trajectories(rng.normal(size=(50, 4)), log_ratio, np.ones((50, 4), bool), 0.9)
    before = np.cumsum(log_ratio, axis=1) - log_ratio
    own = (0.9 ** np.arange(4))[None] * np.exp(before)
    means = visits.marginalized_ratios(logged, own)
    left = np.exp(means.log_weight).mean()  # PDIS takes this for the 1 that it is on average
    expected = weighted.estimate(importance.per_decision(logged))
    assert weighted.estimate(means) * left == pytest.approx(expected, rel=1e-9)


def test_what_is_no_ratio_is_refused():
    with pytest.raises(ValueError, match="negative"):
        visits.marginalized_ratios(LOGGED, -RIGHT)
    never = Trajectories(LOGGED.reward, np.full((4, 2), np.inf), LOGGED.valid, 0.5)
    with pytest.raises(ValueError, match="propensity is 0"):
        visits.marginalized_ratios(never, RIGHT)
    undiscounted = Trajectories(LOGGED.reward, LOGGED.log_ratio, LOGGED.valid, 1.0)
    with pytest.raises(ValueError, match="below 1"):
        visits.mass(undiscounted, RIGHT)


def test_the_table_has_no_interval_for_it_and_compares_it():
    rng = np.random.default_rng(0)
    reward = 1 + 0.1 * rng.normal(size=(200, 3))
    logged = Trajectories(reward, np.zeros((200, 3)), np.ones((200, 3), bool), 0.5)
    right = np.tile([1.0, 0.5, 0.25], (200, 1))
    bootstrap = table.Bootstrap(resamples=100)
    report = table.evaluate(logged, visits=right, bootstrap=bootstrap)
    row = report.estimates[-1]
    assert (row.name, row.low) == ("dice", None)
    assert row.value == pytest.approx(1.75, abs=0.02)
    assert "error of the ratios" in row.note
    assert report.verdict.trust == "high", report.verdict
    wrong = np.tile([1.0, 0.1, 0.1], (200, 1))
    report = table.evaluate(logged, visits=wrong, bootstrap=bootstrap)
    assert report.verdict.trust == "low"
    assert "dice says" in "".join(report.verdict.reasons)
    none = np.zeros((200, 3))
    row = table.evaluate(logged, visits=none, bootstrap=bootstrap).estimates[-1]
    assert row.value is None
    assert "no weight is above 0" in row.note
