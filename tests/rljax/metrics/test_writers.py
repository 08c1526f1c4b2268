import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.config import UsageError
from rljax.metrics import jsonl
from rljax.metrics.progress import Progress
from rljax.metrics.writers import FanOut, Logging, Sink, writers

QUIET = Logging(progress=Progress.OFF)


@pytest.fixture
def no_wandb_account(monkeypatch, tmp_path):
    """As on a fresh machine: no key, no netrc, an empty home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_files"))  # restored when the test ends
    return home


class Recorder:
    def __init__(self):
        self.calls = []

    def config(self, config):
        self.calls.append(("config", config))

    def write(self, step, metrics):
        self.calls.append((step, metrics))

    def close(self):
        self.calls.append("close")


def test_every_sink_gets_everything_as_python_numbers():
    sinks = [Recorder(), Recorder()]
    log = FanOut(sinks)
    log.config({"seed": 1})
    measured = {"loss/policy": jnp.float32(0.5), "loss/value": np.array(1)}
    log.write(7, {**measured, "count/rows": 3})
    expected = {"loss/policy": 0.5, "loss/value": 1.0, "count/rows": 3.0}
    for sink in sinks:
        assert sink.calls == [("config", {"seed": 1}), (7, expected)]
        assert {type(x) for x in sink.calls[1][1].values()} == {float}


@pytest.mark.parametrize("name", ["loss", "loss/", "/policy", "Loss/policy", "a/b/c", "loss/x y"])
def test_names_are_group_and_noun(name):
    with pytest.raises(ValueError, match=r"must be named group/noun"):
        FanOut([Recorder()]).write(1, {name: 0.0})


def test_only_scalars_are_metrics():
    with pytest.raises(ValueError, match=r"'loss/policy' must be a scalar"):
        FanOut([Recorder()]).write(1, {"loss/policy": jnp.zeros(2)})


def test_jsonl_is_written_to_the_workdir(tmp_path):
    with writers(QUIET, tmp_path / "run") as log:
        log.write(1, {"loss/policy": 0.5})
    assert jsonl.read(tmp_path / "run" / "metrics.jsonl")[0]["loss/policy"] == 0.5


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with writers(QUIET, tmp_path / "run") as log:
        log.write(1, {"loss/policy": 0.5})
    assert not (tmp_path / "run").exists()


def test_sinks_are_closed_when_the_run_fails(tmp_path, capsys):
    def interrupted_run():
        with writers(Logging(progress=Progress.PLAIN), tmp_path, total_steps=10) as log:
            log.write(5, {"loss/policy": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert "5 / 10 steps" in capsys.readouterr().err.splitlines()[-1]


def test_progress_off_is_silent(tmp_path, capfd):
    with writers(QUIET, tmp_path) as log:
        log.write(1, {"loss/policy": 0.5})
    assert capfd.readouterr() == ("", "")


def tensorboard_scalars(folder):
    from tensorboardX.proto import event_pb2

    points = []  # each record: length (8 bytes), its checksum (4), the event, its checksum (4)
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            points += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return points


def test_tensorboard_gets_scalars_and_the_config(tmp_path):
    logging = Logging(writers=(Sink.TENSORBOARD,), progress=Progress.OFF)
    with writers(logging, tmp_path) as log:
        log.config({"agent": "ppo"})
        log.write(2**40, {"loss/policy": 0.5})
    points = tensorboard_scalars(tmp_path / "tensorboard")
    assert (2**40, "loss/policy", 0.5) in points
    assert any(tag.startswith("config") for _, tag, _ in points)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_wandb_without_a_key_is_offline_and_inside_the_workdir(tmp_path, no_wandb_account):
    with writers(Logging(writers=(Sink.WANDB,), progress=Progress.OFF), tmp_path / "run") as log:
        log.config({"agent": "ppo"})
        log.write(1, {"loss/policy": 0.5})
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # another process writes it, soon after the run is finished
    while b"loss/policy" not in record.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(no_wandb_account.iterdir())


def test_wandb_keeps_one_run_per_workdir(tmp_path, no_wandb_account):
    logging = Logging(writers=(Sink.WANDB,), progress=Progress.OFF)
    for _ in range(2):  # a run, and the same resumed
        with writers(logging, tmp_path / "run"):
            pass
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    run_id = (tmp_path / "run" / "wandb" / "run_id.txt").read_text()
    assert len(folders) == 2
    assert all(run_id in folder.name for folder in folders)


@pytest.mark.slow
def test_wandb_out_of_reach_is_offline(tmp_path, no_wandb_account, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port "discard": nobody listens
    with writers(Logging(writers=(Sink.WANDB,), progress=Progress.OFF), tmp_path / "run") as log:
        log.write(1, {"loss/policy": 0.5})
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [(Sink.WANDB, "wandb", "wandb"), (Sink.TENSORBOARD, "tensorboardX", "tensorboard")],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with (
        pytest.raises(UsageError, match=rf"pip install 'rljax\[{extra}\]'"),
        writers(Logging(writers=(kind,), progress=Progress.OFF), tmp_path),
    ):
        pass


def test_command_lines_can_name_the_sinks_without_jax_or_the_extras():
    code = (
        "import sys, rljax.metrics.writers;"
        "print(json.dumps(sorted({'jax', 'wandb', 'tensorboardX'} & set(sys.modules))))"
    )
    output = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, check=True, text=True
    )
    assert json.loads(output.stdout) == []
