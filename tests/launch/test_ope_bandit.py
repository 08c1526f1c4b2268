"""Off-policy evaluation from the command line by logs of single decisions, whose truth is known."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from launch import convert, data, evaluate, flags, ope, propensities, trained
from rljax.config import UsageError
from rljax.offline import sources
from rljax.ope import table
from rljax.ope.bandit import Events

CHANCES = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])  # of the log, by context
OTHER = np.array([[0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])  # of what the policy learns from
CLICKS = np.array([[0.1, 0.5, 0.9], [0.8, 0.4, 0.2]])
NAMES = ["ipw", "ipw-clip(10)", "snipw", "dm", "dr", "sndr", "switch-dr(10)", "dr-os(100)"]


def write(path, chances, count=3000, seed=0, propensities=True):
    rng = np.random.default_rng(seed)
    place = rng.integers(2, size=count)
    action = (chances[place].cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    click = rng.random(count) < CLICKS[place, action]
    with path.open("w") as file:
        for row in range(count):
            told = {
                "state": np.eye(2)[place[row]].tolist(),
                "action": int(action[row]),
                "reward": float(click[row]),
            }
            if propensities:
                told["propensity"] = float(chances[place[row], action[row]])
            file.write(json.dumps(told) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A clone of a policy that clicks more often than the log's."""
    folder = tmp_path_factory.mktemp("bandit")
    learned = write(folder / "learned.jsonl", OTHER, seed=1)
    command = [sys.executable, "-m", "launch.train", "--agent=bc", f"--dataset={learned}"]
    command += [f"--workdir={folder / 'run'}", "--config.total_updates=1500", "--num_devices=1"]
    command += ["--config.hidden_sizes=16", "--preset=none", "--progress=off"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return folder / "run"


def ask(workdir, dataset, *flags):
    evaluate.FLAGS.unparse_flags()
    told = [f"--workdir={workdir}", f"--dataset={dataset}", "--ope", "--ope_updates=400", *flags]
    evaluate.FLAGS(["evaluate", "--nogreedy", *told])
    assert evaluate.main([]) == 0
    return json.loads((workdir / "ope.json").read_text())


@pytest.fixture(scope="module")
def log(run):
    return write(run.parent / "log.jsonl", CHANCES)


@pytest.fixture(scope="module")
def answered(run, log):
    return ask(run, log)


def chances_of(workdir, greedy=False):
    found = trained.load(workdir)
    observation = found.agent.spec.example((2,))._replace(features=np.eye(2, dtype=np.float32))
    said = propensities.decisions(found.agent, found.policy, observation, greedy=False, seed=0)
    chances = said["probabilities"]
    return np.eye(3)[chances.argmax(axis=1)] if greedy else chances


def test_every_estimator_of_a_bandit_holds_the_truth(run, answered):
    assert [row["name"] for row in answered["estimates"]] == NAMES
    truth = (chances_of(run) * CLICKS).sum(axis=1).mean()
    assert (truth - (CHANCES * CLICKS).sum(axis=1).mean()) > 0.1  # the log alone would not do
    for row in answered["estimates"]:
        if row["name"] in ("dm", "dr-os(100)"):  # biased by a model that has hardly learned
            assert row["low"] is None, row
            assert abs(row["value"] - truth) < 0.08, row
            continue
        half = (row["high"] - row["low"]) / 2
        assert abs(row["value"] - truth) < 2 * half, row  # four standard errors
        assert 0 < half < 0.05, row
    told = (answered["kind"], answered["propensities"], answered["discount"])
    assert told == ("bandit", "logged", 1.0)
    assert answered["verdict"]["trust"] == "high", answered["verdict"]
    assert answered["num_episodes"] == 3000


def test_plain_weighting_is_the_mean_of_weighted_clicks(run, log, answered):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    chances, total = chances_of(run), 0.0
    for row in rows:
        context = row["state"].index(1.0)
        total += chances[context, row["action"]] / row["propensity"] * row["reward"]
    assert answered["estimates"][0]["value"] == pytest.approx(total / len(rows), rel=1e-6)


def test_the_greedy_policy_and_estimated_propensities(run):
    data = write(run.parent / "bare.jsonl", CHANCES, propensities=False)
    answered = ask(run, data, "--greedy")
    assert (answered["mode"], answered["propensities"]) == ("greedy", "estimated")
    truth = (chances_of(run, greedy=True) * CLICKS).sum(axis=1).mean()
    for row in answered["estimates"]:
        assert abs(row["value"] - truth) < 0.08, row


def test_a_bandwidth_is_of_real_actions(run, log):
    with pytest.raises(ValueError, match=r"--ope_bandwidth is of real actions, and those of .*log"):
        ope.report(trained.load(run), str(log), ope.Options(greedy=True, bandwidth=0.5))


def test_estimated_propensities_that_are_right_weigh_as_the_logged_ones_do(run, monkeypatch):
    found = trained.load(run)
    files = [
        write(run.parent / f"{told}.jsonl", CHANCES, 200, propensities=told)
        for told in (True, False)
    ]
    logged, bare = (sources.open(file, found.agent.spec) for file in files)
    right = logged.rows.extras["log_prob"]
    monkeypatch.setattr(propensities, "_cloned_choices", lambda dataset, seed: right)
    known, estimated = (
        propensities.of_choices(found.agent, found.policy, data, greedy=False, seed=0)
        for data in (logged, bare)
    )
    np.testing.assert_array_equal(known.log_ratio, estimated.log_ratio)
    assert (known.propensities, estimated.propensities) == ("logged", "estimated")


def test_mass_where_the_log_has_none_is_told(run):
    """Action 2, the policy's favorite in context 0, is never logged; weights tell only in part."""
    few = np.array([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0]])
    found = trained.load(run)
    data = sources.open(write(run.parent / "few.jsonl", few, 500), found.agent.spec)
    ratios = propensities.of_choices(found.agent, found.policy, data, greedy=False, seed=0)
    context = data.rows.observation.features.argmax(axis=1)
    np.testing.assert_allclose(ratios.uncovered, chances_of(run)[context, 2], rtol=1e-5)
    steps = data.rows.valid
    events = Events(data.rows.reward[steps], ratios.log_ratio[steps])
    verdict = table.evaluate_events(events, uncovered=ratios.uncovered[steps]).verdict
    assert verdict.trust == "none"
    assert any("no chance to be in the log" in why for why in verdict.reasons)
    whole = sources.open(write(run.parent / "whole.jsonl", CHANCES, 500), found.agent.spec)
    ratios = propensities.of_choices(found.agent, found.policy, whole, greedy=False, seed=0)
    assert ratios.uncovered is None


