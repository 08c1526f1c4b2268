"""The dataset that a run learns from, and what a workdir keeps of it.

workdir/dataset.json   {"path", "sha256", "episodes", "steps", "spec", ...}: where a policy comes
                       from, and what it acts on, once the dataset itself is gone
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from launch import experiment as experiments
from launch import graph
from launch.experiment import Experiment
from rljax import config as configs
from rljax import files, sharding, sources
from rljax.config import UsageError
from rljax.loops import fine_tuning, offline
from rljax.offline import fingerprints, tables
from rljax.offline import sources as datasets
from rljax.offline.dataset import Dataset
from rljax.types import EnvSpec

FILE = "dataset.json"

T = TypeVar("T")


def open(experiment: Experiment) -> Dataset:
    """The dataset of a run, as the actions and observations of its --env, if it has one.

    Raises ValueError where it cannot be read, or is of something else.
    """
    spec = None
    if experiment.source.name:
        spec = sources.open(dataclasses.replace(experiment.source, num_envs=1)).spec
    return datasets.open(experiment.dataset, spec)


def loop(experiment: Experiment, inner: offline.Config) -> offline.Config:
    """The agent's loop as the run wants it; its calls end where something is due."""
    every = (experiment.checkpoint_every, experiment.eval_every, graph.log_rows(experiment, inner))
    return dataclasses.replace(
        inner,
        seed=experiment.seed,
        parallel=sharding.Parallel(experiment.parallel.value),
        num_devices=experiment.num_devices,
        cadences=tuple(sorted({updates for updates in every if updates})),
    )


def describe(source: Any, workdir: pathlib.Path, path_of_data: str = "") -> None:
    """Leaves `dataset.json`, if there is a dataset that is learned from; `path_of_data` is its own.

    Raises UsageError where the workdir's run has learned from another, whatever its path says, or
    where nothing tells any more which one it was.
    """
    source = source.dataset if isinstance(source, fine_tuning.Source) else source
    if not isinstance(source, Dataset):
        return
    path = workdir / FILE
    if path.exists():
        check_same(source, workdir, "give another --workdir")
        return
    if experiments.has_learned(workdir):
        raise UsageError(
            f"{path} is missing, so nothing tells whether the run has learned from "
            f"{source.source} as it is now: restore it, or give another --workdir."
        )
    returns = source.returns()
    told = {
        "path": source.source,
        "sha256": fingerprints.of(source),
        "episodes": source.num_episodes,
        "steps": source.num_steps,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "spec": configs.to_json(source.spec),
        "features": datasets.feature_hash(path_of_data) if path_of_data else None,
    }
    files.write_text(path, json.dumps(told, indent=2) + "\n")


def check_same(dataset: Dataset, workdir: pathlib.Path, remedy: str) -> None:
    """Raises UsageError where the run in `workdir` has learned from another, whatever its path."""
    known, steps = _told(workdir / FILE, lambda told: (str(told["sha256"]), int(told["steps"])))
    found = fingerprints.of(dataset)
    if known != found:
        raise UsageError(
            f"{dataset.source} is not what {workdir} has learned from: it had {steps:,} steps with "
            f"the hash {known[:12]}, and has {dataset.num_steps:,} with {found[:12]}; {remedy}."
        )


def feature_hash(workdir: str | pathlib.Path) -> str | None:
    """Of a bandit's log that was learned from; None in older runs. Raises UsageError as `spec`."""
    return _told(pathlib.Path(workdir) / FILE, lambda told: dict(told).get("features"))


def spec(workdir: str | pathlib.Path) -> EnvSpec:
    """What the policy of a workdir sees and does. Raises UsageError where nothing tells."""
    path = pathlib.Path(workdir) / FILE
    return _told(path, lambda told: tables.spec_from_json(str(path), json.dumps(told["spec"])))


def _told(path: pathlib.Path, use: Callable[[dict[str, Any]], T]) -> T:
    """What `use` makes of a `dataset.json`. UsageError where it is missing, or cannot be used."""
    try:
        return use(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing: restore it, or train again in another --workdir."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it, or train again in "
            "another --workdir."
        ) from error
