"""Learning from logs as a user does: collected, trained, killed, resumed, evaluated, exported."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import collect, convert, flags, trained
from rljax.metrics import jsonl
from rljax.offline import dataset, sources
from tests.launch.killing import kill_behind_a_checkpoint

SMALL = (
    "--preset=none",
    "--config.hidden_sizes=16",
    "--config.total_updates=3000",
    "--config.batch_size=32",
    "--config.normalize_observation",
    "--num_devices=1",
    "--eval_every=0",
    "--eval_episodes=2",
    "--checkpoint_every=500",
)


def command(module, *arguments):
    return [sys.executable, "-m", f"launch.{module}", *map(str, arguments)]


def run(module, *arguments):
    return subprocess.run(
        command(module, *arguments), capture_output=True, text=True, timeout=300, check=False
    )


def refused(answer, *words):
    """One sentence, exit code 2, no trace."""
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    for word in words:
        assert word in answer.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("data") / "random"
    answer = run("collect", "--env=CartPole-v1", "--policy=random", "--episodes=40", f"--out={out}")
    assert answer.returncode == 0, answer.stderr
    return out


@pytest.fixture(scope="module")
def arguments(data) -> tuple[str, ...]:
    return ("--agent=iql", f"--dataset={data}", "--env=CartPole-v1", *SMALL)


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory) -> pathlib.Path:
    """A finished run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    answer = run("train", f"--workdir={workdir}", *arguments)
    assert answer.returncode == 0, answer.stderr
    return workdir


