"""launch.train and launch.evaluate as a user runs them: whole processes, killed and corrupted."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import trained
from rljax.metrics import jsonl

SMALL = (
    "--config.total_steps=16384",
    "--config.num_envs=8",
    "--config.rollout_length=32",
    "--config.num_minibatches=4",
    "--config.hidden_sizes=16",
    "--checkpoint_every=1024",
    "--eval_every=8192",
    "--eval_episodes=2",
)
IN_GRAPH = ("--env=rljax:cartpole", *SMALL)


def command(module, *arguments):
    return [sys.executable, "-m", f"launch.{module}", *arguments]


def run(module, *arguments, **options):
    return subprocess.run(
        command(module, *arguments), capture_output=True, text=True, timeout=300, **options
    )


def train(workdir, *arguments):
    return run("train", f"--workdir={workdir}", *arguments)


def refused(answer, *words):
    """One sentence, exit code 2, no trace."""
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    for word in words:
        assert word in answer.stderr
    return True


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> pathlib.Path:
    """A finished run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    answer = train(workdir, *IN_GRAPH)
    assert answer.returncode == 0, answer.stderr
    return workdir


def test_a_run_leaves_its_config_metrics_result_curve_and_checkpoints(straight):
    result = json.loads((straight / "result.json").read_text())
    assert result["step"] == 16384
    assert result["eval/episodes"] == 2
    assert result["time/steps_per_second"] > 0
    lines = jsonl.read(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(256, 16385, 256))
    assert [line["step"] for line in lines if "eval/return_mean" in line] == [8192, 16384]
    config = json.loads((straight / "config.json").read_text())
    assert config["experiment"]["config"]["hidden_sizes"] == [16]
    assert (straight / "plots" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (straight / "checkpoints" / "16384").is_dir()


def test_the_same_command_on_a_finished_run_changes_nothing(straight):
    before = (straight / "result.json").read_text(), (straight / "metrics.jsonl").read_text()
    answer = train(straight, *IN_GRAPH)
    assert answer.returncode == 0, answer.stderr
    assert before == (
        (straight / "result.json").read_text(),
        (straight / "metrics.jsonl").read_text(),
    )


def test_another_config_in_the_same_workdir_is_refused_with_the_difference(straight):
    before = (straight / "config.json").read_text()
    answer = train(straight, *IN_GRAPH, "--config.learning_rate=0.5", "--seed=3")
    assert refused(answer, "holds another run", "learning_rate: 0.001 -> 0.5", "seed: 0 -> 3")
    assert (straight / "config.json").read_text() == before


def wait_for_step(process, workdir, step):
    """Until the run has written metrics past `step`, while it still goes on."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        lines = jsonl.read(workdir / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError("no progress")


def killed(workdir, number, *arguments):
    """Starts a run and sends it a signal when it is well on its way."""
    with subprocess.Popen(
        command("train", f"--workdir={workdir}", *arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        wait_for_step(process, workdir, 4096)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_kill_9_and_the_same_command_give_the_undisturbed_run_bit_for_bit(straight, tmp_path):
    code, _ = killed(tmp_path, signal.SIGKILL, *IN_GRAPH)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    answer = train(tmp_path, *IN_GRAPH)
    assert answer.returncode == 0, answer.stderr
    steps = [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")]
    assert steps == list(range(256, 16385, 256))  # none twice, none missing
    one, two = trained.load(straight), trained.load(tmp_path)
    assert one.step == two.step == 16384
    for a, b in zip(leaves(one.policy), leaves(two.policy), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_ends_a_run_with_a_checkpoint(number, code, tmp_path):
    slow = (*IN_GRAPH, "--config.total_steps=10000000", "--checkpoint_every=0", "--eval_every=0")
    returncode, errors = killed(tmp_path, number, *slow)
    assert returncode == code
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    (step,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert step == jsonl.read(tmp_path / "metrics.jsonl")[-1]["step"]


SIGNAL_WHILE_AGREEING = """
import os, runpy, signal, sys
from rljax import distributed

def agree(step, number):
    if step == 256:  # what this process brings to the agreement is already said
        os.kill(os.getpid(), signal.SIGTERM)
    return number

distributed.agree = agree
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""


def test_a_signal_that_comes_while_all_agree_is_heard_at_the_next_step_and_not_before(tmp_path):
    """Lost, the run goes on for ever; heard at once, this process saves without the others."""
    answer = subprocess.run(
        [sys.executable, "-c", SIGNAL_WHILE_AGREEING, f"--workdir={tmp_path}", *IN_GRAPH],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 143, answer.stderr
    assert "stopped at step 512; the same command resumes" in answer.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["512"]


def test_a_damaged_checkpoint_is_passed_over_and_said(straight, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", straight, workdir], check=True)
    for path in (workdir / "checkpoints" / "16384").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    answer = train(workdir, *IN_GRAPH)
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    assert "; step 16384 is kept as damaged-16384" in answer.stderr
    for a, b in zip(
        leaves(trained.load(straight).policy), leaves(trained.load(workdir).policy), strict=True
    ):
        np.testing.assert_array_equal(a, b)  # it went on from the one before, to the same end


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env=CartPoel-v1",), ("CartPoel-v1", "CartPole-v1")),
        (("--env=CartPole-v1", "--config.num_minibatches=7"), ("num_minibatches=7", "1024")),
        (("--env=CartPole-v1", "--config.num_envs=0"), ("num_envs", "positive")),
        (("--env=CartPole-v1", "--num_devices=9"), ("--num_devices=9", "2 device(s)")),
        (("--env=CartPole-v1", "--config.num_minibatches=1024"), ("minibatches of 1 rows",)),
        (("--env=CartPole-v1", "--collector=in_graph"), ("--collector=in_graph",)),
        (("--env=CartPole-v1", '--env_options={"wind": 3}'), ("wind",)),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments, words, tmp_path):
    workdir = tmp_path / "run"
    answer = train(workdir, "--preset=none", *arguments)
    assert refused(answer, *words)
    assert not (workdir / "config.json").exists()


def test_a_workdir_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("here already")
    answer = train(tmp_path / "file" / "run", *IN_GRAPH)
    assert refused(answer, "is a file")


def test_evaluate_scores_both_modes_and_keeps_a_video(straight):
    answer = run("evaluate", f"--workdir={straight}", "--episodes=5", "--video_steps=20")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((straight / "result.json").read_text())
    assert result["eval/episodes"] == result["eval_sampled/episodes"] == 5
    assert result["eval/return_min"] <= result["eval/return_mean"] <= result["eval/return_max"]
    (video,) = (straight / "videos").iterdir()
    assert video.read_bytes().startswith(b"GIF8")


def test_evaluate_takes_several_workdirs_as_seeds(straight):
    answer = run(
        "evaluate", f"--workdir={straight},{straight}", "--episodes=2", "--novideo", "--step=best"
    )
    assert answer.returncode == 0, answer.stderr
    assert "IQM of 2 seeds" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--workdir is missing",)),
        (("--workdir=nowhere",), ("holds no run",)),
        (("--workdir=nowhere", "--episodes=0"), ("episodes",)),
        (("--workdir=nowhere", "--step=last"), ("latest or best",)),
    ],
)
def test_evaluate_refuses_bad_input(arguments, words, tmp_path):
    assert refused(run("evaluate", *arguments, cwd=tmp_path, env=env()), *words)


def env():
    root = pathlib.Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root)}
