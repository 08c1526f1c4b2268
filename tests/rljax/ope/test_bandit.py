"""Bandit estimators: by hand, at the limits of λ, and on the Open Bandit Dataset.

The reference estimates were computed with the Open Bandit Pipeline's own code on the same files
(small version of the Open Bandit Dataset, Saito et al. 2021; 10,000 events per log).
"""

import json
import os
import pathlib

import numpy as np
import pytest

from rljax.offline import open_bandit as reader
from rljax.ope import bandit, diagnostics, intervals, table, weighted
from rljax.ope.bandit import Events

ROOT = pathlib.Path(__file__).resolve().parents[3]
DATA = pathlib.Path(os.environ.get("RLJAX_DATA", ROOT.parent / "shared" / "data")) / "open_bandit"

# w = 2, ½; r = 1, 0; q = 0.5, 0.2; v = 0.4, 0.3
HAND = Events(np.array([1.0, 0.0]), np.log([2.0, 0.5]), np.array([0.5, 0.2]), np.array([0.4, 0.3]))


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        (bandit.ipw(HAND), 1.0),  # (2·1 + ½·0) / 2
        (bandit.ipw(HAND, 1.5), 0.75),  # (1.5·1) / 2
        (bandit.snipw(HAND), 0.8),  # 2 / 2.5
        (bandit.sub_gaussian_ipw(HAND, 0.5), 2 / 3),  # 2 / (½ + ½·2) = 4/3, over 2
        (bandit.dm(HAND), 0.35),
        (bandit.dr(HAND), 0.8),  # 0.35 + (2·0.5 - ½·0.2) / 2
        (bandit.dr(HAND, 1.0), 0.55),  # 0.35 + (1·0.5 - ½·0.2) / 2
        (bandit.sndr(HAND), 0.71),  # 0.35 + (2·0.5 - ½·0.2) / 2.5
        (bandit.switch_dr(HAND, 1.0), 0.3),  # 0.35 + (0 - ½·0.2) / 2
        # 1·2/(4 + 1) = 0.4 and 1·½/(¼ + 1) = 0.4: 0.35 + (0.4·0.5 - 0.4·0.2) / 2
        (bandit.dr_os(HAND, 1.0), 0.41),
    ],
)
def test_estimators_by_hand(means, expected):
    assert weighted.estimate(means) == pytest.approx(expected, rel=1e-12)


def random_events(seed=0, num=50):
    rng = np.random.default_rng(seed)
    log_ratio = rng.normal(size=num)
    log_ratio[0] = -np.inf  # the policy never does that
    return Events(rng.normal(size=num), log_ratio, rng.normal(size=num), rng.normal(size=num))


def test_limits_of_lambda():
    events = random_events()
    dm, dr = (weighted.estimate(x) for x in (bandit.dm(events), bandit.dr(events)))
    for estimator in (bandit.switch_dr, bandit.dr_os):
        assert weighted.estimate(estimator(events, 0.0)) == dm
        assert weighted.estimate(estimator(events, np.inf)) == pytest.approx(dr, rel=1e-12)
    ipw = weighted.estimate(bandit.ipw(events))
    assert weighted.estimate(bandit.sub_gaussian_ipw(events, 0.0)) == pytest.approx(ipw)
    possible = events.reward[1:].sum() / 50  # w / w is 1, and 0 where π never acts so
    assert weighted.estimate(bandit.sub_gaussian_ipw(events, 1.0)) == pytest.approx(possible)
    clipped = weighted.estimate(bandit.ipw(events, 1e300))
    assert clipped == pytest.approx(ipw, rel=1e-12)


def test_weights_that_are_all_1_give_the_mean_of_the_log():
    events = random_events()
    same = Events(events.reward, np.zeros(50), events.q, events.q)
    for means in (bandit.ipw(same), bandit.snipw(same), bandit.dr(same), bandit.sndr(same)):
        assert weighted.estimate(means) == pytest.approx(events.reward.mean(), rel=1e-12)