def test_where_nothing_can_be_written_nothing_is_played(tmp_path, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "_cast", interrupted)
    (tmp_path / "file").write_text("")
    asked = ("collect", "--env=CartPole-v1", "--policy=random")
    for out, error in (("file/out", NotADirectoryError), ("out", KeyboardInterrupt)):
        flags.parse_script([*asked, f"--out={tmp_path / out}"], collect.FLAGS)
        with pytest.raises(error):
            collect.main(["collect"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_policy_of_a_mixture_needs_an_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "_cast", lambda: [None] * 3)
    asked = ["collect", "--workdir=run", "--policy=mixed", "--episodes=2"]
    flags.parse_script([*asked, f"--out={tmp_path / 'out'}"], collect.FLAGS)
    with pytest.raises(flags.UsageError, match=r"--episodes=2 must be at least 3: --policy=mixed"):
        collect.main(["collect"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["expert", "medium"])
def test_who_never_trained_has_nobody_to_play(tmp_path, policy):
    out = f"--out={tmp_path / 'out'}"
    workdir = tmp_path / "none"
    answer = run("collect", f"--workdir={workdir}", f"--policy={policy}", out)
    refused(answer, "holds no run")
    assert list(tmp_path.iterdir()) == []
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    refused(run("collect", f"--workdir={workdir}", f"--policy={policy}", out), "error: ")


def test_a_collection_is_told_and_read_back_from_both_files(data):
    told = json.loads((data / "collection.json").read_text())
    assert (told["episodes"], told["policy"], told["env"]) == (40, "random", "CartPole-v1")
    assert told["parts"] == [
        {"policy": "random", "episodes": 40, "return_mean": told["return_mean"]}
    ]
    minari, parquet = sources.open(data), sources.open(data / "rows.parquet")
    assert told["steps"] == minari.num_steps == parquet.num_steps
    assert minari.returns().mean() == pytest.approx(told["return_mean"])
    jax.tree.map(np.testing.assert_array_equal, minari.rows, parquet.rows)
    steps = minari.rows.valid
    np.testing.assert_allclose(minari.rows.extras["log_prob"][steps], np.log(0.5), rtol=1e-6)
    assert (minari.rows.discount == 0).sum() == 40  # random poles all fall
    refused(
        run("collect", "--env=CartPole-v1", "--policy=random", f"--out={data}"), "exists already"
    )


def test_a_run_leaves_metrics_result_and_what_it_learned_from(straight, data):
    lines = jsonl.read(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(30, 3001, 30)]
    assert all(np.isfinite(line["loss/critic"]) for line in lines)
    result = json.loads((straight / "result.json").read_text())
    assert (result["step"], result["eval/episodes"]) == (3000, 2)
    told = json.loads((straight / "dataset.json").read_text())
    assert (told["path"], told["episodes"]) == (str(data), 40)
    kept = trained.load(straight).policy.observation  # and so are evaluated, served, and resumed
    for found, due in zip(kept[1:], dataset.moments(sources.open(data)), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-6)


def test_kill_9_and_the_same_command_give_the_undisturbed_run_bit_for_bit(
    straight, arguments, tmp_path
):
    arguments = (f"--workdir={tmp_path}", *arguments)
    kill_behind_a_checkpoint(command("train", *arguments), tmp_path)
    assert not (tmp_path / "result.json").exists()
    answer = run("train", *arguments)
    assert answer.returncode == 0, answer.stderr
    steps = [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")]
    assert steps == [*range(30, 3001, 30)]  # none twice, none missing
    one, two = trained.load(straight), trained.load(tmp_path)
    assert one.step == two.step == 3000
    jax.tree.map(np.testing.assert_array_equal, one.policy, two.policy)


def test_it_is_evaluated_by_playing_by_the_log_and_exported(straight, data, tmp_path):
    answer = run("evaluate", f"--workdir={straight}", "--episodes=2", "--novideo")
    assert answer.returncode == 0, answer.stderr
    flags = (f"--workdir={straight}", f"--dataset={data}", "--ope", "--ope_updates=500")
    answer = run("evaluate", *flags, "--ope_dice_updates=500")
    assert answer.returncode == 0, answer.stderr
    assert "dice: visits add up to " in answer.stdout
    assert "trust: " in answer.stdout
    report = json.loads((straight / "ope.json").read_text())
    names = [row["name"] for row in report["estimates"]]
    assert names == ["is", "wis", "pdis", "wpdis", "dm", "dr", "wdr", "magic", "dice"]
    assert (report["propensities"], report["num_episodes"]) == ("logged", 40)
    errors = report["dynamics"]
    assert len(errors["observation"]) == len(errors["unchanged"]) <= 20
    assert errors["observation"][0] < 0.5 * errors["unchanged"][0]
    assert "dynamics: error of learned models on 8 held-out episodes" in answer.stdout
    assert report["verdict"]["trust"] in ("high", "low", "none")
    assert report["shift"]["states"].keys() == report["shift"]["actions"].keys()
    assert 0 < report["shift"]["states"]["p_value"] <= 1
    assert (straight / "plots" / "ope.png").stat().st_size > 1000
    answer = run("export", f"--workdir={straight}", f"--export_dir={tmp_path}/model")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "model" / "1" / "saved_model.pb").is_file()


def test_a_policy_needs_no_dataset_any_more_nor_an_env(data, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(data)
    workdir = tmp_path / "run"
    flags = ("--agent=bc", f"--dataset={moved}", *SMALL[:-2])
    flags = [flag for flag in flags if "eval" not in flag]
    answer = run("train", f"--workdir={workdir}", *flags)
    assert answer.returncode == 0, answer.stderr
    moved.unlink()
    policy = trained.load(workdir)
    assert policy.agent.spec.action.num_actions == 2
    refused(run("evaluate", f"--workdir={workdir}"), "without --env")


def test_a_workdir_stays_with_its_dataset(straight, arguments, tmp_path, data):
    told = json.loads((straight / "dataset.json").read_text())
    copy = tmp_path / "run"
    short = ("--config.total_updates=30", "--eval_every=20")
    answer = run("train", f"--workdir={copy}", *arguments, *short)
    assert answer.returncode == 0, answer.stderr
    played = [
        row["step"] for row in jsonl.read(copy / "metrics.jsonl") if "eval/return_mean" in row
    ]
    assert played == [20, 30]
    path = copy / "dataset.json"
    path.write_text(json.dumps(told | {"sha256": "0" * 64}))
    answer = run("train", f"--workdir={copy}", *arguments, *short)
    refused(answer, "is not what", "give another --workdir")
    path.unlink()  # it has a checkpoint, of which nothing tells what it comes from
    answer = run("train", f"--workdir={copy}", *arguments, *short)
    refused(answer, "dataset.json is missing", "give another --workdir")
    assert not path.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--agent=iql", "--env=CartPole-v1"), ("--dataset is missing",)),
        (("--agent=ppo", "--dataset=x"), ("not from a --dataset",)),
        (("--agent=iql", "--dataset=nowhere", *SMALL[:4]), ("nowhere",)),
        (("--agent=bc", "--dataset=x", "--eval_episodes=3"), ("needs an --env",)),
    ],
)
def test_what_cannot_be_learned_from_is_refused(flags, words, tmp_path):
    refused(run("train", f"--workdir={tmp_path}/run", *flags), *words)
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_something_else_is_refused(data, tmp_path):
    flags = ("--agent=bc", f"--dataset={data}", "--env=Pendulum-v1", *SMALL)
    refused(run("train", f"--workdir={tmp_path}/run", *flags), "random")
    assert not (tmp_path / "run").exists()


def test_rows_on_disk_are_learned_from_as_the_files_that_they_come_from(
    data, arguments, straight, tmp_path
):
    out = tmp_path / "rows"
    answer = run("convert", f"--dataset={data / '*.parquet'}", f"--out={out}")
    assert answer.returncode == 0, answer.stderr
    assert "40 episodes" in answer.stdout
    again = run("convert", f"--dataset={data}", f"--out={out}")
    refused(again, f"{out} exists already: choose a new folder.")
    jax.tree.map(np.testing.assert_array_equal, sources.open(out).rows, sources.open(data).rows)
    workdir = tmp_path / "run"
    others = [argument for argument in arguments if "--dataset" not in argument]
    answer = run("train", f"--workdir={workdir}", *others, f"--dataset={out}")
    assert answer.returncode == 0, answer.stderr
    hashes = [json.loads((x / "dataset.json").read_text())["sha256"] for x in (workdir, straight)]
    assert hashes[0] == hashes[1]
    one, two = (trained.load(x).policy for x in (workdir, straight))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_name_with_brackets_is_no_pattern(data, tmp_path):
    [log] = data.glob("*.parquet")
    named, other = tmp_path / "log[1].parquet", tmp_path / "log1.parquet"
    named.write_bytes(log.read_bytes())
    other.write_bytes(b"what the pattern would find")
    flags.parse_script(["", f"--dataset={named}", f"--out={tmp_path / 'rows'}"], convert.FLAGS)
    assert convert.main([]) == 0
    assert sources.open(tmp_path / "rows").num_episodes == 40


def test_what_cannot_be_converted_is_one_sentence(tmp_path):
    refused(run("convert", "--dataset=nowhere", f"--out={tmp_path / 'x'}"), "no dataset at nowhere")
    refused(run("convert", f"--out={tmp_path / 'x'}"), "--dataset is missing; see --help.")
    assert not list(tmp_path.iterdir())
