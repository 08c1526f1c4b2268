"""--num_seeds, --vary and --run: what they mean, what is refused, and a whole run of eight."""

import json
import re
import subprocess
import sys

import pytest

from launch import experiment as experiments
from launch import flags, graph, trained
from launch.experiment import identity
from rljax.config import UsageError
from rljax.loops import actor_learner, in_graph, off_policy, on_policy
from rljax.metrics import jsonl

BASE = ("--env=rljax:cartpole", "--preset=none", "--config.num_envs=8")
EIGHT = (
    *BASE,
    "--num_seeds=4",
    "--vary=learning_rate:1e-3,1e-2",
    "--config.rollout_length=16",
    "--config.num_epochs=1",
    "--config.hidden_sizes=8",
    "--checkpoint_every=256",
    "--eval_every=512",
    "--eval_episodes=2",
    "--log_every=2",
)


def experiment(*arguments, workdir="x"):
    return flags.experiment(["train", *BASE, f"--workdir={workdir}", *arguments])


def launch(script, *arguments):
    command = [sys.executable, "-m", f"launch.{script}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_vary_reads_names_with_their_values():
    assert graph.vary("") == ()
    assert graph.vary("learning_rate:1e-3,3e-4; entropy_cost:0,0.01") == (
        ("learning_rate", (1e-3, 3e-4)),
        ("entropy_cost", (0.0, 0.01)),
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--num_seeds=0",), "--num_seeds=0: should be at least 1."),
        (("--vary=learning_rate",), "'learning_rate' is no name with values, as --vary="),
        (("--vary=learning_rate:",), "'learning_rate:' is no name with values"),
        (("--vary=:1,2",), "':1,2' is no name with values"),
        (("--vary=learning_rate:1,x",), "'learning_rate:1,x' is no name with values"),
        (("--vary=learning_rate:1,nan",), "is no name with values"),
        (("--vary=learning_rate:1e-3,0.001",), "has a name, or a value of learning_rate, twice"),
        (("--vary=clip_ratio:1;clip_ratio:2",), "has a name, or a value of clip_ratio, twice"),
        (("--vary=learning_rate:1e-3,-1",), "config.learning_rate must be positive, not -1.0"),
    ],
)
def test_flags_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(UsageError) as error:
        experiment(*arguments)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--env=CartPole-v1", "--num_seeds=2"), "CartPole-v1 runs on the host; only a JAX env"),
        (("--vary=discount:0.9,0.99",), "lets it vary learning_rate, clip_ratio, entropy_cost."),
        (("--num_seeds=3",), "3 runs cannot be split over 2 devices"),
        (("--num_seeds=2", "--parallel=pmap"), "one process and --parallel=shard_map"),
        (("--num_seeds=2", "--actor_threads=2"), "where no actors collect"),
        (("--agent=dqn", "--num_seeds=2"), "dqn learns from replay"),
        (("--num_seeds=2", "--collector=host"), "use --collector=in_graph"),
    ],
)
def test_runs_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        trained.build(experiment(*arguments))


@pytest.mark.parametrize(
    ("arguments", "loop"),
    [
        ((), in_graph.Config),
        (("--num_seeds=2",), in_graph.Config),
        (("--agent=impala",), in_graph.Config),
        (("--env=CartPole-v1",), on_policy.Config),
        (("--parallel=pmap",), on_policy.Config),
        (("--actor_threads=2",), actor_learner.Config),
        (("--agent=dqn",), off_policy.Config),
    ],
)
def test_jax_environments_are_trained_in_the_graph_where_they_can_be(arguments, loop):
    assert type(trained.loop_of(experiment(*arguments))) is loop


def test_calls_end_where_something_is_due():
    asked = experiment(
        "--config.total_steps=1024000", "--checkpoint_every=0", "--eval_every=50000", "--seed=7"
    )
    config = trained.loop_of(asked)
    assert config.rows == 1024  # 8 environments of 128 rows: 1000 updates
    assert config.cadences == (10 * 1024, 50_000)  # a hundredth of the run between two lines
    assert graph.log_rows(asked, config) == 10 * 1024
    assert config.seed == 7
    every = experiment("--config.total_steps=1024000", "--log_every=3")
    assert graph.log_rows(every, trained.loop_of(every)) == 3 * 1024
    host = experiment("--env=CartPole-v1", "--config.total_steps=1024000")
    assert graph.log_rows(host, trained.loop_of(host)) == 1024


