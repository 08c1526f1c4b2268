"""--actors and its flags: what they mean, what is refused, and whole runs that go wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import experiment as experiments
from launch import flags, trained
from launch.experiment import ActorKind, Actors
from rljax.actors.ray_actors import Ray
from rljax.actors.threads import Threads
from rljax.config import UsageError
from rljax.loops import actor_learner, on_policy
from rljax.metrics import jsonl

BASE = ("--env=rljax:cartpole", "--preset=none", "--config.num_envs=8")
SMALL = (
    *BASE,
    "--config.total_steps=4096",
    "--config.rollout_length=32",
    "--config.num_epochs=1",
    "--config.hidden_sizes=8",
    "--eval_episodes=0",
    "--num_devices=1",
)


def experiment(*arguments, workdir="x"):
    return flags.experiment(["train", *BASE, f"--workdir={workdir}", *arguments])


@pytest.mark.parametrize(
    ("arguments", "actors"),
    [
        ((), Actors()),
        (("--actors=none",), Actors()),
        (("--actor_threads=2",), Actors(ActorKind.THREADS, 2)),
        (("--actors=threads", "--num_actors=2"), Actors(ActorKind.THREADS, 2)),
        (("--actors=threads", "--actor_threads=2", "--num_actors=2"), Actors(ActorKind.THREADS, 2)),
        (("--actors=threads",), Actors(ActorKind.THREADS, 1)),
        (
            ("--actor_threads=4", "--actor_devices=0,1", "--learner_devices=1", "--staleness=1"),
            Actors(ActorKind.THREADS, 4, (0, 1), (1,), 1),
        ),
        (
            (
                "--actors=ray",
                "--num_actors=4",
                "--ray_address=auto",
                "--actor_restarts=0",
                "--actor_timeout=9",
            ),
            Actors(ActorKind.RAY, 4, timeout_seconds=9.0, ray_address="auto", max_restarts=0),
        ),
    ],
)
def test_flags_name_the_actors(arguments, actors):
    assert experiment(*arguments).actors == actors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--num_actors=2",), "--num_actors changes nothing here: add --actors=threads or --act"),
        (("--staleness=0",), "--staleness changes nothing here"),
        (("--actors=none", "--learner_devices=1"), "--learner_devices changes nothing here"),
        (("--actor_threads=2", "--actors=ray"), "asks for threads, and --actors=ray does not"),
        (("--actor_threads=2", "--num_actors=4"), "contradict each other"),
        (("--actor_threads=2", "--ray_address=auto"), "--ray_address changes nothing here: use"),
        (("--actors=ray", "--actor_devices=1"), "--actor_devices changes nothing here: use --a"),
        (("--actor_threads=0",), "--actor_threads=0: should be at least 1."),
        (("--actors=processes",), "--actors=processes: should be one of none, threads, ray"),
        (("--actor_threads=2", "--staleness=-1"), "--staleness=-1: should be at least 0."),
        (("--actor_threads=2", "--actor_devices=gpu"), "--actor_devices=gpu: should be a tuple"),
        (
            ("--actor_threads=2", "--learner_devices=1", "--num_devices=1"),
            "--learner_devices names the devices that learn: leave --num_devices out",
        ),
    ],
)
def test_flags_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(UsageError) as error:
        experiment(*arguments)
    assert sentence in str(error.value)


def test_threads_and_ray_drive_the_agents_own_loop():
    asked = experiment("--actor_threads=4", "--staleness=1", "--actor_timeout=5", "--seed=3")
    config = trained.loop_of(asked)
    assert isinstance(config, actor_learner.Config)
    assert (config.actors, config.num_actors, config.staleness) == (Threads(), 4, 1)
    assert (config.timeout_seconds, config.seed, config.rows) == (5.0, 3, 8 * 128)
    assert isinstance(config.inner, on_policy.Config)
    alone = trained.loop_of(experiment("--seed=3"))  # in the graph, as the task is
    assert config.inner == alone.inner
    remote = trained.loop_of(experiment("--actors=ray", "--num_actors=4", "--actor_restarts=1"))
    assert remote.actors == Ray("ppo", experiment().config, "", 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--actor_threads=3",), "num_envs=8 cannot be split over 3 actors"),
        (("--actor_threads=2", "--actor_devices=0,7"), "--actor_devices=0,7 names device 7"),
        (("--actor_threads=2", "--learner_devices=1,1"), "names a device twice"),
        (("--actor_threads=1", "--actor_devices=0,1"), r"names 2 devices for 1 actor\(s\)"),
        (("--actor_threads=2", "--collector=host"), "is a JAX function: use --collector=in_graph"),
        (("--actor_threads=2", "--actor_timeout=0"), "--actor_timeout=0 must be positive"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_the_start(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained.build(experiment(*arguments))


def test_a_pool_that_cannot_be_made_is_refused_and_the_others_are_closed(monkeypatch):
    from rljax import sources
    from rljax.envs import host_envpool

    made, closed = [], []
    make = host_envpool.make

    def second_fails(*arguments, **options):
        if made:
            raise ValueError("no more simulators here")
        made.append(make(*arguments, **options))
        monkeypatch.setattr(made[0], "close", lambda: closed.append(made[0]))
        return made[0]

    monkeypatch.setattr(host_envpool, "make", second_fails)
    with pytest.raises(ValueError, match="no more simulators here"):
        sources.open_pools(sources.EnvSource("CartPole-v1", 8), 2)
    assert closed == made


def test_only_staleness_is_part_of_what_a_run_is(tmp_path):
    plain = experiments.open_workdir(experiment(workdir=tmp_path / "a"))
    for arguments in (("--actor_threads=2",), ("--actors=ray", "--num_actors=4")):
        assert experiments.open_workdir(experiment(*arguments, workdir=plain)) == plain
    stale = ("--actor_threads=2", "--staleness=1")
    with pytest.raises(UsageError, match="staleness: absent -> 1"):
        experiments.open_workdir(experiment(*stale, workdir=plain))
    other = experiments.open_workdir(experiment(*stale, workdir=tmp_path / "b"))
    again = experiment("--actor_threads=4", "--staleness=1", "--learner_devices=1", workdir=other)
    assert experiments.open_workdir(again) == other
    assert experiments.load(other).actors == Actors(ActorKind.THREADS, 2, staleness=1)


def test_a_run_of_before_there_were_actors_can_be_read(tmp_path):
    workdir = experiments.open_workdir(experiment(workdir=tmp_path / "a"))
    path = workdir / "config.json"
    data = json.loads(path.read_text())
    del data["experiment"]["actors"]
    path.write_text(json.dumps(data))
    assert experiments.load(workdir).actors == Actors()
    experiments.open_workdir(experiment("--actor_threads=2", workdir=workdir))


def command(workdir, *arguments):
    return [sys.executable, "-m", "launch.train", f"--workdir={workdir}", *SMALL, *arguments]


def train(workdir, *arguments, **options):
    return subprocess.run(
        command(workdir, *arguments), capture_output=True, text=True, timeout=300, **options
    )


FRAIL = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Frail(CartPoleEnv):
    steps = 0

    def step(self, action):
        Frail.steps += 1
        if Frail.steps == int(os.environ["FAILS_AT"]):
            raise RuntimeError("a joint broke")
        return super().step(action)

gymnasium.register("Frail-v0", entry_point=Frail)
"""


