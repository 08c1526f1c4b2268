"""The offline benchmarks: what is chosen by hand-made numbers, what is refused, what peers get."""

import json
import math
import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from launch import benchmark, command_line
from launch.benchmarks import Options, offline, offline_report, offline_speed, processes, table
from launch.benchmarks.offline_choice import Result, choose, difference, widened
from rljax.config import UsageError
from rljax.offline import dataset as datasets
from rljax.offline import writers

BC = Result((100.0, 104.0, 96.0, 102.0, 98.0))
CLEAR = Result((200.0, 204.0, 196.0, 202.0, 198.0))
SETTINGS = {"dataset": "data/mixed", "env": "CartPole-v1", "return in the dataset": 90.0}


def shifted(result, by, spread=1.0):
    mean = sum(result.values) / len(result.values)
    return Result(tuple(mean + by + spread * (x - mean) for x in result.values))


def test_a_clear_winner_is_named_with_its_leads():
    choice = choose({"bc": BC, "iql": shifted(BC, 50.0), "cql": CLEAR})
    assert choice.kept == "cql"
    assert choice.sentence.startswith("cql is best: ahead of bc by 100 return [")
    assert "and of iql, the runner-up, by 50 return [" in choice.sentence
    assert "luck" not in choice.sentence
    pairs = [(each.ours, each.theirs, each.value) for each in choice.differences]
    assert pairs == [("cql", "bc", 100.0), ("iql", "bc", 50.0), ("cql", "iql", 50.0)]
    assert all(0 < each.low < each.value < each.high for each in choice.differences)


def test_better_by_luck_keeps_bc():
    lucky = Result((90.0, 104.0, 96.0, 102.0, 150.0))  # one seed makes its mean 108.4
    choice = choose({"bc": BC, "iql": lucky})
    assert choice.kept == "bc"
    assert choice.sentence.startswith("iql is ahead of bc by 8.4 return [")
    assert choice.sentence.endswith("which may be luck: bc is kept.")
    (found,) = choice.differences
    assert found.low <= 0 < found.high


def test_a_lead_within_noise_of_the_runner_up_is_told():
    choice = choose({"bc": BC, "iql": shifted(CLEAR, 1.0), "cql": CLEAR})
    assert choice.kept == "iql"
    assert "the runner-up, by 1 return [" in choice.sentence
    assert "(which may be luck): iql is kept." in choice.sentence


def test_the_highest_mean_is_passed_over_for_a_sure_one():
    wild = shifted(BC, 120.0, spread=60.0)
    choice = choose({"bc": BC, "iql": CLEAR, "cql": wild})
    assert choice.kept == "iql"
    assert "cql has the highest mean" in choice.sentence


def test_bc_is_kept_where_it_is_best_or_equal():
    assert choose({"bc": BC, "iql": shifted(BC, -50.0)}).kept == "bc"
    assert choose({"bc": BC, "iql": BC}).sentence.startswith("bc is best, ahead of iql by 0 return")
    assert choose({"bc": BC}).kept == "bc"
    (found,) = choose({"bc": BC, "iql": shifted(BC, -50.0)}).differences
    assert (found.ours, found.theirs, found.value) == ("iql", "bc", -50.0)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_too_few_seeds_tell_nothing_from_luck(seeds):
    few = {"bc": Result(BC.values[:seeds]), "iql": Result(CLEAR.values[:seeds])}
    choice = choose(few)
    assert choice.kept == "bc"
    assert f"{seeds} seed" in choice.sentence
    four = {"bc": Result(BC.values[:4]), "iql": Result(CLEAR.values[:4])}
    assert choose(four).kept == "iql"


def test_without_bc_nobody_is_named():
    choice = choose({"iql": CLEAR, "cql": BC})
    assert choice.kept is None
    assert "bc, which all must beat, has no result" in choice.sentence


def test_what_the_log_tells_nothing_of_is_not_named():
    unseen = Result(CLEAR.values, (190.0, 210.0), "none")
    choice = choose({"bc": BC, "iql": unseen})
    assert choice.kept == "bc"
    assert "iql is left out" in choice.sentence
    nothing = choose({"bc": Result(BC.values, (90.0, 110.0), "none"), "iql": unseen})
    assert nothing.kept is None
    assert "the log tells nothing of bc, which all must beat, nor of iql" in nothing.sentence
    weak = choose({"bc": BC, "iql": Result(CLEAR.values, (190.0, 210.0), "low")})
    assert weak.kept == "iql"
    assert "(trust: low)" in weak.sentence


