"""What the verdict says in the cases where an estimate must not be believed."""

import numpy as np
import pytest

from rljax.ope import diagnostics
from rljax.ope.intervals import Estimate
from rljax.ope.trajectories import Trajectories, from_episodes


def bandit_log(weight, reward=None):
    """Episodes of one step each."""
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.asarray(weight, float))[:, None]
    if reward is None:
        reward = np.arange(len(log_ratio)) % 2
    reward = np.asarray(reward, float)[:, None]
    return Trajectories(reward, log_ratio, np.ones_like(reward, bool), 1.0)


def said(verdict):
    return "; ".join(verdict.reasons)


def test_effective_size_and_largest_share_by_hand():
    weight = np.array([[1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        log_weight = np.log(weight)
    sizes = diagnostics.effective_sizes(log_weight)
    np.testing.assert_allclose(sizes, [3, 16 / 10, 0])  # 4² / (1 + 9)
    np.testing.assert_allclose(diagnostics.largest_shares(log_weight), [1 / 3, 3 / 4, 0])
    far = diagnostics.effective_sizes(log_weight[:, :2] + np.array([[-5000.0, 5000.0]]))
    np.testing.assert_allclose(far, [3, 1.6])  # a common factor drops out, however large


def test_even_weights_are_trusted():
    rng = np.random.default_rng(0)
    verdict = diagnostics.verdict(bandit_log(rng.choice([0.5, 1.5], size=500)))
    assert verdict.trust == "high"
    assert "of 500 events are effective" in said(verdict)


def test_one_event_that_carries_the_weight_is_named():
    # 1 of 1000 has w = 30,000, the others sum to 999: 30000 / 30999 = 97 %
    verdict = diagnostics.verdict(bandit_log([30_000.0] + [1.0] * 999))
    assert verdict.trust == "none"
    assert verdict.reasons[0] == "one event carries 97 % of the weight"
    assert "the weights are worth 1.1 events of 1000" in verdict.reasons


def test_a_few_effective_events_are_worth_little():
    verdict = diagnostics.verdict(bandit_log([1.0] * 20))
    assert verdict.trust == "low"
    assert "the weights are worth 20.0 events of 20" in said(verdict)


def test_the_step_from_which_weights_are_spent_is_named():
    rng = np.random.default_rng(0)
    ratio = np.log(rng.choice([0.1, 1.9], size=(200, 60)))
    logged = Trajectories(rng.normal(size=(200, 60)), ratio, np.ones((200, 60), bool), 1.0)
    sizes = diagnostics.effective_sizes(ratio.cumsum(axis=1))
    first = int(np.argmax(sizes < 10))
    assert 0 < first < 59
    verdict = diagnostics.verdict(logged)
    assert verdict.trust == "none"
    assert f"fewer than 10 from step {first} on" in said(verdict)
    assert "one episode carries" in said(verdict)


def test_one_trajectory_is_no_sample():
    logged = from_episodes([np.ones(3)], [np.zeros(3)], 0.9)
    verdict = diagnostics.verdict(logged)
    assert verdict.trust == "none"
    assert verdict.reasons[0] == "one episode only: its spread is unknown"


def test_no_overlap_is_said():
    verdict = diagnostics.verdict(bandit_log([0.0] * 100))
    assert verdict.trust == "none"
    assert "no overlap" in verdict.reasons[0]


def test_a_propensity_of_0_is_said():
    verdict = diagnostics.verdict(bandit_log([np.inf] + [1.0] * 99))
    assert verdict.trust == "none"
    assert verdict.reasons[0] == "the log holds actions whose propensity is given as 0"


def test_what_the_log_could_never_hold_is_counted():
    behavior = np.array([[0.5, 0.5, 0.0], [0.2, 0.4, 0.4]])
    target = np.array([[0.1, 0.6, 0.3], [0.0, 1.0, 0.0]])
    mass = diagnostics.uncovered_mass(target, behavior)
    np.testing.assert_allclose(mass, [0.3, 0.0])
    logged = bandit_log([1.0] * 100)
    none = diagnostics.verdict(logged, uncovered=np.tile(mass, 50)[:, None])
    assert none.trust == "none"
    assert none.reasons == ("15 % of what the policy would do has no chance to be in the log",)
    low = diagnostics.verdict(logged, uncovered=np.full((100, 1), 0.005))
    assert low.trust == "low"
    assert "0.50 % of what" in said(low)
    assert diagnostics.verdict(logged, uncovered=np.zeros((100, 1))).trust == "high"


@pytest.mark.parametrize(
    ("low", "high", "trust"), [(0.6, 0.8, "low"), (0.3, 0.5, "none"), (5.0, 9.0, "none")]
)
def test_weights_that_do_not_average_1_are_said(low, high, trust):
    weight = np.linspace(low, high, 401)
    verdict = diagnostics.verdict(bandit_log(weight))
    assert verdict.trust == trust
    assert f"the weights average {(low + high) / 2:.3g} where 1 is due" in said(verdict)


def test_equal_returns_tell_nothing_of_their_spread():
    verdict = diagnostics.verdict(bandit_log([0.5, 1.5] * 100, reward=[1.0] * 200))
    assert verdict.trust == "low"
    assert verdict.reasons == ("all returns in the log are 1: their spread is unknown",)


def test_estimators_that_disagree_cannot_all_be_right():
    logged = bandit_log([0.5, 1.5] * 100)
    agree = [Estimate("dm", 0.5, 0.4, 0.6), Estimate("snipw", 0.55, 0.5, 0.7)]
    assert diagnostics.verdict(logged, agree).trust == "high"
    rounded = [Estimate("dm", 0.3, 0.2, 0.3), Estimate("dr", 0.1 + 0.2, 0.1 + 0.2, 0.4)]
    assert rounded[0].high < rounded[1].low  # by the last digit
    assert diagnostics.verdict(logged, rounded).trust == "high"
    apart = [*agree, Estimate("dr", 0.9, 0.8, 1.0)]
    verdict = diagnostics.verdict(logged, apart)
    assert verdict.trust == "low"
    assert verdict.reasons == ("estimators disagree: dm lies in [0.4, 0.6], dr in [0.8, 1]",)


def test_an_interval_without_width_is_no_certainty():
    # a click in 50, and the policy does nothing that was clicked: IPW says 0 in [0, 0]
    weight, reward = [0.0, 2.0] * 150, [1.0] + [0.0] * 299
    seen = Estimate("ipw", 0.0, 0.0, 0.0)
    verdict = diagnostics.verdict(bandit_log(weight, reward), [seen])
    assert verdict.trust == "low"
    assert "the interval of ipw has no width" in said(verdict)


def test_weights_beyond_all_numbers_are_not_trusted():
    log_ratio = np.full((200, 10), 31.0)
    logged = Trajectories(np.ones((200, 10)), log_ratio, np.ones((200, 10), bool), 1.0)
    verdict = diagnostics.verdict(logged)
    assert verdict.trust == "none"
    assert "the weights average more than" in said(verdict)


def test_a_model_without_an_interval_disagrees_as_if_it_had_the_others():
    logged, dr = bandit_log([0.5, 1.5] * 100), Estimate("dr", 0.6, 0.5, 0.7)
    why = "no interval: the model's error is unknown"
    near, far = (Estimate("dm", value, note=why) for value in (0.79, 0.81))  # 0.7 + 0.1
    assert diagnostics.verdict(logged, [near, dr]).trust == "high"
    verdict = diagnostics.verdict(logged, [far, dr])
    assert verdict.trust == "low"
    assert verdict.reasons == ("estimators disagree: dm says 0.81, dr lies in [0.5, 0.7]",)
    below = diagnostics.verdict(logged, [Estimate("dm", 0.39, note=why), dr])
    assert below.trust == "low"


def test_skewness_asks_for_episodes():
    # one success in 100: G = (1 - 2p) / √(p (1 - p)) = 9.849, so 25 G² = 2425
    rare = np.zeros(100)
    rare[0] = 1.0
    assert diagnostics.episodes_for_skewness(rare) == pytest.approx(25 * 0.98**2 / 0.0099)
    assert diagnostics.episodes_for_skewness(np.array([-1.0, 0.0, 1.0])) == pytest.approx(0)
    assert diagnostics.episodes_for_skewness(np.full(9, 0.1)) == 0
    assert diagnostics.episodes_for_skewness(np.zeros(9)) == 0
    for unit in (1e-5, 1e134):  # of the reward: nothing changes, nothing overflows
        assert diagnostics.episodes_for_skewness(rare * unit) == pytest.approx(
            25 * 0.98**2 / 0.0099
        )


def test_caveats_keep_trust_low():
    logged = bandit_log([0.5, 1.5] * 100)
    verdict = diagnostics.verdict(logged, caveats=["propensities are estimated"])
    assert verdict == ("low", ("propensities are estimated",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            Estimate("dr", -0.02, -0.1, 0.1),
            "dr says -0.02, and no return in the log is below 0",
        ),
        (Estimate("ipw", 1.5, 1.0, 2.0), "ipw says 1.5, and no return in the log is above 1"),
        (Estimate("wis", None, note="no weight is above 0."), "wis has no answer: no weight is"),
        (Estimate("wis", 0.5), "wis has no interval"),
    ],
)
def test_answers_that_cannot_be_are_said(row, reason):
    verdict = diagnostics.verdict(bandit_log([0.5, 1.5] * 100), [row])
    assert verdict.trust == "low"
    assert reason in said(verdict)