def test_a_simulator_that_breaks_ends_the_run_in_a_sentence_and_costs_nothing(tmp_path):
    (tmp_path / "frail.py").write_text(FRAIL)
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])
    arguments = ("--env=gymnasium:frail:Frail-v0", "--config.num_envs=4", "--actor_threads=2")
    often = ("--config.total_steps=1280", "--checkpoint_every=0")
    environment = {**os.environ, "PYTHONPATH": paths, "FAILS_AT": "800"}
    answer = train(tmp_path / "run", *arguments, *often, env=environment)
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    assert "failed while collecting rollout 6, in env.step of gymnasium:frail:" in answer.stderr
    assert "RuntimeError: a joint broke" in answer.stderr
    # six rollouts of 128 rows were learned from; so much is kept, though no checkpoint was due
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["768"]
    mended = {**environment, "FAILS_AT": "-1"}
    answer = train(tmp_path / "run", *arguments, *often, env=mended)
    assert answer.returncode == 0, answer.stderr
    steps = [line["step"] for line in jsonl.read(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(128, 1281, 128))


def interrupted(workdir, *arguments):
    """Starts a run and types Ctrl-C once it is under way; the step of its last checkpoint."""
    lines = workdir / "metrics.jsonl"
    before = len(jsonl.read(lines)) if lines.exists() else 0
    with subprocess.Popen(
        command(workdir, "--config.total_steps=10000000", "--checkpoint_every=0", *arguments),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if lines.exists() and len(jsonl.read(lines)) > before + 5:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_ctrl_c_ends_the_threads_and_other_actors_may_go_on(tmp_path):
    first = interrupted(tmp_path, "--actor_threads=2", "--staleness=1")
    second = interrupted(tmp_path, "--actor_threads=4", "--staleness=1", "--actor_devices=1,0")
    assert second > first > 0
    answer = train(tmp_path, "--config.total_steps=10000000", "--actor_threads=2")
    assert answer.returncode == 2
    assert "staleness: 1 -> absent" in answer.stderr


def test_ray_actors_train_and_leave_a_policy(tmp_path):
    pytest.importorskip("ray")
    arguments = ("--env=CartPole-v1", "--actors=ray", "--num_actors=2", "--staleness=1")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    answer = train(tmp_path, *arguments, "--config.total_steps=1024", env=environment)
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    line = jsonl.read(tmp_path / "metrics.jsonl")[-1]
    assert (line["step"], line["actor/staleness"], line["actor/restarts"]) == (1024, 1, 0)
    assert trained.load(tmp_path).step == 1024