def test_a_log_of_something_else_is_refused(run, tmp_path):
    line = {"_label_cost": -1, "_label_probability": 0.5, "_labelIndex": 0, "_label_Action": 1}
    line |= {"c": {"user=a": 1, "_multi": [{"x": 1}, {"x": 2}]}, "a": [1, 2], "p": [0.5, 0.5]}
    path = tmp_path / "other.dsjson"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    assert sources.is_bandit(path)
    with pytest.raises(UsageError, match="shows other observations or asks for other actions"):
        ask(run, path)


def decisions(path, user, count=40):
    """Two offers alike; all users are the same, but for what the log calls them."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(count):
        chosen = int(rng.integers(2))
        cost = -float(rng.random() < (0.2, 0.8)[chosen])
        line = {"_label_cost": cost, "_label_probability": 0.5, "_labelIndex": chosen}
        line |= {"c": {user: 1, "_multi": [{"x": 1}, {"x": 2}]}, "a": [1, 2], "p": [0.5, 0.5]}
        lines.append(json.dumps(line | {"_label_Action": chosen + 1}))
    path.write_text("\n".join(lines) + "\n")
    return path


def learned_from(path, workdir):
    """All that `--ope` needs to know of a policy to read a log for it."""
    workdir.mkdir()
    dataset = sources.open(path)
    data.describe(dataset, workdir, str(path))
    experiment = types.SimpleNamespace(dataset=str(path), workdir=str(workdir))
    agent = types.SimpleNamespace(spec=dataset.spec)
    return types.SimpleNamespace(experiment=experiment, agent=agent)


def test_features_of_another_meaning_are_never_read_as_the_policys(tmp_path):
    """Renamed ones: as many numbers, of which the policy knows nothing."""
    logs = {name: decisions(tmp_path / f"{name}.dsjson", f"user={name}") for name in "ab"}
    for name, log in logs.items():
        out = f"--out={tmp_path / name}"
        flags.parse_script(["convert", f"--dataset={log}", out], convert.FLAGS)
        assert convert.main([]) == 0
    for learned in (logs["a"], tmp_path / "a"):
        policy = learned_from(learned, tmp_path / f"run of {learned.name}")
        for same in (logs["a"], tmp_path / "a"):
            assert ope._opened(policy, str(same)).num_episodes == 40
        for other in (logs["b"], tmp_path / "b"):
            with pytest.raises(ValueError, match=r"feature|numbers its features by other values"):
                ope._opened(policy, str(other))
    policy = learned_from(logs["a"], tmp_path / "run")
    both = tmp_path / "both.dsjson"
    both.write_text(logs["a"].read_text() + logs["b"].read_text())
    wide = learned_from(both, tmp_path / "run of both")
    assert ope._opened(wide, str(logs["b"])).spec.parts == wide.agent.spec.parts  # one is absent
    older = learned_from(logs["a"], tmp_path / "older")
    told = tmp_path / "older" / "dataset.json"
    without = json.loads(told.read_text())
    del without["features"]
    told.write_text(json.dumps(without))
    assert ope._opened(older, str(tmp_path / "a")).num_episodes == 40
    with pytest.raises(ValueError, match="numbers its features by other values"):
        ope._opened(older, str(tmp_path / "b"))
    told.write_text("{")
    with pytest.raises(UsageError, match=r"dataset\.json is damaged"):
        ope._opened(older, str(logs["a"]))
    moved = logs["a"].rename(tmp_path / "moved.dsjson")
    assert ope._opened(policy, str(moved)).num_episodes == 40  # the same, elsewhere
    decisions(logs["a"], "user=b")  # and where it was lies another
    for other in (logs["a"], logs["b"]):
        with pytest.raises(ValueError, match="must be there as it was then"):
            ope._opened(policy, str(other))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ope_updates=7"], "--ope_updates is for --ope."),
        (["--ope_dice_updates=7"], "--ope_dice_updates is for --ope."),
        (["--dataset=d", "--ope", "--episodes=3"], "--episodes is for playing, without --ope."),
        (["--dataset=d", "--ope", "--video_steps=3"], "--video_steps is for playing"),
    ],
)
def test_flags_of_the_other_way_to_evaluate_are_refused(flags, sentence):
    asked = [sys.executable, "-m", "launch.evaluate", "--workdir=w", *flags]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (answer.returncode, "Traceback" in answer.stderr) == (2, False)
    assert sentence in answer.stderr
