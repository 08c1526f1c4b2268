"""A policy that remembers, the whole way: train, stop and resume, evaluate; export is refused."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import flags, train, trained
from rljax import checkpoint
from rljax.loops import LOOPS
from rljax.metrics import jsonl
from rljax.nn.memory import Memory

ROWS, UPDATES = 4 * 8, 4


def trains(workdir: pathlib.Path, memory: Memory) -> int:
    arguments = (
        "--agent=ppo_recurrent",
        "--env=rljax:tmaze",
        "--preset=none",
        f"--workdir={workdir}",
        f"--config.memory={memory.value}",
        f"--config.total_steps={UPDATES * ROWS}",
        "--config.num_envs=4",
        "--config.rollout_length=8",  # shorter than an episode: carries go over
        "--config.num_minibatches=2",
        "--config.num_epochs=2",
        "--config.hidden_sizes=8",
        "--config.memory_size=8",
        "--config.attention_window=6",
        "--config.attention_heads=2",
        f"--checkpoint_every={ROWS}",
        "--log_every=1",
        "--eval_episodes=3",
        "--num_devices=1",
    )
    return train.train(flags.experiment(["train", *arguments]))


def run(module, *arguments):
    command = [sys.executable, "-m", f"launch.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def numbers(workdir: pathlib.Path) -> dict[str, float]:
    """The last line of metrics, but for the clock's."""
    line = jsonl.read(workdir / "metrics.jsonl")[-1]
    return {name: x for name, x in line.items() if not name.startswith("time")}


def carry_of(workdir: pathlib.Path, step: int):
    run = trained.load(workdir)
    loop = trained.loop_of(run.experiment)
    source = trained.fresh_source(run.experiment, num_envs=1)
    with checkpoint.Manager(workdir / "checkpoints") as checkpoints:
        _, state = checkpoints.restore(
            lambda: LOOPS[type(loop)].init(run.agent, source, loop), step
        )
    return state.rollout.carry


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A finished GRU run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    assert trains(workdir, Memory.GRU) == 0
    return workdir


@pytest.mark.parametrize("memory", [Memory.GRU, Memory.ATTENTION])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(memory, straight, tmp_path):
    whole = straight if memory is Memory.GRU else tmp_path / "whole"
    if memory is not Memory.GRU:
        assert trains(whole, memory) == 0
    resumed, last = tmp_path / "resumed", UPDATES * ROWS
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / str(last))  # as if it had been stopped before
    before = last - ROWS
    assert trained.load(resumed).step == before
    assert any(np.any(x) for x in jax.tree.leaves(carry_of(resumed, before)))
    assert trains(resumed, memory) == 0
    one, two = trained.load(whole), trained.load(resumed)
    assert one.step == two.step == last
    jax.tree.map(np.testing.assert_array_equal, one.policy, two.policy)
    jax.tree.map(np.testing.assert_array_equal, carry_of(whole, last), carry_of(resumed, last))
    assert numbers(whole) == numbers(resumed)


def test_evaluate_plays_with_the_carry(straight):
    answer = run("evaluate", f"--workdir={straight}", "--episodes=20", "--novideo")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((straight / "result.json").read_text())
    assert result["eval/episodes"] == 20
    assert result["eval_sampled/return_mean"] <= 1


def test_export_is_refused_in_a_sentence_and_leaves_nothing(straight, tmp_path):
    exports = tmp_path / "models"
    answer = run("export", f"--workdir={straight}", f"--export_dir={exports}")
    assert answer.returncode == 2
    assert answer.stderr.strip() == (
        "error: only feed-forward policies can be exported; this agent carries a state from one "
        "step to the next: train one without a memory, such as ppo."
    )
    assert not exports.exists()