def test_dr_with_a_model_of_0_is_ipw():
    events = random_events()
    without = Events(events.reward, events.log_ratio, np.zeros(50), np.zeros(50))
    expected = weighted.estimate(bandit.ipw(events))
    assert weighted.estimate(bandit.dr(without)) == pytest.approx(expected, rel=1e-12)
    expected = weighted.estimate(bandit.snipw(events))
    assert weighted.estimate(bandit.sndr(without)) == pytest.approx(expected, rel=1e-12)


def test_self_normalized_estimates_stay_in_range_with_wild_weights():
    rng = np.random.default_rng(0)
    reward = (rng.random(200) < 0.1).astype(float)
    events = Events(reward, -3 * np.log(rng.random(200)), *rng.random((2, 200)))
    assert 0 <= weighted.estimate(bandit.snipw(events)) <= 1
    assert -1 <= weighted.estimate(bandit.sndr(events)) <= 2  # v in [0, 1], r - q in [-1, 1]


def test_resamples_are_divided_by_the_weights_that_were_drawn():
    events, counts = random_events(), weighted.resample_counts(50, 9, np.random.default_rng(1))
    weight = counts * np.exp(events.log_ratio)[None]
    total = weight.sum(axis=1)
    found = weighted.resampled(bandit.snipw(events), counts)
    np.testing.assert_allclose(found, weight @ events.reward / total, rtol=1e-10)
    found = weighted.resampled(bandit.sndr(events), counts)
    expected = counts @ events.v / 50 + weight @ (events.reward - events.q) / total
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_what_cannot_be_weighed_is_refused():
    never = Events(np.ones(2), np.array([np.inf, 0.0]), np.ones(2), np.ones(2))
    for means in (
        lambda: bandit.ipw(never),
        lambda: bandit.ipw(never, 10.0),  # a clip must not hide it
        lambda: bandit.snipw(never),
        lambda: bandit.dr_os(never, 1.0),
        lambda: bandit.sub_gaussian_ipw(never, 0.5),
        lambda: bandit.switch_dr(never, 10.0),
    ):
        with pytest.raises(ValueError, match="logged propensity is 0"):
            means()
    with pytest.raises(ValueError, match="give both q and v"):
        bandit.dr(Events(np.ones(2), np.zeros(2)))
    with pytest.raises(ValueError, match="reward of episode 1, step 0 is nan"):
        Events(np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], not 2"):
        bandit.sub_gaussian_ipw(HAND, 2.0)
    with pytest.raises(ValueError, match="λ must be at least 0"):
        bandit.dr_os(HAND, -1.0)
    with pytest.raises(ValueError, match="clip must be above 0"):
        bandit.ipw(HAND, 0.0)


def test_probabilities_that_do_not_sum_to_1_are_refused():
    q = np.array([[1.0, 2.0], [3.0, 5.0]])
    value = bandit.policy_value(np.array([[0.5, 0.5], [0.25, 0.75]]), q)
    np.testing.assert_allclose(value, [1.5, 4.5])
    with pytest.raises(ValueError, match=r"probabilities of event 1 sum to 0\.9"):
        bandit.policy_value(np.array([[0.5, 0.5], [0.2, 0.7]]), q)
    with pytest.raises(ValueError, match="event 0 sum to 1"):
        bandit.policy_value(np.array([[1.5, -0.5], [0.2, 0.8]]), q)


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"log_ratio must have the shape \(3, 1\), not \(2, 1\)"):
        Events(np.ones(3), np.zeros(2))
    with pytest.raises(ValueError, match="reward must have the shape"):
        Events(np.ones((3, 1)), np.zeros((3, 1)))


