"""A run, whole and frozen, and the directory that it lives in.

    workdir/config.json   {"experiment": ..., "versions": ...}, written once, before anything else

The same command on the same workdir resumes the run; one that would change what is learned is
refused with the difference (`identity`). Imports no JAX.
"""

import contextlib
import dataclasses
import enum
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import rljax
from rljax import config as configs
from rljax import files, registry
from rljax.config import UsageError
from rljax.metrics.writers import Logging

if TYPE_CHECKING:
    from rljax.sources import EnvSource

    AgentConfig = Any  # `Config` of the agent's module

Vary = tuple[tuple[str, tuple[float, ...]], ...]  # hyper-parameters by name, and their values

CONFIG_FILE = "config.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "envpool", "gymnasium")


class Parallel(enum.Enum):
    """How an update is spread over devices; the names of `rljax.sharding.Parallel`."""

    SHARD_MAP = "shard_map"
    PMAP = "pmap"


class Collector(enum.Enum):
    """Who steps the environments; the names of `rljax.rollout.Kind`."""

    AUTO = "auto"
    HOST = "host"
    ENVPOOL_XLA = "envpool_xla"
    IN_GRAPH = "in_graph"


class ActorKind(enum.Enum):
    """Who collects: the learner itself, or actors beside it."""

    NONE = "none"
    THREADS = "threads"
    RAY = "ray"


@dataclasses.dataclass(frozen=True)
class Actors:
    """Actors, as `rljax.loops.actor_learner` has them; only `staleness` changes what is learned."""

    kind: ActorKind = ActorKind.NONE
    num_actors: int = 1
    devices: tuple[int, ...] = ()  # threads only; (): the first
    learner_devices: tuple[int, ...] = ()  # (): as num_devices says
    staleness: int = 0  # updates that their policy is behind
    timeout_seconds: float = 600.0
    ray_address: str = ""  # "": a cluster of its own
    max_restarts: int = 3  # of a Ray actor, in a row


@dataclasses.dataclass(frozen=True)
class Online:
    """How a policy that was learned from a dataset goes on, as `rljax.loops.fine_tuning` has it."""

    init_from: str = ""  # the workdir of the run that it goes on from; "": it goes on from none
    init_step: int = 0  # of the checkpoint there
    steps: int = 250_000  # rows to collect
    envs: int = 4
    rollout_length: int = 16
    updates: int = 0  # after every rollout; 0: as many as it has rows
    capacity: int = 0  # rows that are kept; 0: all
    dataset_fraction: float = 0.5
    return_floor: float | None = None
    floor_episodes: int = 20


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that `launch.train` acts upon."""

    source: "EnvSource"
    agent: str
    config: "AgentConfig"
    preset: str  # that the config started from, or "none"
    seed: int
    workdir: str
    parallel: Parallel
    num_devices: int  # 0: all of this process
    collector: Collector
    checkpoint_every: int  # rows; 0: only at the end
    eval_every: int  # rows; 0: only at the end
    eval_episodes: int  # 0: no evaluation
    log_every: int | None  # updates; None: as `launch.graph.log_rows` has it
    logging: Logging
    actors: Actors = Actors()
    num_seeds: int = 1  # runs in one program: `seed`, `seed` + 1, ...
    vary: Vary = ()  # every combination of the values runs with every seed
    keep_checkpoints: int = 2  # the last ones, besides the best
    dataset: str = ""  # what it learns from, in place of `source`; "": it collects for itself
    expert: str = ""  # workdir of the policy that it asks; "": it asks nobody
    expert_step: int = 0  # of the checkpoint there
    online: Online = Online()  # then it learns from both


def identity(experiment: Experiment) -> dict[str, Any]:
    """What must agree when a workdir is resumed, as JSON: all that decides what is learned."""
    return _identity(configs.to_json(experiment))


def open_workdir(experiment: Experiment) -> pathlib.Path:
    """Makes the workdir with its `config.json`, or finds the same run in it; the absolute path.

    To be called by process 0 only.

    Raises:
        UsageError: it cannot be made or written, its disk is full, or it holds another run, or
            what a run has learned without its `config.json`.
    """
    workdir = pathlib.Path(experiment.workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / CONFIG_FILE).exists():
            _check_same_run(experiment, workdir)
            if not os.access(workdir, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        elif has_learned(workdir):
            raise UsageError(
                f"{workdir / CONFIG_FILE} is missing, so nothing tells whose the checkpoints there "
                "are: restore it, or give another --workdir."
            )
        else:
            data = {"experiment": configs.to_json(experiment), "versions": versions()}
            files.write_text(workdir / CONFIG_FILE, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"the workdir {experiment.workdir} cannot be written: {_reason(error, workdir)}; "
            "give another one with --workdir."
        ) from error
    return workdir


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir, until the block or this process ends.

    Raises UsageError where another one does: it may be the child of a benchmark that was killed.
    """
    with (workdir / CONFIG_FILE).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {workdir}: wait for its end, or end it; then the "
                "same command resumes."
            ) from None
        except OSError:  # a file system that knows no locks
            pass
        yield