def test_the_interval_holds_what_the_log_leaves_open():
    of_bc, sure = Result(BC.values, (90.0, 110.0)), Result(CLEAR.values, (150.0, 260.0))
    found = difference({"bc": of_bc, "iql": sure}, "iql", "bc")
    assert (found.low, found.high) == (40.0, 170.0)  # 150 - 110 and 260 - 90
    unsure = Result(CLEAR.values, (100.0, 300.0))
    assert choose({"bc": of_bc, "iql": unsure}).kept == "bc"


def test_the_interval_is_widened_as_students_is():
    # n = 5: 1 - 2 Φ(-√(5/4) t), t of 8 degrees of freedom
    t = stats.t.ppf(0.975, 8)
    assert widened(0.95, 5) == pytest.approx(1 - 2 * stats.norm.cdf(-math.sqrt(1.25) * t))
    assert widened(0.95, 100_000) == pytest.approx(0.95, abs=1e-4)
    one, many = (difference({"bc": BC, "iql": CLEAR}, "iql", "bc", k) for k in (1, 10))
    assert many.low < one.low < one.high < many.high


def test_chance_rarely_looks_like_an_advantage():
    """Where all are the same, bc is passed over in one of forty benchmarks, whoever is with it."""
    rng = np.random.default_rng(0)
    for agents in (1, 4):
        wrong = 0
        for draw in rng.normal(size=(200, 1 + agents, 5)):
            values = {str(i): Result(tuple(row)) for i, row in enumerate(draw[1:])}
            wrong += choose({"bc": Result(tuple(draw[0]))} | values).kept != "bc"
        assert wrong <= 11  # 5 are expected at 2.5 %, and more than 11 with a chance below 1 %


def report_of(rows):
    machine = {"cores": 2, "cpu": "x"}
    return {
        "rows": [table.to_json(row) for row in rows],
        "date": "2026-11-21T00:00:00",
        "command": "python -m launch.benchmark offline",
        "machine": machine,
    }


def score_rows(**values):
    found = [offline.score_row(agent, tuple(x), 90.0, SETTINGS) for agent, x in values.items()]
    return found


def test_the_report_names_the_best_run(tmp_path):
    rows = score_rows(bc=BC.values, iql=CLEAR.values)
    lines = offline_report.write(report_of(rows), tmp_path / "x.json", tmp_path / "runs")
    assert lines[0].startswith("iql is best: ahead of bc by 100 return")
    best = json.loads((tmp_path / "runs" / "mixed" / "best.json").read_text())
    assert best["workdir"] == str(tmp_path / "runs" / "mixed" / "iql-1")  # whose seed has 204
    assert (best["agent"], best["seed"], best["value"]) == ("iql", 1, 204.0)
    assert best["advantage_over_bc"]["value"] == 100.0
    assert best["advantage_over_bc"]["interval"][0] > 0
    page = (tmp_path / "x.md").read_text()
    assert lines[0] in page
    assert "| iql | 200 | [" in page
    assert "| the dataset | 90 |" in page


def test_the_report_says_that_bc_is_kept(tmp_path):
    rows = score_rows(bc=BC.values, iql=shifted(BC, 1.0).values)
    offline_report.write(report_of(rows), tmp_path / "x.json", tmp_path / "runs")
    best = json.loads((tmp_path / "runs" / "mixed" / "best.json").read_text())
    assert (best["agent"], best["advantage_over_bc"]) == ("bc", None)
    assert "which may be luck: bc is kept." in (tmp_path / "x.md").read_text()


def ope_report(value, trust, reasons=()):
    estimate = {"name": "wdr", "value": value, "low": value - 1, "high": value + 1, "note": ""}
    verdict = {"trust": trust, "reasons": list(reasons)}
    return {"estimates": [estimate], "logged": {"value": 50.0}, "verdict": verdict}


@pytest.fixture
def log(tmp_path) -> pathlib.Path:
    """A dataset of choices, and one of real numbers, under made-up tasks."""
    sizes = offline_speed.Sizes(4, 5, 3, 2)
    for discrete in (True, False):
        made = offline_speed.made_up(sizes, discrete=discrete)
        path = tmp_path / ("choices.parquet" if discrete else "real.parquet")
        writers.write_parquet(made, path)
    return tmp_path


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """`launch.train` and `launch.evaluate`: bc-0's value by the log is 50, iql's are 80."""
    asked: list[tuple[str, ...]] = []
    trust = {"bc": "high", "iql": "high"}

    def run(script, *arguments):
        asked.append((script, *arguments))
        flags = dict(flag.lstrip("-").partition("=")[::2] for flag in arguments)
        if flags.get("agent") == "cql_discrete":
            raise UsageError("no room.")
        for name in flags["workdir"].split(","):
            workdir = tmp_path / name
            workdir.mkdir(parents=True, exist_ok=True)
            agent, seed = workdir.name.split("-")
            value = (50.0 if agent == "bc" else 80.0) + int(seed)
            result = {"eval/return_mean": value, "time/wall_clock_seconds": 3.0}
            (workdir / "result.json").write_text(json.dumps(result))
            report = ope_report(value, trust[agent], ["thin"])
            (workdir / "ope.json").write_text(json.dumps(report))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offline, "_run", run)
    return types.SimpleNamespace(asked=asked, trust=trust)


