import importlib
import json
import math
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from agents import ppo
from launch import benchmark, command_line
from launch import benchmarks as registry
from launch.benchmarks import Options, measure, processes, table
from launch.benchmarks import ppo as ppo_benchmark
from launch.benchmarks.table import Row
from rljax.config import UsageError

FAST = Row("ppo/train", 60_000.0, "steps/s", {"env": "CartPole-v1"}, "sbx", 15_000.0, (5e4, 6e4))
SLOW = Row("startup/first_update", 7.5, "s", {"env": "CartPole-v1"}, "target", 15.0)
ALONE = Row("time/between", 0.0625, "ms", {"env": "Hopper-v4"})


@pytest.fixture
def as_before():
    enabled = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


@pytest.fixture
def measured(monkeypatch):
    """A benchmark by the name of "fake", whose rows are what the test puts in the list."""
    rows = []
    fake = types.SimpleNamespace(versions=lambda options: {}, rows=lambda options: iter(rows))
    monkeypatch.setitem(registry.BENCHMARKS, "fake", "fake_benchmark")
    monkeypatch.setitem(sys.modules, "fake_benchmark", fake)
    return rows


def run(*arguments):
    argv = ["launch.benchmark", *arguments]
    command_line.run(benchmark.main, flags_parser=benchmark.parse, argv=argv)


def test_more_than_one_is_better_whatever_the_unit():
    assert FAST.ratio == 4.0  # 60,000 / 15,000 steps/s
    assert SLOW.ratio == 2.0  # 15 / 7.5 s: less is better
    assert ALONE.ratio is None


def test_json_brings_the_rows_back():
    report = json.loads(json.dumps({"rows": [table.to_json(row) for row in (FAST, ALONE)]}))
    assert report["rows"][0]["ratio"] == 4.0
    assert report["rows"][1]["ratio"] is None
    assert table.from_json(report) == [FAST, ALONE]


@pytest.mark.parametrize("report", [{}, [], {"rows": [{"name": "x"}]}, {"rows": [1]}])
def test_what_is_no_report_is_refused(report):
    with pytest.raises(UsageError, match="no report of a benchmark"):
        table.from_json(report)


def test_a_table_is_aligned():
    assert table.aligned([FAST, SLOW, ALONE]).splitlines() == [
        "env CartPole-v1",
        "",
        "                       value  unit     peer    its value  ratio",
        "ppo/train             60,000  steps/s  sbx        15,000   4.00",
        "startup/first_update    7.50  s        target       15.0   2.00",
        "",
        "env Hopper-v4",
        "",
        "               value  unit  peer  its value  ratio",
        "time/between  0.0625  ms",
    ]


def test_a_page_has_the_same_table():
    assert table.markdown([SLOW]).splitlines() == [
        "env CartPole-v1",
        "",
        "|  | value | unit | peer | its value | ratio |",
        "| --- | ---: | --- | --- | ---: | ---: |",
        "| startup/first_update | 7.50 | s | target | 15.0 | 2.00 |",
    ]