def has_learned(workdir: pathlib.Path) -> bool:
    """Whether there are checkpoints in it, whole or not."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def load(workdir: str | pathlib.Path) -> Experiment:
    """The experiment whose run `workdir` holds; imports its agent.

    Raises:
        UsageError: there is no run here, or its `config.json` cannot be understood.
    """
    from rljax.sources import EnvSource  # imports JAX

    stored = _read(pathlib.Path(workdir))["experiment"]
    names = {"EnvSource": EnvSource, "AgentConfig": registry.agent_module(stored["agent"]).Config}
    try:
        experiment = configs.from_json(Experiment, stored, names)
    except UsageError as error:
        raise UsageError(f"{pathlib.Path(workdir) / CONFIG_FILE}: {error}") from error
    return dataclasses.replace(experiment, workdir=str(workdir))


def versions() -> dict[str, str | None]:
    """Of this code, Python and the packages that results depend on; None: not installed."""
    found: dict[str, str | None] = {
        "rljax": rljax.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None if it runs from none."""
    root = pathlib.Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    top, commit = answer.stdout.splitlines()
    return commit if pathlib.Path(top) == root else None  # else installed inside another checkout


def _identity(stored: Mapping[str, Any]) -> dict[str, Any]:
    source = stored["source"]
    staleness = stored.get("actors", {}).get("staleness", 0)
    return {
        "agent": stored["agent"],
        "env": source["name"],
        "env_options": dict(source["options"]),
        "seed": stored["seed"],
        "config": stored["config"],
        # How many actors there are, and where, changes nothing: `rljax.actors.base`.
        **({"staleness": staleness} if staleness else {}),
        # Absent, as in older files, is the same as none, or as one run.
        **({"dataset": stored["dataset"]} if stored.get("dataset") else {}),
        **({"expert": stored["expert"]} if stored.get("expert") else {}),
        **({"num_seeds": stored["num_seeds"]} if stored.get("num_seeds", 1) > 1 else {}),
        **({"vary": dict(stored["vary"])} if stored.get("vary") else {}),
        **({"online": online} if (online := stored.get("online", {})).get("init_from") else {}),
    }


def _check_same_run(experiment: Experiment, workdir: pathlib.Path) -> None:
    differences = configs.diff(identity(load(workdir)), identity(experiment))
    if differences:
        raise UsageError(
            f"the workdir {experiment.workdir} holds another run: give another, delete this "
            "one, or resume it with its own settings (its -> yours):\n  " + "\n  ".join(differences)
        )


def _read(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / CONFIG_FILE
    try:
        data = json.loads(path.read_text())
        _identity(data["experiment"])
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{workdir} holds no run: there is no {CONFIG_FILE} in it; "
            "give the --workdir that launch.train was given."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it, or start anew."
        ) from error
    return data


def _reason(error: OSError, workdir: pathlib.Path) -> str:
    for path in (workdir, *workdir.parents):
        if path.is_file():
            return f"{path} is a file"
    return "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
