"""The off-policy benchmark: every row is measured, and the peer gets our settings."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from launch.benchmarks import Options, measure, off_policy, processes
from rljax import registry
from rljax.config import UsageError


@pytest.fixture
def as_before():
    """The benchmark switches the compilation cache off."""
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_every_row_of_a_setting_is_measured(as_before):
    setting = off_policy.SETTINGS[2]
    config = dataclasses.replace(
        setting.config,
        total_steps=64,
        num_envs=2,
        rollout_length=4,
        num_updates=2,
        learning_starts=16,
        replay_capacity=512,
        batch_size=8,
        hidden_sizes=(4,),
    )
    setting = dataclasses.replace(setting, config=config, warm_up=1_000, window=1_000)
    rows = list(off_policy.setting_rows(setting, Options(repeats=2, num_threads=1, peers=())))
    assert [row.name for row in rows] == [
        "dqn/train",
        "dqn/first_rows",
        "dqn/train_host",
        "dqn/update",
        "collector/host",
        "collector/envpool_xla",
        "score/greedy",
    ]
    assert all(0 < row.value < math.inf for row in rows)
    assert {row.name: row.peer for row in rows if row.peer} == {"dqn/update": "bound"}
    assert all(row.settings == setting.describe(num_threads=1) for row in rows)
    assert all(len(row.samples) == 2 for row in rows if row.name != "dqn/first_rows")
    assert setting.updates_per_row == 0.25


def test_the_bound_counts_every_matrix_product():
    def update(x, w):
        return jax.lax.scan(lambda y, _: (jax.jit(jnp.matmul)(y, w), ()), x @ w, length=5)[0]

    products = 2 * (2 * 3 * 4 * 4)  # the loop's counts once
    assert measure.matmul_flops(update, jnp.ones((3, 4)), jnp.ones((4, 4))) == products
    assert (
        measure.matmul_flops(jax.vmap(update, (0, None)), jnp.ones((7, 3, 4)), jnp.ones((4, 4)))
        == 7 * products
    )


def test_the_peer_is_given_our_settings(monkeypatch):
    asked = []

    def answer(command, environment):
        asked.append((command, environment))
        return (
            'a warning\n{"steps_per_second": [3.0, 1.0], "first_update_seconds": 9.0, "score": 5}\n'
        )

    monkeypatch.setattr(processes, "output_of", answer)
    monkeypatch.setenv("NPROC", "32")
    pendulum, _, cartpole = off_policy.SETTINGS
    timed = off_policy.peer_training("sbx", cartpole, Options(num_threads=2, repeats=2))
    assert timed == off_policy.Training(9.0, (3.0, 1.0))
    assert off_policy.peer_score("sbx", pendulum, Options(), 7) == 5
    (command, environment), (other, _) = asked
    assert pathlib.Path(command[1]).is_file()
    assert "NPROC" not in environment
    job = json.loads(command[-1])
    assert (job["rows"], job["rows"] * job["window"], job["repeats"]) == (2_048, 10_240, 2)
    dqn = job["dqn"]
    assert (dqn["train_freq"], dqn["gradient_steps"], dqn["batch_size"]) == (32, 128, 64)
    assert dqn["target_update_interval"] == 256  # rows, of 2 for an update, where we count 128
    job = json.loads(other[-1])
    assert (job["rows"], job["repeats"], job["episodes"], job["seed"]) == (20_000, 0, 20, 7)
    sac = job["sac"]
    assert (sac["train_freq"], sac["gradient_steps"], sac["batch_size"]) == (1, 4, 256)
    assert sac["policy_kwargs"] == {"net_arch": [256, 256]}
    assert (sac["tau"], sac["gamma"], sac["learning_rate"]) == (0.005, 0.99, 1e-3)


def test_settings_are_valid_and_their_windows_are_whole_calls():
    for setting in off_policy.SETTINGS:
        module = registry.agent_module(setting.agent)
        module.validate(setting.config)
        loop = module.loop(setting.config)
        call = loop.rows * -(-1_000 // loop.rows)  # what the loop does between two yields
        assert setting.warm_up % call == setting.window % call == 0
        assert setting.warm_up > setting.config.learning_starts


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="no settings for --env=Pong-v5"):
        off_policy.rows(Options(env="Pong-v5"))
    with pytest.raises(UsageError, match="unknown peer 'sb3'"):
        off_policy.versions(Options(peers=("sb3",)))
    with pytest.raises(UsageError, match="no Python of the peers"):
        off_policy.versions(Options(peer_python=tmp_path / "python"))
    assert off_policy.versions(Options(peers=())) == {}