def test_how_many_runs_there_are_is_part_of_what_a_workdir_holds(tmp_path):
    one = experiment(workdir=tmp_path)
    assert not {"num_seeds", "vary"} & identity(one).keys()
    experiments.open_workdir(one)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["experiment"]["num_seeds"], stored["experiment"]["vary"]  # as in 0.1
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert experiments.load(tmp_path) == one
    experiments.open_workdir(one)
    several = experiment("--num_seeds=2", "--vary=clip_ratio:0.1,0.2", workdir=tmp_path)
    with pytest.raises(UsageError, match="num_seeds: absent -> 2"):
        experiments.open_workdir(several)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Four seeds by two learning rates, all the way; and what was said of them."""
    workdir = tmp_path_factory.mktemp("eight")
    whole = launch("train", f"--workdir={workdir}", *EIGHT, "--config.total_steps=1024")
    assert whole.returncode == 0, whole.stderr
    return workdir, whole.stderr


def test_a_run_of_eight_leaves_one_curve_and_the_scores_of_all(eight):
    workdir, said = eight
    lines = jsonl.read(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [256, 512, 768, 1024]
    assert [line["step"] for line in lines if "eval/return_mean" in line] == [512, 1024]
    result = json.loads((workdir / "result.json").read_text())
    returns = [result[f"eval/run_{number}_return"] for number in range(8)]
    assert result["eval/return_mean"] == pytest.approx(sum(returns) / 8)
    assert returns[int(result["eval/best_run"])] == max(returns)
    assert result["eval/episodes"] == 16
    assert result["seed/return_min"] <= result["seed/return_mean"] <= result["seed/return_max"]
    assert result["seed/diverged"] == 0
    assert f"run 5: seed 1, learning_rate 0.01: return {returns[5]:,.1f}" in said
    assert said.count("run ") == 8


def test_a_run_of_eight_resumes_as_if_nothing_had_been(eight, tmp_path):
    arguments = (f"--workdir={tmp_path}", *EIGHT, "--config.total_steps=1024")
    with subprocess.Popen(
        [sys.executable, "-c", _STOPPED_AT_512, *arguments], stderr=subprocess.DEVNULL
    ) as process:
        assert process.wait(300) == 9
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")) == ["256", "512"]
    answer = launch("train", *arguments)
    assert answer.returncode == 0, answer.stderr
    straight, resumed = (
        json.loads((workdir / "result.json").read_text()) for workdir in (eight[0], tmp_path)
    )
    for number in range(8):
        name = f"eval/run_{number}_return"
        assert resumed[name] == straight[name]


_STOPPED_AT_512 = """
import os, sys
from launch import flags, process, train
process.prepare()
from rljax import checkpoint
save = checkpoint.Manager.save
def save_and_die(manager, step, *rest):
    save(manager, step, *rest)
    if step == 512:
        manager.wait()
        os._exit(9)
checkpoint.Manager.save = save_and_die
flags.run(train.main, flags_parser=flags.parse)
"""


def test_the_policy_of_each_of_the_eight_is_evaluated_by_its_number(eight):
    workdir, _ = eight
    first, sixth = trained.load(workdir), trained.load(workdir, number=5)
    assert (first.experiment.seed, first.experiment.config.learning_rate) == (0, 1e-3)
    assert (sixth.experiment.seed, sixth.experiment.config.learning_rate) == (1, 1e-2)
    assert trained.loop_of(sixth.experiment).num_seeds == 1
    answer = launch("evaluate", f"--workdir={workdir}", "--run=5", "--episodes=2", "--novideo")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["eval/run"] == 5
    refused = launch("evaluate", f"--workdir={workdir}", "--run=8", "--novideo")
    assert (refused.returncode, "there is no run 8: choose 0 to 7." in refused.stderr) == (2, True)


def test_the_policy_of_one_of_the_eight_is_exported(eight, tmp_path):
    answer = launch("export", f"--workdir={eight[0]}", "--run=5", f"--export_dir={tmp_path}")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "1" / "saved_model.pb").exists()
