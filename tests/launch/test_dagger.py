"""DAgger as a user runs it: an expert is trained, asked, and no longer needed; or refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from launch import experiment as experiments
from launch import flags, train, trained
from rljax.config import UsageError
from rljax.metrics import jsonl

ENV = "--env=rljax:cartpole"
EXPERT = (
    "--agent=ppo",
    ENV,
    "--preset=none",
    "--config.total_steps=256",
    "--config.num_envs=4",
    "--config.rollout_length=16",
    "--config.hidden_sizes=8",
    "--eval_episodes=0",
    "--num_devices=1",
    "--progress=off",
)
SMALL = (
    "--agent=dagger",
    ENV,
    "--preset=none",
    "--config.num_rounds=4",
    "--config.num_envs=4",
    "--config.rollout_length=8",
    "--config.num_updates=3",
    "--config.batch_size=8",
    "--config.hidden_sizes=8",
    "--eval_every=0",
    "--eval_episodes=2",
    "--checkpoint_every=32",
    "--keep_checkpoints=9",
    "--num_devices=1",
    "--progress=off",
)


def experiment(*arguments):
    return flags.experiment(["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("expert")
    assert train.train(experiment(*EXPERT, f"--workdir={workdir}")) == 0
    return workdir


@pytest.fixture(scope="module")
def arguments(expert) -> tuple[str, ...]:
    return (*SMALL, f"--expert={expert}")


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory) -> pathlib.Path:
    """A finished run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    assert train.train(experiment(*arguments, f"--workdir={workdir}")) == 0
    return workdir


def test_a_run_leaves_metrics_result_and_a_policy(straight):
    lines = jsonl.read(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == [32, 64, 96, 128]
    assert [line["expert/beta"] for line in lines] == [1, 0, 0, 0]
    assert [line["replay/size"] for line in lines] == [32, 64, 96, 128]
    assert json.loads((straight / "result.json").read_text())["eval/episodes"] == 2
    run = trained.load(straight)
    _, action, _ = run.agent.act(
        run.policy, (), run.agent.spec.example((3,)), jax.random.key(0), True
    )
    assert (run.step, action.shape) == (128, (3,))


def test_the_labels_are_those_of_the_expert_that_was_named(straight, expert):
    asked, learned = trained.load(expert), trained.build(experiments.load(straight))
    jax.tree.map(np.testing.assert_array_equal, asked.policy, learned.source.policy)
    assert learned.source.expert.spec == asked.agent.spec


def test_a_stopped_run_goes_on_as_if_it_had_not_been(straight, arguments, tmp_path, monkeypatch):
    saved, write = [], train._Due.now

    def stops_after_two(self, what, step, every):
        if what == "checkpoint" and step == 96:
            raise KeyboardInterrupt
        saved.append(step)
        return write(self, what, step, every)

    monkeypatch.setattr(train._Due, "now", stops_after_two)
    run = experiment(*arguments, f"--workdir={tmp_path}")
    with pytest.raises(KeyboardInterrupt):
        train.train(run)
    assert max(saved) == 96
    monkeypatch.undo()
    assert trained.load(tmp_path).step == 64
    assert train.train(run) == 0
    one, two = trained.load(straight), trained.load(tmp_path)
    assert two.step == 128
    jax.tree.map(np.testing.assert_array_equal, one.policy, two.policy)


def test_a_resumed_run_asks_the_expert_that_it_asked_before(straight, expert, arguments, tmp_path):
    asked = trained.pinned(experiment(*arguments, f"--workdir={tmp_path}"))
    assert asked.expert_step == 256
    stored = json.loads((straight / "config.json").read_text())
    assert stored["experiment"]["expert_step"] == 256
    stored["experiment"]["expert_step"] = 128  # as if the expert had been there when it began
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = trained.pinned(experiment(*arguments, f"--workdir={tmp_path}"))
    assert again.expert_step == 128
    with pytest.raises(UsageError, match=r"--expert: .*128"):
        trained.build(again)


def test_another_expert_is_another_run(straight, arguments, tmp_path):
    run = experiments.load(straight)
    other = dataclasses.replace(run, expert=str(tmp_path))
    with pytest.raises(UsageError, match="expert: "):
        experiments.open_workdir(other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--agent=dagger", ENV), "--expert is missing: dagger asks a trained policy"),
        (("--agent=ppo", ENV, "--expert=runs/a"), "--agent=ppo asks no --expert"),
        (("--agent=dagger", "--expert=runs/a"), "--env is missing"),
        (
            ("--agent=dagger", ENV, "--expert=runs/a", "--dataset=data"),
            "--agent=dagger learns by acting, not from a --dataset",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_a_sentence(arguments, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        experiment(*arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_an_expert_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    run = experiment(*SMALL, f"--expert={tmp_path / 'nobody'}", f"--workdir={tmp_path / 'run'}")
    with pytest.raises(UsageError, match=r"--expert: .*nobody holds no run"):
        train.train(run)
    assert not list(tmp_path.iterdir())  # nor where somebody was looked for


def test_an_expert_of_another_task_is_refused_before_anything_is_written(expert, tmp_path):
    arguments = [x for x in SMALL if x != ENV]
    run = experiment(
        *arguments, "--env=rljax:pendulum", f"--expert={expert}", f"--workdir={tmp_path / 'run'}"
    )
    with pytest.raises(UsageError, match="the expert cannot say what to do in rljax:pendulum"):
        train.train(run)
    assert not (tmp_path / "run").exists()