def open_bandit(campaign, direction):
    """Events of one log as our reader has them; the model is q = (clicks + 1) / (shown + 200)."""
    source, target = direction.split("->")
    file = DATA / source / campaign / f"{campaign}.csv.gz"
    if not file.exists():
        pytest.skip(f"{file.name} of the Open Bandit Dataset is not in RLJAX_DATA")
    rows = reader.read(file.parent).dataset.rows
    extras = (rows.extras["position"], rows.extras["log_prob"])
    item, click, place, log_prob = (x[rows.valid] for x in (rows.action, rows.reward, *extras))
    item, place, click = item.astype(int), place.astype(int), click.astype(float)
    sampling = np.load(DATA / "reference" / "bts_action_dist.npz")[campaign]
    if target == "random":
        sampling = np.full_like(sampling, 1 / len(sampling))
    clicks, shown = np.bincount(item, click, len(sampling)), np.bincount(item, None, len(sampling))
    q = (clicks + 1) / (shown + 200)
    v = bandit.policy_value(sampling.T[place], np.broadcast_to(q, (len(item), len(q))))
    ratio = np.log(sampling[item, place]) - log_prob
    reference = json.loads((DATA / "reference" / "obp_reference.json").read_text())
    return Events(click, ratio, q[item], v), reference[campaign][direction]


@pytest.mark.parametrize("campaign", ["all", "men"])
@pytest.mark.parametrize("direction", ["bts->random", "random->bts"])
def test_estimates_of_the_open_bandit_dataset(campaign, direction):
    events, reference = open_bandit(campaign, direction)
    ours = {
        "ipw": bandit.ipw(events),
        "ipw_clip10": bandit.ipw(events, 10.0),
        "snipw": bandit.snipw(events),
        "sgipw_0.01": bandit.sub_gaussian_ipw(events, 0.01),
        "dm": bandit.dm(events),
        "dr": bandit.dr(events),
        "dr_clip10": bandit.dr(events, 10.0),
        "sndr": bandit.sndr(events),
        "switchdr_10": bandit.switch_dr(events, 10.0),
        "dros_100": bandit.dr_os(events, 100.0),
    }
    for name, means in ours.items():
        assert weighted.estimate(means) == pytest.approx(reference[name], rel=1e-9), name
    size = diagnostics.effective_sizes(events.log_ratio[:, None])[0]
    assert size == pytest.approx(reference["ess"], rel=1e-9)
    # One-sided 95 % bounds are the lower ends of 90 % intervals; their range is what was seen.
    ipw = ours["ipw"]
    seen = float(ipw.value.max())
    low = intervals.student_t(ipw, confidence=0.9).low
    assert low == pytest.approx(reference["student_t_lb"], rel=1e-9)
    low = intervals.empirical_bernstein(ipw, 0.0, seen, confidence=0.9).low
    assert low == pytest.approx(reference["bernstein_lb"], rel=1e-9)
    low = intervals.hoeffding(ipw, 0.0, seen, confidence=0.9).low
    assert low == pytest.approx(reference["hoeffding_lb"], rel=1e-9)
    for name, key in (
        ("ipw", "ipw_bootstrap_seed12345_B1000"),
        ("snipw", "snipw_bootstrap_renormalised"),
    ):
        interval = intervals.bootstrap(ours[name])
        theirs = reference[key]
        theirs = theirs if isinstance(theirs, list) else list(theirs.values())[1:]
        np.testing.assert_allclose(interval, theirs, atol=0.15 * (theirs[1] - theirs[0]))


def test_a_weight_at_the_threshold_is_not_cut_whatever_its_last_digit():
    # one of ten actions alike, the policy's own: w is 10, and ln 0.1 in single precision says more
    log_ratio = -np.float64(np.float32(np.log(0.1)))
    assert np.exp(log_ratio) > 10
    reward = np.array([0.0, 1.0, 0.0, 0.0])
    events = Events(reward, np.full(4, log_ratio), np.full(4, 0.8), np.full(4, 0.8))
    np.testing.assert_array_equal(bandit.switch_dr(events, 10.0).value, bandit.dr(events).value)
    names = {row.name: row for row in table.evaluate_events(events).estimates}
    assert "cut" not in names["ipw-clip(10)"].note
    above = Events(reward, np.full(4, log_ratio + 0.01), np.full(4, 0.8), np.full(4, 0.8))
    np.testing.assert_array_equal(bandit.switch_dr(above, 10.0).value[:, 0], above.v)
