"""launch.train as several processes on this machine: equal, lost, stopped, stuck, resumed."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from launch import flags, trained
from rljax.config import UsageError
from rljax.distributed import Cluster
from rljax.metrics import jsonl

SMALL = (
    "--config.num_envs=8",
    "--config.rollout_length=16",
    "--config.num_minibatches=1",
    "--config.num_epochs=1",
    "--config.hidden_sizes=16",
)
IN_GRAPH = ("--env=rljax:cartpole", *SMALL, "--eval_episodes=0", "--checkpoint_every=2048")
SHORT = (*IN_GRAPH, "--config.total_steps=8192")
ENDLESS = (*IN_GRAPH, "--config.total_steps=100000000")
# As users have it: without what the tests set for themselves, and JAX for them.
_OWN = ("XLA_FLAGS", "NPROC", "TF_CPP_MIN_LOG_LEVEL")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _OWN}
RESUMES = "start the same command on every process again, and it resumes from the last checkpoint."


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@dataclasses.dataclass
class Job:
    """The processes of one run."""

    workdir: pathlib.Path
    processes: list[subprocess.Popen]

    def wait_for_step(self, step):
        deadline = time.monotonic() + 180
        while all(process.poll() is None for process in self.processes):
            lines = jsonl.read(self.workdir / "metrics.jsonl")
            if lines and lines[-1]["step"] >= step:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        raise AssertionError(f"no progress: {self.killed()}")

    def end(self, timeout=240):
        """Exit codes and what was said to stderr, in the order of the processes."""
        try:
            said = [process.communicate(timeout=timeout)[1] for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self.killed()}") from None
        return [process.returncode for process in self.processes], said

    def killed(self):
        """The same of processes that nobody waits for any more; those that ran are killed."""
        for process in self.processes:
            process.kill()
        return self.end()


def start(workdir, count, *arguments):
    """A run of `count` processes."""
    address = f"127.0.0.1:{free_port()}"
    common = (*arguments, f"--num_processes={count}", "--peer_timeout=10", "--join_timeout=90")
    ids = [f"--process_id={index}" for index in range(count)]
    return Job(workdir, [launched(workdir, address, each, *common) for each in ids])


def launched(workdir, address, *arguments):
    """One process of a run, with one CPU device, however many the tests have."""
    command = [sys.executable, "-m", "launch.train", f"--workdir={workdir}", "--progress=off"]
    return subprocess.Popen(
        [*command, "--distributed", f"--coordinator_address={address}", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def alone(workdir, *arguments):
    command = [sys.executable, "-m", "launch.train", f"--workdir={workdir}", "--progress=off"]
    answer = subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr


def ended(said, index, *words):
    """One sentence of process `index` with all the words, and no trace."""
    *before, last = said.strip().splitlines()
    assert before == [] or "seed" in last, said
    assert said.startswith(f"process {index} ends: ")
    for word in words:
        assert word in said
    return True


def steps(workdir):
    """Of the checkpoints that are there."""
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def curve(workdir):
    """Everything but times."""
    lines = jsonl.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]


def assert_same_run(one, other, *, resumed=False):
    """Line by line; how many episodes have ended is counted from 0 after a resume."""
    one, other = curve(one), curve(other)
    if resumed:
        one, other = (
            [{k: v for k, v in line.items() if not k.startswith("episode/")} for line in lines]
            for lines in (one, other)
        )
    assert len(one) == len(other) > 3
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> pathlib.Path:
    """One process, undisturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    alone(workdir, *SHORT)
    return workdir


def test_a_killed_process_ends_the_run_everywhere_and_one_process_goes_on_to_the_same_end(
    straight, tmp_path
):
    job = start(tmp_path, 2, *SHORT)
    job.wait_for_step(3072)
    job.processes[1].kill()
    codes, said = job.end(timeout=60)
    assert codes == [75, -signal.SIGKILL]
    assert ended(said[0], 0, f"process 1 ({socket.gethostname()}) was lost, or hangs, at step")
    assert RESUMES in said[0]
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert saved
    assert max(saved) < 8192
    alone(tmp_path, *SHORT)
    assert_same_run(straight, tmp_path, resumed=True)
    assert "process" not in json.loads((tmp_path / "config.json").read_text())["experiment"]


