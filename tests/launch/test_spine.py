"""The whole way as a user goes it: train, export, serve, ask; every step a process of its own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from launch import trained
from rljax.types import Observation
from serving.client import PolicyClient, Source

TRAIN = (
    "--env=Pendulum-v1",
    "--preset=none",
    "--config.total_steps=2048",
    "--config.hidden_sizes=16",
    "--config.normalize_observation=True",
    "--eval_every=0",
    "--eval_episodes=2",
)


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("spine")
    answer = run("train", f"--workdir={workdir}", *TRAIN)
    assert answer.returncode == 0, answer.stderr
    answer = run("export", f"--workdir={workdir}", f"--export_dir={workdir}/models/pendulum")
    assert answer.returncode == 0, answer.stderr
    return workdir


@pytest.fixture(scope="module")
def address(workdir):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = ["--model_name=pendulum", f"--model_base_path={workdir}/models/pendulum"]
    command = [sys.executable, "-m", "launch.serve", *arguments, f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        watchdog = threading.Timer(120, server.kill)
        watchdog.start()
        assert server.stdout.readline().startswith("serving pendulum")
        watchdog.cancel()
        yield f"localhost:{port}"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_the_export_is_recorded_and_whole(workdir):
    result = json.loads((workdir / "result.json").read_text())
    assert result["export/parity_max_abs_diff"] < 1e-4
    version = workdir / "models" / "pendulum" / "1"
    assert result["export/path"] == str(version)
    assert (version / "saved_model.pb").is_file()
    manifest = json.loads((version / "assets.extra" / "rljax" / "manifest.json").read_text())
    assert manifest["provenance"]["step"] == 2048
    assert manifest["provenance"]["env"] == "Pendulum-v1"


def test_what_is_served_is_what_was_trained(workdir, address):
    run = trained.load(workdir)
    assert run.policy.observation.count > 2000  # statistics travel with the policy
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    _, action, extras = run.agent.act(run.policy, (), Observation(rows), jax.random.key(0), True)
    action = np.clip(action, -2, 2)  # what is served is what the environment would get
    with PolicyClient(address, "pendulum", timeout_ms=5000) as client:
        for i, row in enumerate(rows):
            decision = client.act(row)
            assert decision.source is Source.MODEL
            assert decision.version == 1
            np.testing.assert_allclose(decision.action, action[i], rtol=1e-5, atol=1e-5)
            assert decision.value == pytest.approx(float(extras["value"][i]), rel=1e-4)
            assert decision.log_prob == pytest.approx(float(extras["log_prob"][i]), rel=1e-4)


def test_a_second_export_is_version_2_and_an_existing_one_is_refused(workdir):
    arguments = (f"--workdir={workdir}", f"--export_dir={workdir}/other")
    assert run("export", *arguments, "--format=tf_ops").returncode == 0
    answer = run("export", *arguments, "--version=1")
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert [path.name for path in (workdir / "other").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--export_dir=x",), "--workdir is missing"),
        (("--workdir=nowhere", "--export_dir=x"), "holds no run"),
        (("--workdir=nowhere", "--export_dir=x", "--formt=tf_ops"), "did you mean --format"),
    ],
)
def test_export_refuses_bad_input(arguments, words):
    answer = run("export", *arguments)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not os.path.exists("x")