def test_by_the_log_alone(pretended, log):
    options = Options(dataset=str(log / "choices.parquet"), agents=("iql", "cql"), total_steps=7)
    assert offline.versions(options) == {}
    rows = list(offline.rows(options))
    assert [row.name for row in rows] == [
        "time/bc",
        "time/iql",
        "failed/cql_discrete",
        "ope/bc",
        "ope/iql",
        "advantage/iql_over_bc",
    ]
    by_name = {row.name: row for row in rows}
    assert by_name["failed/cql_discrete"].unit == "no room."
    assert by_name["ope/iql"].value == 82.0  # mean of 80 to 84
    assert by_name["ope/iql"].interval == (81.0, 83.0)
    assert by_name["ope/iql"].peer_value == 50.0
    assert by_name["ope/iql"].settings["trust of iql"] == "high: thin"
    assert by_name["advantage/iql_over_bc"].value == 30.0
    train = next(asked for asked in pretended.asked if "--agent=iql" in asked)
    assert "--config.total_updates=7" in train
    assert not any("env" in flag or "eval" in flag for flag in train)
    assert [asked[0] for asked in pretended.asked].count("train") == 11  # cql failed at once
    lines = offline_report.write(report_of(rows), log / "x.json", offline.RUNS)
    assert lines[0].startswith("iql is best: ahead of bc by 30 return")
    best = json.loads((offline.RUNS / "choices.parquet" / "best.json").read_text())
    assert best["by"] == "OPE, sampled"
    page = (log / "x.md").read_text()
    assert "Nothing was played" in page
    assert "| cql_discrete | no room. |" in page


def test_without_trust_nobody_is_named_and_an_older_name_goes(pretended, log):
    pretended.trust["bc"] = "none"
    options = Options(dataset=str(log / "choices.parquet"), agents=("iql",))
    rows = list(offline.rows(options))
    assert not [row for row in rows if row.name.startswith("advantage/")]
    best = offline.RUNS / "choices.parquet" / "best.json"
    best.write_text("of yesterday")
    lines = offline_report.write(report_of(rows), log / "x.json", offline.RUNS)
    assert lines[0].startswith("No best is named: the log tells nothing of bc")
    assert not best.exists()


def test_without_output_the_results_are_beside_the_runs(pretended, log, capsys):
    with pytest.raises(SystemExit) as end:
        run("offline", f"--dataset={log / 'choices.parquet'}", "--agents=bc,cql,iql")
    assert not end.value.code
    folder = offline.RUNS / "choices.parquet"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert "ope/iql" in [row["name"] for row in rows]
    assert str(folder / "results.md") in capsys.readouterr().out


def test_where_no_agent_learns_nothing_is_left(pretended, log, monkeypatch, capsys):
    def refused(script, *arguments):
        raise UsageError("no room.")

    monkeypatch.setattr(offline, "_run", refused)
    with pytest.raises(SystemExit) as end:
        run("offline", f"--dataset={log / 'choices.parquet'}")
    assert end.value.code == 2
    assert "no agent could be trained; the last one said: no room." in capsys.readouterr().err
    assert not list(offline.RUNS.glob("*/*.json"))


def test_the_least_trusted_seed_is_what_counts():
    found = [ope_report(1.0, "high"), ope_report(3.0, "none", ["one episode"])]
    result = offline.by_log(found)
    assert (result.values, result.log, result.trust) == ((1.0, 3.0), (1.0, 3.0), "none")
    assert offline.reason(found) == "none: one episode"


def test_a_failure_is_told_in_one_line():
    assert (
        offline.said("a log\nerror: another run:\n  seed: 0 -> 1\n") == "another run: seed: 0 -> 1"
    )
    assert offline.said("Traceback\nKeyError: 1") == "KeyError: 1"
    assert offline.said("") == "it said nothing"