def test_a_page_is_made_from_the_file(tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"rows": [table.to_json(SLOW)]}))
    assert table.main([str(path)]) == 0
    assert capsys.readouterr().out == table.markdown([SLOW]) + "\n"
    path.write_text("{")
    assert table.main([str(path)]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert table.main([]) == 2


def test_a_report_says_what_was_measured_where_and_how(tmp_path, capsys, measured):
    measured += [FAST, ALONE]
    path = tmp_path / "made" / "fake.json"
    with pytest.raises(SystemExit) as end:
        run("fake", f"--output={path}")
    assert not end.value.code
    report = json.loads(path.read_text())
    assert report.keys() == {"rows", "command", "date", "machine", "versions", "peer_versions"}
    assert table.from_json(report) == [FAST, ALONE]
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["memory_gb"] > 0
    assert report["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr()
    assert printed.out == table.aligned([FAST, ALONE]) + "\n"
    assert "ppo/train: 60,000 steps/s, 4.00 times sbx" in printed.err


def test_a_failure_leaves_what_was_there(tmp_path, measured, monkeypatch):
    def rows(options):
        yield FAST
        raise UsageError("the peer is gone.")

    monkeypatch.setattr(sys.modules["fake_benchmark"], "rows", rows)
    path = tmp_path / "fake.json"
    path.write_text("of yesterday")
    with pytest.raises(SystemExit) as end:
        run("fake", f"--output={path}")
    assert end.value.code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["fake.json"]
    assert path.read_text() == "of yesterday"


def test_what_cannot_be_written_is_told_before_anything_is_measured(tmp_path, measured, capsys):
    measured.append(FAST)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        run("fake", f"--output={tmp_path}/file/fake.json")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "fake.json cannot be written: " in error
    assert "ppo/train" not in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output=x.json"], "name of a benchmark must come first; known: accelerator"),
        (["pppo", "--output=x.json"], "unknown benchmark 'pppo'; did you mean ppo?"),
        (["ppo"], "--output is missing"),
        (["ppo", "--output=x.json", "--repeat=3"], "did you mean --repeats?"),
        (["ppo", "--output=x.json", "--repeats=0"], "repeats"),
        (["ppo", "--output=x.json", "--peers=", "--env=Hopper-v4"], "known: CartPole-v1"),
        (["ppo", "--output=x.json", "--peers=acme"], "unknown peer 'acme'; known: sb3, sbx"),
        (["ppo", "--output=x.json", "--peer_python=no/python"], "`make bench`"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_peers_that_are_not_installed_are_named():
    options = Options(peers=("sbx",), peer_python=pathlib.Path(sys.executable))  # has no SBX
    with pytest.raises(UsageError, match=r"No package metadata was found for (stable|sbx)"):
        ppo_benchmark.versions(options)


def test_help_needs_no_jax():
    code = "import sys; from launch import benchmark; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_counts_steps_by_hand(monkeypatch):
    """Updates of 8 rows take 1 s to collect, 2 to learn, and 1 between; 2 episodes end in each."""
    clock = 0.0

    def updates(*_):
        nonlocal clock
        for update in range(1, 100):
            clock += 4.0
            times = {"time/collect_seconds": 1.0, "time/learn_seconds": 2.0}
            yield 8 * update, None, {"episode/count": 2 * update, **times}

    monkeypatch.setattr(measure.on_policy, "run", updates)
    monkeypatch.setattr(measure.on_policy, "init", lambda *_: None)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock)
    load = measure.Load(rollout_length=4, num_envs=2, window=5, repeats=2)
    training = measure.training(None, None, None, warm_up=3, load=load)
    assert training.first_update == 4.0
    assert training.rows_per_second == (2.0, 2.0)  # 5 · 8 rows in 5 · 4 s
    assert training.steps_per_second == (1.5, 1.5)  # 10 of the 40 rows lie behind endings
    assert training.collect_ms == (1000.0, 1000.0)
    assert training.learn_ms == (2000.0, 2000.0)
    assert training.between_ms == (1000.0, 1000.0)


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v4"])
def test_every_row_of_a_setting_is_measured(env, as_before):
    config = ppo.Config(
        num_envs=2, rollout_length=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,)
    )
    setting = ppo_benchmark.Setting(env, config, warm_up=1, window=2)
    rows = list(ppo_benchmark.setting_rows(setting, Options(repeats=3, num_threads=1, peers=())))
    by_name = {row.name: row for row in rows}
    assert list(by_name) == [
        "ppo/train",
        "ppo/first_update",
        "pool/random",
        "collector/host",
        "pool/random_xla",
        "collector/envpool_xla",
        "ppo/update",
        "ppo/train_rows",
        "time/collect",
        "time/learn",
        "time/between",
    ]
    assert all(0 < row.value < math.inf for row in rows)
    assert all(row.settings == setting.describe(num_threads=1) for row in rows)
    assert all(len(row.samples) == 3 for row in rows if row.name != "ppo/first_update")
    assert all(sorted(row.samples)[len(row.samples) // 2] == row.value for row in rows)
    assert by_name["ppo/train"].peer is None
    pool, xla = by_name["pool/random"].value, by_name["pool/random_xla"].value
    assert by_name["collector/host"].peer_value == pool
    assert by_name["collector/envpool_xla"].peer_value == xla
    # a row costs at least 1 / pool + 1 / update seconds, and an update has 16 rows
    fastest, update = max(pool, xla), by_name["ppo/update"].value
    assert 1 / by_name["ppo/train_rows"].peer_value == pytest.approx(1 / fastest + 1 / update)
    assert by_name["time/collect"].peer_value == pytest.approx(1000 * 16 / fastest)
    assert by_name["time/learn"].peer_value == pytest.approx(1000 * 16 / update)


def test_the_peers_are_given_our_settings(monkeypatch):
    asked = []

    def answer(command, environment):
        asked.append((command, environment))
        return 'a warning\n{"steps_per_second": [3.0, 1.0, 2.0], "first_update_seconds": 9.0}\n'

    monkeypatch.setattr(processes, "output_of", answer)
    monkeypatch.setenv("NPROC", "32")
    cheetah = ppo_benchmark.SETTINGS[2]
    result = ppo_benchmark.run_peer("sbx", cheetah, Options(num_threads=2))
    assert result == (2.0, 9.0)  # the median of 1, 2 and 3 steps/s
    [(command, environment)] = asked
    job = json.loads(command[-1])
    assert pathlib.Path(command[1]).is_file()
    assert (job["env"], job["num_envs"], job["normalize"]) == ("HalfCheetah-v4", 8, True)
    assert job["ppo"]["n_steps"] == 256
    assert job["ppo"]["batch_size"] == 64  # 8 · 256 rows / 32 minibatches
    assert job["ppo"]["n_epochs"] == 10
    assert job["ppo"]["vf_coef"] == 0.5  # of a squared error without our ½
    assert "NPROC" not in environment


def test_settings_are_those_of_the_protocol():
    described = [setting.describe(num_threads=2) for setting in ppo_benchmark.SETTINGS]
    names = ("env", "num_envs", "rollout_length", "num_epochs", "minibatch_size", "normalize")
    assert [tuple(each[name] for name in names) for each in described] == [
        ("CartPole-v1", 8, 128, 4, 256, False),
        ("CartPole-v1", 64, 128, 4, 2048, False),
        ("HalfCheetah-v4", 8, 256, 10, 64, True),
    ]
    for setting in ppo_benchmark.SETTINGS:
        ppo.validate(setting.config)


TRAINER = """#!{python}
import pathlib, sys, time
workdir = next(x for x in sys.argv if x.startswith("--workdir=")).partition("=")[2]
assert sys.argv[1:3] == ["-m", "launch.train"]
held = b"x" * 200_000_000
time.sleep(0.3)
pathlib.Path(workdir).mkdir()
if "--silent" not in sys.argv:
    pathlib.Path(workdir, "metrics.jsonl").write_text('{{"step": 8, "time": 0.1}}' + chr(10))
time.sleep(0.5)
if "--fail" in sys.argv:
    sys.exit("error: no such thing.")
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Stands in for `python`: holds 0.2 GB, and writes a line after 0.3 s."""
    path = tmp_path / "python"
    path.write_text(TRAINER.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(path))


def test_a_training_run_is_watched_from_outside(trainer):
    training = processes.train([])
    assert 0.3 <= training.first_update_seconds
    assert 0.2 <= training.peak_memory_gb < 0.3


@pytest.mark.parametrize(("flag", "said"), [("--fail", "no such thing"), ("--silent", "nothing")])
def test_a_training_run_that_fails_is_no_figure(trainer, flag, said):
    with pytest.raises(UsageError, match=said):
        processes.train([flag])


def test_every_benchmark_is_there():
    for module in registry.BENCHMARKS.values():
        assert callable(importlib.import_module(module).rows)
        assert callable(importlib.import_module(module).versions)
