"""The suite's comparison by hand, and its reports."""

import json

import pytest

from launch import benchmark, command_line
from launch.benchmarks import Options, suite, suite_report, table
from launch.benchmarks.suite import Scores
from launch.benchmarks.table import Row
from rljax.config import UsageError

SCORES = {  # normalized: random 0 and 0; ppo (1, .5) and (1, 1); dqn (0, .5) and (.5, .5)
    "task_a": {
        "ppo": Scores((10.0, 5.0), (1.0, 1.0)),
        "dqn": Scores((0.0, 5.0), (1.0, 1.0)),
        "random": Scores((-1.0, 1.0), (1.0, 1.0)),
    },
    "CartPole-v1": {  # published: 500
        "ppo": Scores((500.0, 500.0), (1.0, 1.0)),
        "dqn": Scores((260.0, 260.0), (1.0, 1.0)),
        "random": Scores((20.0, 20.0), (1.0, 1.0)),
    },
}


def compared(scores):
    return {row.name: row for row in suite.comparison(scores)}


def test_scores_are_normalized_between_random_and_the_best_known():
    # task_a has no published score: the best mean is ppo's 7.5, the floor 0
    assert suite.normalized(SCORES, list(SCORES), "ppo").tolist() == [
        [10 / 7.5, 1.0],
        [5 / 7.5, 1.0],
    ]
    assert suite.normalized(SCORES, ["CartPole-v1"], "dqn").tolist() == [[0.5], [0.5]]


def test_the_comparison_by_hand():
    rows = compared(SCORES)
    # ppo against dqn, task_a: 10 beats both, 5 beats 0 and ties 5: 3.5 of 4; CartPole: 4 of 4
    assert rows["improvement/ppo_over_dqn"].value == pytest.approx(7.5 / 8)
    assert rows["improvement/dqn_over_ppo"].value == pytest.approx(0.5 / 8)
    assert rows["iqm/random"].value == pytest.approx(0.0)
    assert rows["iqm/ppo"].value == pytest.approx(1.0)  # the middle half of ⅔, 1, 1, 1⅓
    low, high = rows["iqm/ppo"].interval
    assert low <= 1.0 <= high


def test_a_task_that_nobody_can_do_is_left_out_and_named():
    stuck = {agent: Scores((-200.0, -200.0), (1.0, 1.0)) for agent in ("ppo", "dqn", "random")}
    rows = compared(SCORES | {"MountainCar-v0": stuck})
    assert rows["iqm/ppo"].settings["tasks"] == "task_a, CartPole-v1"
    assert "MountainCar-v0" in json.dumps(rows["iqm/ppo"].settings)


def test_an_agent_that_failed_somewhere_is_not_compared():
    failed = SCORES | {"task_a": SCORES["task_a"] | {"dqn": Scores(failure="boxes")}}
    assert {name for name in compared(failed) if "dqn" in name} == set()
    assert "iqm/ppo" in compared(failed)


def test_a_failing_pair_is_reported_and_the_others_go_on(monkeypatch, tmp_path):
    def run(script, *arguments):
        if "--agent=dqn" in arguments:
            raise UsageError("dqn needs discrete actions.")
        for argument in arguments:
            if script == "train" and argument.startswith("--workdir="):
                workdir = tmp_path / argument.partition("=")[2]
                workdir.mkdir(parents=True)
                result = {
                    "eval/return_mean": 400.0,
                    "eval_sampled/return_mean": 20.0,
                    "time/wall_clock_seconds": 3.0,
                }
                (workdir / "result.json").write_text(json.dumps(result))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "_run", run)
    options = Options(envs=("CartPole-v1",), agents=("ppo", "dqn"), trials=2)
    rows = {row.name: row for row in suite.rows(options)}
    assert rows["failed/dqn"].unit == "dqn needs discrete actions."
    assert rows["score/ppo"].value == 400.0
    assert rows["score/random"].value == 20.0  # its sampled return
    assert rows["score/ppo"].settings["steps"] == 100_000  # of the preset
    assert rows["iqm/ppo"].value == pytest.approx(380 / 480)


def test_reports_show_every_figure(tmp_path):
    settings = {"env": "task_a", "steps": 1000, "trials": 2, "episodes": 100}
    rows = [
        Row("score/ppo", 7.5, "return", settings, samples=(10.0, 5.0), interval=(5.0, 10.0)),
        Row("failed/dqn", 0.0, "needs <discrete> actions", settings),
        *suite.comparison(SCORES),
    ]
    machine = {"cores": 2, "cpu": "x", "memory_gb": 1, "devices": ["cpu"], "load_average": 0.0}
    report = {
        "rows": [table.to_json(row) for row in rows],
        "date": "2026-11-21T00:00:00",
        "command": "python -m launch.benchmark suite",
        "machine": machine,
    }
    runs = tmp_path / "runs" / "task_a" / "ppo" / "0"
    runs.mkdir(parents=True)
    lines = [{"step": i, "time": i, "episode/return_mean": i} for i in (1, 2)]
    (runs / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    markdown, web = suite_report.write(report, tmp_path / "suite.json", tmp_path / "runs")
    text = markdown.read_text()
    assert "| task_a | 1,000 | 7.5 ± 2.5 |" in text
    assert "| ppo over dqn | 0.94 |" in text
    plots = sorted(path.name for path in (tmp_path / "suite_plots").iterdir())
    assert plots == ["improvement.png", "iqm.png", "profiles.png", "task_a.png"]
    assert all(f"suite_plots/{name}" in text for name in plots)
    page = web.read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "&lt;discrete&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["suite", "--agents=pppo"], "unknown agent 'pppo'; did you mean"),
        (["suite", "--peers=sbx"], "suite does not use --peers; its flags are --envs"),
        (["ppo", "--trials=2"], "ppo does not use --trials"),
        (["suite", "--trials=0"], "trials"),
    ],
)
def test_wrong_flags_are_refused(arguments, sentence, capsys, tmp_path):
    argv = ["launch.benchmark", *arguments, f"--output={tmp_path / 'x.json'}"]
    with pytest.raises(SystemExit) as end:
        command_line.run(benchmark.main, flags_parser=benchmark.parse, argv=argv)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