def run(*arguments):
    argv = ["launch.benchmark", *arguments]
    command_line.run(benchmark.main, flags_parser=benchmark.parse, argv=argv)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["offline"], "--dataset is missing"),
        (["offline", "--dataset=nowhere"], "no dataset at nowhere"),
        (["offline", "--dataset=nowhere", "--agents=iqll"], "unknown agent 'iqll'; did you mean"),
        (["offline", "--dataset=nowhere", "--agents=ppo"], "ppo learns by acting"),
        (["offline", "--dataset=nowhere", "--peers=x"], "offline does not use --peers"),
        (["offline", "--dataset={log}/real.parquet"], "--env is missing: the actions in"),
        (["offline", "--dataset={log}/choices.parquet", "--env=CartPole-v1"], "choices.parquet"),
        (["suite", "--dataset=x"], "suite does not use --dataset"),
        (["offline_speed", "--peers=", "--agents=dqn"], "no settings for --agents=dqn"),
        (["offline_speed", "--peers=sbx"], "unknown peer 'sbx'; known: d3rlpy"),
        (["offline_speed", "--peer_python=no/python"], "`make bench-offline`"),
    ],
)
def test_wrong_flags_are_refused(arguments, sentence, capsys, log, tmp_path):
    arguments = [argument.format(log=log) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        run(*arguments, f"--output={tmp_path / 'x.json'}")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def as_before():
    """The benchmark switches the compilation cache off."""
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_d3rlpy_is_given_our_settings(monkeypatch):
    asked = []

    def answer(command, environment):
        asked.append(command)
        return 'a warning\n{"first_update_seconds": 3.5, "seconds": [2.0, 1.0, 4.0]}\n'

    monkeypatch.setattr(processes, "output_of", answer)
    for agent, setting in offline_speed.SETTINGS.items():
        sizes = offline_speed.Sizes()
        told = offline_speed.theirs(setting, sizes, Options(repeats=3))
        each = 2.0 / setting.window  # their median
        assert told == pytest.approx((3.5 - each, 1 / each))
        assert pathlib.Path(asked[-1][1]).is_file()
        job = json.loads(asked[-1][-1])
        config = setting.config
        assert job["data"]["discrete"] is (agent == "cql_discrete")
        assert (job["window"], job["repeats"]) == (setting.window, 3)
        theirs = job["options"]
        assert (theirs["batch_size"], job["hidden_sizes"]) == (256, [256, 256])
        ours = {
            "learning_rate": "learning_rate",
            "gamma": "discount",
            "tau": "target_rate",
            "expectile": "expectile",
            "weight_temp": "inverse_temperature",
            "max_weight": "max_weight",
            "update_actor_interval": "policy_period",
            "n_action_samples": "num_draws",
            "target_update_interval": "target_period",
            "actor_learning_rate": "actor_learning_rate",
            "temp_learning_rate": "actor_learning_rate",
            "critic_learning_rate": "critic_learning_rate",
            "actor_beta": "actor_penalty",
            "critic_beta": "critic_penalty",
        }
        assert job["normalized"] == (["critic_encoder_factory"] if agent == "rebrac" else [])
        shared = ours.keys() & theirs.keys()
        assert {name: theirs[name] for name in shared} == {
            name: getattr(config, ours[name]) for name in shared
        }


def test_both_rows_of_every_agent_are_measured(as_before, monkeypatch):
    sizes = offline_speed.Sizes(4, 20, 3, 2)
    monkeypatch.setattr(
        offline_speed,
        "SETTINGS",
        {
            "bc": offline_speed.SETTINGS["bc"],
            "cql_discrete": offline_speed.SETTINGS["cql_discrete"],
        },
    )
    small = {name: small_of(setting) for name, setting in offline_speed.SETTINGS.items()}
    monkeypatch.setattr(offline_speed, "SETTINGS", small)
    rows = list(offline_speed._rows(Options(repeats=3, peers=()), sizes))
    names = ["train/bc", "compile/bc", "train/cql_discrete", "compile/cql_discrete", "ope/bandit"]
    assert [row.name for row in rows] == names
    assert all(0 <= row.value < math.inf for row in rows)
    assert all(len(row.samples) == 3 for row in rows if not row.name.startswith("compile"))
    assert rows[0].settings["actions"] == "real"
    assert rows[2].settings["actions"] == "discrete"


def small_of(setting):
    config = type(setting.config)(hidden_sizes=(4,), batch_size=8)
    return offline_speed.Setting(config, 5, setting.discrete, "", (), {})


def test_the_usual_agents_are_all_that_know_what_to_do_with_the_actions():
    options = Options(dataset="x")
    real, discrete = (
        offline.agents(options, offline.Data("x", 0.0, discrete)) for discrete in (False, True)
    )
    assert set(real) == {"bc", "td3_bc", "rebrac", "iql", "cql"}
    assert set(discrete) == {"bc", "cql_discrete", "iql"}


def test_the_made_up_dataset_is_as_large_as_it_says():
    made = offline_speed.made_up(offline_speed.Sizes(), discrete=False)
    assert (made.num_episodes, made.num_steps) == (100, 100_000)
    assert made.rows.observation.features.shape == (100_100, 17)
    assert made.rows.action.shape == (100_100, 6)
    assert (made.rows.discount == 1).all()  # no termination
    assert isinstance(made, datasets.Dataset)
