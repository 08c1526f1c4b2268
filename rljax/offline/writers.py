"""Datasets to files: event logs in Parquet, and Minari's layout; both read back to equal arrays."""

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from rljax import files
from rljax.offline import tables
from rljax.offline.dataset import Dataset, Episode
from rljax.offline.schema import VERSION
from rljax.types import ActionSpec, Box, Discrete, EnvSpec

MASK = "action_mask"  # as Gymnasium's tasks call it
SPEC, EXTRAS = "rljax_spec", "rljax_extras"  # of the metadata of Minari's layout
_MINARI_VERSION = "0.5.3"  # whose layout it is
_TOP = 500.0  # of ln density: what double precision holds as a density


def write_parquet(
    dataset: Dataset, path: str | os.PathLike[str], policy_version: str | None = None
) -> None:
    """Writes an event log (`rljax.offline.schema`), with a row for each final observation.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: something beside the steps is called as a column of the schema is.
    """
    pa, pq = tables.optional("pyarrow"), tables.optional("pyarrow.parquet")

    rows, starts = dataset.rows, dataset.starts
    count = len(rows.reward)
    valid = np.asarray(rows.valid)
    lengths = np.diff(starts)
    terminated = valid & (np.asarray(rows.discount) == 0)
    last = np.zeros(count, bool)
    last[starts[1:] - 2] = True
    columns: dict[str, Any] = {
        "episode_id": np.repeat(np.arange(dataset.num_episodes), lengths),
        "step": np.arange(count) - np.repeat(starts[:-1], lengths),
    }
    features = rows.observation.features
    named = features if dataset.spec.named_parts else {"": features}
    for name, values in named.items():
        columns[f"state/{name}" if name else "state"] = _listed(pa, values)
    action = np.asarray(rows.action)
    columns["action"] = action if isinstance(dataset.spec.action, Discrete) else _listed(pa, action)
    if rows.observation.mask is not None:
        columns[MASK] = _listed(pa, rows.observation.mask)
    columns |= {
        "reward": np.asarray(rows.reward),
        "terminated": terminated,
        "truncated": last & ~terminated,
        "final": ~valid,
    }
    for name, values in rows.extras.items():
        if name in columns or name == "propensity":
            raise ValueError(f"{name!r} beside the steps of a dataset is a column of event logs.")
        columns[name] = pa.array(np.asarray(values), mask=~valid)
    if "log_prob" in rows.extras:
        columns["propensity"] = pa.array(
            _propensity(np.asarray(rows.extras["log_prob"]), dataset.spec.action), mask=~valid
        )
    if policy_version is not None:
        columns["policy_version"] = [policy_version] * count
    columns["schema_version"] = np.full(count, VERSION, np.int32)
    extras = [name for name in rows.extras if name != "log_prob"]
    metadata = {
        tables.SPEC_KEY: tables.spec_to_json(dataset.spec),
        tables.EXTRAS_KEY: "\n".join(extras),
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    with files.replacing(pathlib.Path(path)) as partial:
        pq.write_table(table, partial, write_page_checksum=True)


def write_minari(
    dataset: Dataset, folder: str | os.PathLike[str], dataset_id: str | None = None
) -> None:
    """Writes `folder`/data as Minari lays it out: HDF5 of episodes, and metadata.json.

    `minari.MinariDataset(folder / "data")` opens it; so does `minari.load_dataset(dataset_id)`
    where the folder has that name among Minari's. What is beside the steps becomes `infos`. The
    file is made in memory.

    Args:
        dataset: what to write.
        folder: made if need be.
        dataset_id: such as "pendulum/expert-v0"; by default after the folder.

    Raises:
        ImportError: h5py is not installed.
        OSError: the disk is full, or not ours to write; nothing is left then.
        ValueError: the folder has a dataset already, or the id is none.
    """
    h5py = tables.optional("h5py")
    folder = pathlib.Path(folder)
    if dataset_id is None:
        name = re.sub(r"[^-\w]+", "-", folder.resolve().name).strip("-") or "dataset"
        dataset_id = name if re.search(r"-v\d+$", name) else f"{name}-v0"
    if not re.fullmatch(r"([-\w/]*[-\w]/)?[-\w]+-v\d+", dataset_id):
        raise ValueError(f"{dataset_id!r} is no id of Minari's: name-v0 or group/name-v0 would be.")
    with files.new_folder(folder / "data") as partial:
        path = partial / "main_data.hdf5"
        # In memory first: where the disk is full, HDF5 itself ends the process with a crash.
        in_memory = {"driver": "core", "backing_store": False, "track_order": True}
        with h5py.File(path, "w", **in_memory) as file:
            for number, episode in enumerate(dataset.episodes()):
                group = file.create_group(f"episode_{number}")
                group.attrs["id"] = number
                group.attrs["total_steps"] = len(episode.reward)
                for name, values in _arrays(dataset.spec, episode):
                    group.create_dataset(name, data=values, fletcher32=True)  # checksums
                group.require_group("infos")
            file.flush()
            path.write_bytes(file.id.get_file_image())
        size = path.stat().st_size / 1e6
        metadata = _metadata(dataset, dataset_id, size)
        (partial / "metadata.json").write_text(json.dumps(metadata))


def _arrays(spec: EnvSpec, episode: Episode) -> Iterator[tuple[str, np.ndarray]]:
    """What Minari keeps of an episode of T steps: T + 1 observations, T of the rest."""
    features, mask = episode.observation
    named = features if spec.named_parts else {"observation": features}
    if mask is None and not spec.named_parts:
        yield "observations", np.asarray(features)
    else:
        for name, values in named.items():
            yield f"observations/{name}", np.asarray(values)
        if mask is not None:
            yield f"observations/{MASK}", np.asarray(mask).astype(np.int8)
    action = np.asarray(episode.action)
    yield "actions", action if isinstance(spec.action, Box) else action.astype(np.int64)
    yield "rewards", np.asarray(episode.reward, np.float64)
    end = np.arange(len(episode.reward)) == len(episode.reward) - 1
    yield "terminations", end & episode.terminated
    yield "truncations", end & (not episode.terminated)
    for name, values in episode.extras.items():
        yield f"infos/{name}", np.asarray(values)


def _metadata(dataset: Dataset, dataset_id: str, size: float) -> dict[str, Any]:
    spec = dataset.spec
    shown = {name: _box_of(shape, dtype) for name, shape, dtype in spec.parts}
    if spec.has_mask and not isinstance(spec.action, Box):
        width = spec.action.mask_shape
        shown[MASK] = _box(width, "int8", np.zeros(width), np.ones(width))
    alone = shown.get("observation")
    if spec.named_parts or alone is None or len(shown) > 1:
        alone = {"type": "Dict", "subspaces": shown}
    return {
        "total_episodes": dataset.num_episodes,
        "total_steps": dataset.num_steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(alone),
        "action_space": json.dumps(_action_space(spec.action)),
        "dataset_id": dataset_id,
        "dataset_size": round(size, 1),
        "minari_version": _MINARI_VERSION,
        SPEC: tables.spec_to_json(spec),
        EXTRAS: list(dataset.rows.extras),
    }


def _action_space(action: ActionSpec) -> dict[str, Any]:
    if isinstance(action, Box):
        return _box(action.shape, "float32", np.array(action.low), np.array(action.high))
    if isinstance(action, Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": action.num_actions}
    nvec = list(action.nvec)
    return {"type": "MultiDiscrete", "dtype": "int64", "nvec": nvec, "start": [0] * len(nvec)}


def _box_of(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    low, high = (0, 255) if dtype == "uint8" else (-np.inf, np.inf)
    return _box(shape, dtype, np.full(shape, low), np.full(shape, high))


def _box(shape: tuple[int, ...], dtype: str, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    return {
        "type": "Box",
        "dtype": dtype,
        "shape": list(shape),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def _listed(pa: Any, values: Any) -> Any:
    """An array `[N, ...]` as N lists of one length."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def _propensity(log_prob: np.ndarray, action: ActionSpec) -> np.ndarray:
    """exp(log_prob) in double precision; what rounding put above certainty is certain."""
    top = _TOP if isinstance(action, Box) else 0.0
    return np.exp(np.clip(log_prob.astype(np.float64), -_TOP, top))