def test_a_signal_to_one_process_ends_all_with_a_checkpoint_from_which_all_go_on(tmp_path):
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = steps(tmp_path)
        job = start(tmp_path, 2, *ENDLESS)
        job.wait_for_step(max(before, default=0) + 512)
        job.processes[1].send_signal(number)  # not the one that writes
        codes, said = job.end(timeout=60)
        assert codes == [code, code], said
        assert "the same command resumes" in said[0]
        assert said[1].strip() == ""
        assert "Traceback" not in said[0]
        lines = [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")]
        assert steps(tmp_path)[-1] == lines[-1] > max(before, default=0)
        assert lines == list(range(128, lines[-1] + 1, 128))  # none twice, none missing


def test_two_pools_learn_as_one_and_process_0_alone_evaluates_and_writes(tmp_path):
    arguments = ("--env=CartPole-v1", "--preset=none", *SMALL, "--config.total_steps=1024")
    arguments += ("--config.reward_scale=reward", "--eval_every=512", "--eval_episodes=2")
    alone(tmp_path / "one", *arguments)
    codes, said = start(tmp_path / "two", 2, *arguments).end()
    assert codes == [0, 0], said
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert [line["step"] for line in curve(tmp_path / "two") if "eval/return_mean" in line] == [
        512,
        1024,
    ]
    assert json.loads((tmp_path / "two" / "result.json").read_text())["eval/episodes"] == 2
    one, two = (trained.load(tmp_path / name) for name in ("one", "two"))
    assert one.step == two.step == 1024
    for a, b in zip(jax.tree.leaves(one.policy), jax.tree.leaves(two.policy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_four_processes_train_as_one_does_too(straight, tmp_path):
    codes, said = start(tmp_path, 4, *SHORT).end()
    assert codes == [0] * 4, said
    assert_same_run(straight, tmp_path)


@pytest.mark.slow
def test_the_loss_of_process_0_ends_the_others_in_a_sentence(tmp_path):
    job = start(tmp_path, 3, *ENDLESS, "--config.num_envs=6")
    job.wait_for_step(512)
    job.processes[0].kill()
    codes, said = job.end(timeout=60)
    assert codes == [-signal.SIGKILL, 75, 75]
    for index in (1, 2):
        assert ended(said[index], index, "process 0", RESUMES)


@pytest.mark.slow
@pytest.mark.parametrize("stuck", [0, 1])
def test_a_process_that_hangs_counts_as_lost_after_a_while(stuck, tmp_path):
    job = start(tmp_path, 2, *ENDLESS)
    job.wait_for_step(512)
    job.processes[stuck].send_signal(signal.SIGSTOP)
    other = job.processes[1 - stuck]
    said = other.communicate(timeout=60)[1]
    assert other.returncode == 75
    assert ended(said, 1 - stuck, f"process {stuck} (", RESUMES)
    job.processes[stuck].send_signal(signal.SIGCONT)  # it finds itself alone, and ends as well
    codes, said = job.end(timeout=60)
    assert codes == [75, 75], said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num_processes=2",), ("come together: give all three",)),
        (("--num_processes=2", "--process_id=1"), ("come together: give all three",)),
        (
            ("--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"),
            ("--process_id=2 is none of the --num_processes=2 processes",),
        ),
        (
            ("--coordinator_address=nowhere", "--num_processes=2", "--process_id=1"),
            ("--coordinator_address=nowhere should be host:port",),
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_anything_starts(arguments, words):
    with pytest.raises(UsageError) as error:
        flags.cluster(["train", "--env=rljax:cartpole", "--distributed", *arguments])
    assert all(word in str(error.value) for word in words)


def test_the_flags_of_a_cluster_need_the_flag_that_asks_for_one():
    assert flags.cluster(["train", "--env=rljax:cartpole"]) is None
    with pytest.raises(UsageError, match="--process_id is of runs with several processes: add"):
        flags.cluster(["train", "--env=rljax:cartpole", "--process_id=0"])
    assert flags.cluster(["train", "--distributed"]) == Cluster()
    full = ("--coordinator_address=node-a:1234", "--num_processes=2", "--process_id=0")
    cluster = flags.cluster(["train", "--distributed", *full, "--peer_timeout=7"])
    assert cluster == Cluster("node-a:1234", 2, 0, peer_timeout_seconds=7.0)


def test_a_coordinator_that_does_not_answer_is_one_sentence(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    process = launched(
        tmp_path, address, "--process_id=1", *IN_GRAPH, "--num_processes=2", "--join_timeout=1"
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith(f"error: the coordinator at {address} did not answer within 1 seconds:")
    assert len(said.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_process_with_other_flags_ends_the_run_with_the_difference(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    common = (*IN_GRAPH, "--num_processes=2", "--peer_timeout=10")
    processes = [
        launched(tmp_path, address, "--process_id=0", *common),
        launched(tmp_path, address, "--process_id=1", *common, "--seed=3"),
    ]
    codes, said = Job(tmp_path, processes).end(timeout=60)
    assert codes == [2, 2]
    assert said[1].startswith("error: the processes of a run must be started with the same flags")
    assert "seed: 0 -> 3" in said[1]
    assert ended(said[0], 0, "process 1 ended: the processes of a run", "seed: 0 -> 3")
