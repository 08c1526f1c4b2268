"""DQN and SAC as a user runs them: trained, killed, resumed, evaluated, exported; or too large."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import trained
from rljax.metrics import jsonl
from rljax.replay import memory
from tests.launch.killing import kill_behind_a_checkpoint

SMALL = (
    "--preset=none",
    "--config.hidden_sizes=16",
    "--config.learning_starts=200",
    "--config.replay_capacity=1000",
    "--config.total_steps=8192",
    "--config.num_envs=4",
    "--config.rollout_length=2",
    "--config.num_updates=2",
    "--config.batch_size=16",
    "--num_devices=1",
    "--eval_every=0",
    "--eval_episodes=2",
    "--checkpoint_every=1000",
    "--log_every=1",
)
AGENTS = {
    "dqn": ("--agent=dqn", "--env=rljax:cartpole", "--config.prioritized", *SMALL),
    "sac": ("--agent=sac", "--env=rljax:pendulum", *SMALL),
}


def command(module, *arguments):
    return [sys.executable, "-m", f"launch.{module}", *map(str, arguments)]


def run(module, *arguments):
    return subprocess.run(
        command(module, *arguments), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module", params=AGENTS)
def straight(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """A finished run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp(request.param)
    answer = run("train", f"--workdir={workdir}", *AGENTS[request.param])
    assert answer.returncode == 0, answer.stderr
    return request.param, workdir


def test_a_run_leaves_metrics_result_and_checkpoints(straight):
    agent, workdir = straight
    lines = jsonl.read(workdir / "metrics.jsonl")
    # every 125 iterations of 8 rows, the least that make 1,000 rows, and at the end
    assert [line["step"] for line in lines] == [*range(1000, 8001, 1000), 8192]
    assert [line["replay/size"] for line in lines] == [1000] * 9
    loss = {"dqn": "loss/q", "sac": "loss/critic"}[agent]
    assert all(np.isfinite(line[loss]) for line in lines)
    result = json.loads((workdir / "result.json").read_text())
    assert (result["step"], result["eval/episodes"]) == (8192, 2)


def test_kill_9_and_the_same_command_give_the_undisturbed_run_bit_for_bit(straight, tmp_path):
    agent, workdir = straight
    arguments = (f"--workdir={tmp_path}", *AGENTS[agent])
    kill_behind_a_checkpoint(command("train", *arguments), tmp_path)
    assert not (tmp_path / "result.json").exists()
    answer = run("train", *arguments)
    assert answer.returncode == 0, answer.stderr
    steps = [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")]
    assert steps == [*range(1000, 8001, 1000), 8192]  # none twice, none missing
    one, two = trained.load(workdir), trained.load(tmp_path)
    assert one.step == two.step == 8192
    jax.tree.map(np.testing.assert_array_equal, one.policy, two.policy)


def test_a_policy_is_loaded_where_its_replay_would_not_fit(straight, monkeypatch):
    _, workdir = straight
    monkeypatch.setattr(memory, "available", lambda device: 0)
    run = trained.load(workdir)
    observation = run.agent.spec.example((3,))
    _, action, _ = run.agent.act(run.policy, (), observation, jax.random.key(0), True)
    assert len(action) == 3


def test_it_is_evaluated_and_exported(straight, tmp_path):
    _, workdir = straight
    answer = run("evaluate", f"--workdir={workdir}", "--episodes=2", "--novideo")
    assert answer.returncode == 0, answer.stderr
    answer = run("export", f"--workdir={workdir}", f"--export_dir={tmp_path}/model")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["eval_sampled/episodes"] == 2
    assert result["export/parity_max_abs_diff"] < 1e-4
    assert (tmp_path / "model" / "1" / "saved_model.pb").is_file()


def test_a_replay_that_does_not_fit_is_refused_with_its_bytes_and_nothing_is_written(tmp_path):
    capacity = 10**13
    arguments = (*AGENTS["sac"], f"--config.replay_capacity={capacity}")
    answer = run("train", f"--workdir={tmp_path}/run", *arguments)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    row = 3 * 4 + 4 + 4 + 4 + 1  # observation, action, reward, discount, valid
    assert f"a replay of {capacity:,} rows takes {2 * capacity * row:,} bytes" in answer.stderr
    assert "rows or fewer" in answer.stderr
    assert not (tmp_path / "run").exists()
