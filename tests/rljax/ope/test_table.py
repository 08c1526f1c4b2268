"""The table of estimates: each row with its interval or a sentence, and the whole as JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from rljax.ope import table
from rljax.ope.bandit import Events
from rljax.ope.table import Bootstrap
from rljax.ope.trajectories import Trajectories, from_episodes


def random_log(num=200, horizon=3, seed=0):
    """Each step pays 1 on average, whatever is done; the model knows that."""
    rng = np.random.default_rng(seed)
    ratio = np.log(np.where(rng.random((num, horizon)) < 0.5, 0.8, 1.2))
    reward = 1 + rng.normal(size=(num, horizon))
    value = np.broadcast_to(np.arange(horizon, 0, -1.0), (num, horizon))
    return Trajectories(reward, ratio, np.ones((num, horizon), bool), 1.0, q=value, v=value)


def test_all_estimators_answer_and_agree():
    logged = random_log()
    state = np.broadcast_to(np.arange(3), (200, 3))
    report = table.evaluate(logged, state=state, bootstrap=Bootstrap(resamples=300))
    names = [row.name for row in report.estimates]
    assert names == ["is", "wis", "pdis", "wpdis", "dm", "dr", "wdr", "magic", "mis"]
    for row in report.estimates:
        assert abs(row.value - 3) < 0.6, row
        if row.name in {"dm", "magic"}:  # which would be too narrow
            assert (row.low, row.high) == (None, None)
            assert "model's error is unknown" in row.note
        else:
            assert row.low - 1e-9 <= row.value <= row.high + 1e-9, row
    assert report.verdict.trust == "high"
    assert report.logged.value == pytest.approx(logged.reward.sum(axis=1).mean())
    assert 150 < report.effective_size < 200
    assert json.loads(json.dumps(table.to_json(report), allow_nan=False))["confidence"] == 0.95


def test_without_a_model_there_are_four():
    logged = random_log()
    plain = Trajectories(logged.reward, logged.log_ratio, logged.valid, 1.0)
    report = table.evaluate(plain, bootstrap=Bootstrap(resamples=50))
    assert [row.name for row in report.estimates] == ["is", "wis", "pdis", "wpdis"]


def test_events_have_a_table_of_their_own():
    rng = np.random.default_rng(0)
    ratio = np.log(np.where(rng.random(2000) < 0.1, 5.5, 0.5))
    click = (rng.random(2000) < 0.3).astype(float)
    events = Events(click, ratio, np.full(2000, 0.3), np.full(2000, 0.3))
    report = table.evaluate_events(events, clip=2.0, bootstrap=Bootstrap(resamples=100))
    names = [row.name for row in report.estimates]
    assert names[:3] == ["ipw", "ipw-clip(2)", "snipw"]
    assert names[3:] == ["dm", "dr", "sndr", "switch-dr(10)", "dr-os(100)"]
    assert report.num_episodes == 2000
    without = {row.name for row in report.estimates if row.low is None}
    assert without == {"ipw-clip(2)", "dm", "dr-os(100)"}  # no weight is above 10


def test_rare_rewards_are_too_skewed_for_an_interval_of_few_events():
    """All weights are 1: nothing is wrong with them, and an interval of 3 clicks is too short."""
    click = np.zeros(500)
    click[:3] = 1.0
    report = table.evaluate_events(Events(click, np.zeros(500)), bootstrap=Bootstrap(resamples=50))
    assert report.verdict.trust == "low"
    assert "so skewed that 4,092 of them were due" in report.verdict.reasons[0]
    often = Events((np.arange(500) % 3 == 0).astype(float), np.zeros(500))
    assert table.evaluate_events(often, bootstrap=Bootstrap(resamples=50)).verdict.trust == "high"


def test_no_overlap_gives_sentences_and_no_trust():
    logged = from_episodes([np.ones(2)] * 50, [np.full(2, -np.inf)] * 50, 0.9)
    report = table.evaluate(logged, bootstrap=Bootstrap(resamples=50))
    rows = {row.name: row for row in report.estimates}
    assert rows["wis"].value is None
    assert "no weight is above 0" in rows["wis"].note
    assert report.verdict.trust == "none"
    assert (report.effective_size, report.largest_share) == (0, 0)
    json.dumps(table.to_json(report), allow_nan=False)


def test_events_without_overlap_are_0_over_0_for_those_that_divide():
    ones = np.ones(50)
    events = Events(ones, np.full(50, -np.inf), 0.4 * ones, 0.3 * ones)
    report = table.evaluate_events(events, bootstrap=Bootstrap(resamples=50))
    rows = {row.name: row for row in report.estimates}
    assert rows["ipw"].value == 0
    assert rows["dr"].value == pytest.approx(0.3)  # the model alone
    for name in ("snipw", "sndr"):
        assert rows[name].value is None
        assert "no weight is above 0" in rows[name].note
    assert report.verdict.trust == "none"


def test_an_infinite_ratio_gives_sentences_and_no_trust():
    logged = from_episodes([np.ones(1)] * 50, [np.array([np.inf])] + [np.zeros(1)] * 49, 0.9)
    report = table.evaluate(logged, bootstrap=Bootstrap(resamples=50))
    assert all(row.value is None for row in report.estimates)
    assert all("logged propensity is 0" in row.note for row in report.estimates)
    assert report.verdict.trust == "none"
    assert report.logged.value == 1.0
    json.dumps(table.to_json(report), allow_nan=False)


def test_one_episode_has_values_and_no_intervals():
    logged = from_episodes([np.ones(2)], [np.zeros(2)], 0.5, q=[np.ones(2)], v=[np.ones(2)])
    report = table.evaluate(logged)
    rows = {row.name: row for row in report.estimates}
    assert rows["is"] == ("is", 1.5, None, None, "")
    assert "two episodes at least" in rows["magic"].note
    assert report.verdict.trust == "none"


def test_one_event_with_a_tiny_propensity_is_called_out():
    """A propensity of 1e-6 in ten thousand events: a negative click rate, and the reason for it."""
    rng = np.random.default_rng(0)
    click = (rng.random(10_000) < 0.005).astype(float)
    ratio = np.log(np.where(rng.random(10_000) < 0.5, 0.5, 1.5))
    ratio[7], click[7] = np.log(1e6 / 34), 0.0
    events = Events(click, ratio, np.full(10_000, 0.005), np.full(10_000, 0.005))
    report = table.evaluate_events(events, bootstrap=Bootstrap(resamples=100))
    assert report.verdict.trust == "none"
    assert report.effective_size < 3
    assert report.verdict.reasons[0] == "one event carries 75 % of the weight"
    assert any("dr says -0.0" in reason for reason in report.verdict.reasons)


def test_the_forest_is_drawn(tmp_path):
    report = table.evaluate(random_log(), bootstrap=Bootstrap(resamples=50))
    output = tmp_path / "plots" / "ope.png"
    table.forest_plot(report, output)
    with Image.open(output) as image:
        assert image.format == "PNG"
        assert image.width > 600


def test_a_forest_of_nothing_is_drawn_too(tmp_path):
    logged = from_episodes([np.ones(1)] * 3, [np.array([np.inf])] * 3, 0.9)
    table.forest_plot(table.evaluate(logged), tmp_path / "ope.png")
    assert (tmp_path / "ope.png").stat().st_size > 0
