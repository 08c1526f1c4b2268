"""From offline to online as users do: started, killed, resumed, stopped by the floor, refused."""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from agents import iql
from launch import collect, data, fine_tuning, flags, trained
from launch import experiment as experiments
from launch import train as training
from launch.experiment import Online
from rljax import checkpoint
from rljax.config import UsageError
from rljax.metrics import jsonl
from rljax.offline.dataset import Dataset
from rljax.offline.rewards import Change
from tests.launch.killing import kill_behind_a_checkpoint

ENV = "rljax:cartpole"
OFFLINE = (
    "--preset=none",
    "--config.hidden_sizes=8",
    "--config.total_updates=40",
    "--config.batch_size=16",
    "--num_devices=1",
    "--eval_episodes=2",
)
ONLINE = (
    f"--env={ENV}",
    "--online_steps=2048",
    "--online_updates=2",
    "--checkpoint_every=512",
    "--num_devices=1",
    "--eval_every=0",
    "--eval_episodes=2",
)


def train(*arguments) -> int:
    """`launch.train` in this process."""
    return training.train(flags.experiment(["train", *map(str, arguments)]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("data") / "random"
    arguments = ("collect", f"--env={ENV}", "--policy=random", "--episodes=30", f"--out={out}")
    flags.parse_script(list(arguments), collect.FLAGS)
    collect.main(["collect"])
    return out


@pytest.fixture(scope="module")
def origin(dataset, tmp_path_factory) -> pathlib.Path:
    """A run of IQL on the dataset."""
    workdir = tmp_path_factory.mktemp("origin")
    asked = (f"--workdir={workdir}", "--agent=iql", f"--dataset={dataset}", f"--env={ENV}")
    assert train(*asked, *OFFLINE) == 0
    return workdir


@pytest.fixture(scope="module")
def straight(origin, tmp_path_factory) -> pathlib.Path:
    """A finished run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    assert train(f"--workdir={workdir}", f"--init_from={origin}", *ONLINE) == 0
    return workdir


def train_state(workdir, step=None):
    run = trained.load(workdir, step)
    with checkpoint.Manager(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        return checkpoints.restore(lambda: run.agent.init(jax.random.key(0)), step, part="train")[1]


def test_it_says_where_it_came_from_and_leaves_what_runs_leave(straight, origin, dataset):
    stored = json.loads((straight / "config.json").read_text())["experiment"]
    assert stored["agent"] == "iql"
    assert (stored["online"]["init_from"], stored["online"]["init_step"]) == (str(origin), 40)
    assert stored["dataset"] == str(dataset)
    assert stored["config"]["hidden_sizes"] == [8]
    assert stored["config"]["anneal_actor_learning_rate"] is False
    told = [json.loads((x / "dataset.json").read_text())["sha256"] for x in (straight, origin)]
    assert told[0] == told[1]
    lines = jsonl.read(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1024, 2048]  # a call makes 1,000 rows
    assert all(np.isfinite(line["loss/critic"]) for line in lines)
    assert lines[-1]["replay/size"] == 2048
    result = json.loads((straight / "result.json").read_text())
    assert (result["step"], result["eval/episodes"]) == (2048, 2)
    assert trained.load(straight).step == 2048


def test_it_starts_from_all_that_was_learned_and_with_the_rates_of_its_own_config(origin, tmp_path):
    arguments = (f"--workdir={tmp_path}", f"--init_from={origin}", *ONLINE)
    asked = flags.experiment(["train", *arguments, "--config.actor_learning_rate=0.5"])
    asked = fine_tuning.resolved(asked)
    agent, source, loop_config = trained.build(asked)
    fresh = training_loop(loop_config).init(agent, source, loop_config)
    before, after = train_state(origin), fine_tuning.take_over(asked, fresh).train
    assert before.updates == after.updates == 40  # they go on counting
    for name in ("params", "target", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert after.schedules.actor_learning_rate == 0.5
    unchanged = after.schedules._replace(actor_learning_rate=before.schedules.actor_learning_rate)
    assert unchanged == before.schedules


def training_loop(loop_config):
    from rljax.loops import LOOPS

    return LOOPS[type(loop_config)]


def test_the_rate_of_iqls_policy_is_constant_online(straight):
    run = trained.load(straight)
    assert train_state(straight).updates == 40 + 2 * 2048 // 64  # 40 were all that it annealed over
    assert run.experiment.config.total_updates == 40
    lines = jsonl.read(straight / "metrics.jsonl")
    rate = run.experiment.config.actor_learning_rate
    assert [line["policy/learning_rate"] for line in lines] == pytest.approx([rate, rate])


def test_kill_9_and_the_same_command_give_the_undisturbed_run_bit_for_bit(
    straight, origin, tmp_path
):
    arguments = (f"--workdir={tmp_path}", f"--init_from={origin}", *ONLINE)
    command = [sys.executable, "-m", "launch.train", *arguments]
    kill_behind_a_checkpoint(command, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert train(*arguments) == 0
    assert [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")] == [1024, 2048]
    jax.tree.map(np.testing.assert_array_equal, train_state(straight), train_state(tmp_path))


def test_the_floor_ends_it_with_a_sentence_a_checkpoint_and_exit_code_3(origin, tmp_path, capsys):
    arguments = (f"--workdir={tmp_path}", f"--init_from={origin}", *ONLINE)
    arguments += ("--return_floor=500", "--floor_episodes=4")
    assert train(*arguments) == fine_tuning.EXIT_CODE == 3
    result = json.loads((tmp_path / "result.json").read_text())
    sentence = (
        f"stopped exploring at step {result['step']:,}: the mean return of the last 4 episodes is "
        f"{result['guard/return_mean']:,.1f}, under --return_floor=500.0."
    )
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert 64 <= result["step"] < 1024
    last = jsonl.read(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == result["step"]
    assert last["guard/return_mean"] < 500
    assert trained.load(tmp_path).step == result["step"]
    # the same command does not explore again
    assert train(*arguments) == 3
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert trained.load(tmp_path).step == result["step"]
    with pytest.raises(UsageError, match=r"return_floor: 500\.0 -> 5\.0"):
        train(*arguments, "--return_floor=5")
    # another run goes on from where it stopped
    other = f"--workdir={tmp_path}/on"
    asked = flags.experiment(["train", other, f"--init_from={tmp_path}", *ONLINE])
    assert fine_tuning.resolved(asked).online.init_step == result["step"]


def test_a_resumed_run_starts_from_the_same_step_whatever_comes_behind_it(straight, origin):
    arguments = (f"--workdir={straight}", f"--init_from={origin}", *ONLINE)
    stored = experiments.load(straight)
    config = json.loads((straight / "config.json").read_text())
    config["experiment"]["online"]["init_step"] = 30  # as if the origin had trained on since
    (straight / "config.json").write_text(json.dumps(config))
    asked = fine_tuning.resolved(flags.experiment(["train", *arguments]))
    config["experiment"]["online"]["init_step"] = stored.online.init_step
    (straight / "config.json").write_text(json.dumps(config))
    assert asked.online.init_step == 30


def test_every_flag_reaches_the_loop(origin):
    asked = flags.experiment(
        [
            "train",
            "--workdir=runs/x",
            f"--init_from={origin}",
            f"--env={ENV}",
            "--online_steps=1e4",
            "--online_envs=2",
            "--online_rollout_length=8",
            "--online_updates=3",
            "--online_capacity=500",
            "--dataset_fraction=0.25",
            "--return_floor=-1.5",
            "--floor_episodes=7",
            "--config.discount=0.9",
            "--config.batch_size=32",
            "--seed=5",
        ]
    )
    assert asked.online == Online(str(origin), 0, 10_000, 2, 8, 3, 500, 0.25, -1.5, 7)
    assert (asked.checkpoint_every, asked.source.num_envs, asked.source.seed) == (1_000, 2, 10)
    inner = dataclasses.replace(iql.loop(asked.config), reward_multiplier=2.0, reward_bias=-1.0)
    assert fine_tuning.loop(asked, inner).change == Change(2.0, -1.0)
    config = trained.loop_of(asked)
    assert (config.dataset_fraction, config.return_floor, config.floor_episodes) == (0.25, -1.5, 7)
    online = config.online
    assert (online.total_steps, online.num_envs, online.rollout_length) == (10_000, 2, 8)
    assert (online.num_updates, online.learning_starts, online.seed) == (3, 0, 5)
    replay = online.replay
    assert (replay.capacity, replay.batch_size, replay.discount) == (500, 32, 0.9)
    plain = flags.experiment(["train", "--workdir=x", f"--init_from={origin}", f"--env={ENV}"])
    online = trained.loop_of(plain).online
    assert (online.num_updates, online.replay.capacity) == (64, 250_004)  # all, with successors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--init_from={origin}",), "--env is missing: with --init_from"),
        (("--init_from={tmp}/none", f"--env={ENV}"), "--init_from: .*none holds no run"),
        (("--init_from={origin}", f"--env={ENV}", "--agent=cql"), "--agent=cql cannot go on with"),
        (("--init_from={origin}", f"--env={ENV}", "--preset=none"), "--preset changes nothing"),
        ((f"--env={ENV}", "--online_steps=5"), "--online_steps is of runs that go on from another"),
        ((f"--env={ENV}", "--return_floor=5"), "--return_floor is of runs that go on"),
        (("--init_from={origin}", f"--env={ENV}", "--return_floor=nan"), "not nan"),
        (
            ("--init_from={origin}", f"--env={ENV}", "--floor_episodes=3"),
            "--floor_episodes changes nothing without --return_floor",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments, words, origin, tmp_path):
    asked = [x.format(origin=origin, tmp=tmp_path) for x in arguments]
    with pytest.raises(UsageError, match=words):
        flags.experiment(["train", f"--workdir={tmp_path}/run", *asked])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env=rljax:pendulum",), "rljax:pendulum shows or takes something else than"),
        (("--config.hidden_sizes=9",), r"hidden_sizes=\(9,\) does not fit what .* with \(8,\)"),
        (("--config.normalize_observation",), "normalize_observation=True does not fit"),
        (("--config.activation=tanh",), "activation is what .* has learned with: leave it out"),
        (("--config.reward_bias=-1",), "reward_bias is what .* has learned with: leave it out"),
        (("--config.total_updates=50",), "total_updates is of learning from the dataset alone"),
        (("--config.anneal_actor_learning_rate",), "cannot be with --init_from, where it is False"),
        (("--dataset_fraction=1",), r"dataset_fraction=1.0 of batch_size=16 must lie in \[0, 1\)"),
        (("--online_steps=63",), "a budget of 63 steps is less than one rollout, which takes 64"),
        (("--num_seeds=2",), "--num_seeds and --vary are for agents that learn from rollouts"),
        (("--actor_threads=2",), "with --init_from leave them out"),
        (("--workdir={origin}",), "--workdir and --init_from must be two"),
        (("--dataset={tmp}/nothing",), "There is no dataset at"),
    ],
)
def test_what_does_not_fit_the_policy_is_refused_and_nothing_is_written(
    arguments, words, origin, tmp_path
):
    asked = [x.format(origin=origin, tmp=tmp_path) for x in arguments]
    workdir = tmp_path / "run"
    with pytest.raises(UsageError, match=words):
        train(f"--workdir={workdir}", f"--init_from={origin}", *ONLINE, *asked)
    assert not workdir.exists()


def test_fields_that_only_say_where_learning_starts_are_refused(origin, monkeypatch):
    asked = flags.experiment(["train", "--workdir=x", f"--init_from={origin}", *ONLINE])
    found = trained.registry.agent_module("iql")
    spec = data.spec(origin)
    fine_tuning.check(asked, found.make(asked.config, spec))
    real = found.make

    def make(config, spec):
        agent = real(config, spec)

        def init(key):  # as if it were initial_log_std, of boxes
            state = agent.init(key)
            return state._replace(
                target=jax.tree.map(lambda x: x + config.initial_log_std, state.target)
            )

        return agent._replace(init=init)

    monkeypatch.setattr(found, "make", make)
    changed = dataclasses.replace(asked.config, initial_log_std=-1.0)
    with pytest.raises(ValueError, match="initial_log_std says where learning starts"):
        fine_tuning.check(dataclasses.replace(asked, config=changed), make(changed, spec))


def test_a_run_without_a_checkpoint_or_of_another_kind_is_refused(origin, tmp_path):
    (tmp_path / "config.json").write_text((origin / "config.json").read_text())
    asked = ("train", f"--init_from={tmp_path}", *ONLINE)
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        fine_tuning.resolved(flags.experiment([*asked, f"--workdir={tmp_path}/run"]))
    stored = json.loads((origin / "config.json").read_text())
    stored["experiment"] |= {"agent": "bc", "config": {}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UsageError, match=r"holds a run of bc; those that go on .* are iql, cql"):
        flags.experiment([*asked, f"--workdir={tmp_path}/run"])


def test_the_dataset_is_hashed_once(origin, tmp_path, monkeypatch):
    """To see that it is that of the run before, and for what this one keeps of it."""
    found, real = [], Dataset.sha256.func

    def sha256(dataset):
        found.append(dataset.source)
        return real(dataset)

    counted = functools.cached_property(sha256)
    counted.__set_name__(Dataset, "sha256")
    monkeypatch.setattr(Dataset, "sha256", counted)
    asked = flags.experiment(["train", f"--workdir={tmp_path}", f"--init_from={origin}", *ONLINE])
    data.describe(fine_tuning.open(asked), tmp_path)
    assert len(found) == 1
    told = [json.loads((x / "dataset.json").read_text())["sha256"] for x in (tmp_path, origin)]
    assert told[0] == told[1]


@pytest.mark.parametrize("text", ["[]", "{", '{"sha256": "00"}'])
def test_a_damaged_dataset_json_is_told(origin, tmp_path, text):
    asked = flags.experiment(["train", f"--workdir={tmp_path}", f"--init_from={origin}", *ONLINE])
    source = fine_tuning.open(asked)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UsageError, match=r"dataset.json is damaged \("):
        data.describe(source, tmp_path)


@pytest.mark.parametrize("text", ['{"max_episode_steps":30}', ' {"max_episode_steps": 3e1 }'])
def test_options_are_what_they_say_however_they_are_written(origin, tmp_path, text):
    """Given or taken over, they are the same run's."""
    stored = json.loads((origin / "config.json").read_text())
    stored["experiment"]["source"]["options"] = [["max_episode_steps", 30]]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    asked = ("train", f"--workdir={tmp_path}/run", f"--init_from={tmp_path}", *ONLINE)
    given, taken = (flags.experiment([*asked, *x]) for x in ((f"--env_options={text}",), ()))
    assert experiments.identity(given) == experiments.identity(taken)
    assert taken.source.options == given.source.options == (("max_episode_steps", 30),)


def test_a_dataset_that_has_changed_since_is_refused(origin, tmp_path):
    for name in ("config.json", "dataset.json"):
        (tmp_path / name).write_text((origin / name).read_text())
    told = json.loads((origin / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(told | {"sha256": "0" * 64}))
    asked = flags.experiment(
        ["train", f"--workdir={tmp_path}/run", f"--init_from={tmp_path}", *ONLINE]
    )
    with pytest.raises(UsageError, match=r"is not what .* mix another with --dataset"):
        trained.build(asked)
