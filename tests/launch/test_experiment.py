import dataclasses
import errno
import json
import os

import pytest

from launch import experiment as experiments
from launch import flags
from launch.experiment import Collector, Parallel
from rljax import config as configs
from rljax import rollout, sharding
from rljax.config import UsageError
from rljax.metrics.progress import Progress
from rljax.metrics.writers import Logging


@pytest.fixture
def experiment(tmp_path):
    return flags.experiment(
        ["train", "--env=Acrobot-v1", f"--workdir={tmp_path / 'runs' / 'a'}", "--seed=1"]
    )


def test_a_new_workdir_gets_its_config(experiment):
    workdir = experiments.open_workdir(experiment)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    data = json.loads((workdir / "config.json").read_text())
    assert data["experiment"] == configs.to_json(experiment)
    assert data["versions"]["jax"].count(".") == 2
    assert set(data["versions"]) >= {"rljax", "python", "envpool", "git_commit"}


def test_the_same_run_is_resumed_and_read_back(experiment):
    experiments.open_workdir(experiment)
    told_otherwise = dataclasses.replace(
        experiment, logging=Logging(progress=Progress.OFF), num_devices=1, eval_every=3
    )
    workdir = experiments.open_workdir(told_otherwise)  # none of these changes what is learned
    assert experiments.load(workdir) == dataclasses.replace(experiment, workdir=str(workdir))


def test_another_run_is_refused_with_the_difference(experiment):
    workdir = experiments.open_workdir(experiment)
    before = (workdir / "config.json").read_bytes()
    config = dataclasses.replace(experiment.config, learning_rate=1e-3, hidden_sizes=(8,))
    other = dataclasses.replace(experiment, config=config, seed=2)
    with pytest.raises(UsageError) as error:
        experiments.open_workdir(other)
    first, *differences = str(error.value).split("\n  ")
    assert "holds another run" in first
    assert differences == [
        "seed: 1 -> 2",
        "config.learning_rate: 0.0003 -> 0.001",
        "config.hidden_sizes: [64, 64] -> [8]",
    ]
    assert (workdir / "config.json").read_bytes() == before


def test_a_field_that_is_newer_than_the_run_is_no_difference_at_its_default(experiment):
    path = experiments.open_workdir(experiment) / "config.json"
    stored = json.loads(path.read_text())
    del stored["experiment"]["config"]["learning_rate"]
    path.write_text(json.dumps(stored))
    config = dataclasses.replace(experiment.config, learning_rate=0.5)
    with pytest.raises(UsageError, match=r"config\.learning_rate: 0\.\d+ -> 0\.5"):
        experiments.open_workdir(dataclasses.replace(experiment, config=config))
    default = type(experiment.config)().learning_rate
    config = dataclasses.replace(experiment.config, learning_rate=default)
    experiments.open_workdir(dataclasses.replace(experiment, config=config))


def test_checkpoints_without_their_config_are_not_gone_on_with(experiment):
    workdir = experiments.open_workdir(experiment)
    (workdir / "config.json").unlink()
    experiments.open_workdir(experiment)  # nothing was learned yet
    (workdir / "config.json").unlink()
    (workdir / "checkpoints" / "100").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"config.json is missing.*another --workdir"):
        experiments.open_workdir(experiment)
    assert not (workdir / "config.json").exists()


def test_two_processes_do_not_train_in_one_workdir(experiment):
    workdir = experiments.open_workdir(experiment)
    with experiments.alone_in(workdir):
        with (
            pytest.raises(UsageError, match=r"another process is training in .*/a: wait"),
            experiments.alone_in(workdir),
        ):
            pass
        experiments.load(workdir)  # to look is free
    with experiments.alone_in(workdir):
        pass


def test_identity_is_agent_environment_options_seed_and_config(experiment):
    assert experiments.identity(experiment) == {
        "agent": "ppo",
        "env": "Acrobot-v1",
        "env_options": {},
        "seed": 1,
        "config": configs.to_json(experiment.config),
    }


def test_a_workdir_that_is_or_lies_under_a_file_is_refused(experiment, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UsageError, match="runs is a file"):
        experiments.open_workdir(experiment)
    with pytest.raises(UsageError, match="runs is a file"):
        experiments.open_workdir(dataclasses.replace(experiment, workdir=str(tmp_path / "runs")))


def test_a_workdir_that_cannot_be_made_is_refused(experiment):
    with pytest.raises(UsageError, match="cannot be written: "):
        experiments.open_workdir(dataclasses.replace(experiment, workdir="/proc/no/such"))


def test_a_full_disk_leaves_nothing_half_written(experiment, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="the disk is full"):
        experiments.open_workdir(experiment)
    assert os.listdir(experiment.workdir) == []


def test_a_read_only_workdir_is_refused_before_anything_starts(experiment, monkeypatch):
    experiments.open_workdir(experiment)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(UsageError, match="Permission denied"):
        experiments.open_workdir(experiment)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"experiment": {"agent": "ppo"}}'])
def test_a_damaged_config_is_told(experiment, text):
    path = experiments.open_workdir(experiment) / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        experiments.open_workdir(experiment)
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        experiments.load(path.parent)


def test_a_workdir_without_a_run_cannot_be_loaded(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run: there is no config\.json"):
        experiments.load(tmp_path)


def test_a_field_that_this_code_does_not_know_is_told_with_its_file(experiment):
    path = experiments.open_workdir(experiment) / "config.json"
    data = json.loads(path.read_text())
    data["experiment"]["config"]["lerning_rate"] = 1.0
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"config\.json: config\.lerning_rate is no known field"):
        experiments.load(path.parent)


def test_our_enums_name_what_the_core_has():
    assert [kind.value for kind in Collector] == [kind.value for kind in rollout.Kind]
    assert [kind.value for kind in Parallel] == [kind.value for kind in sharding.Parallel]
