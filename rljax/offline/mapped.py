"""Datasets that stay on disk: an array a file, mapped into memory instead of read.

    folder/rows.json   what they are; with it a folder is whole, without it there is no dataset
    folder/<n>.bin     an array's rows, one after another
    folder/starts.bin  int64: each episode's first row

For what is larger than memory: `launch.convert` writes it part by part, and `rljax.loops.offline`
reads no more than the rows that it draws.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import jax
import numpy as np

from rljax import config as configs
from rljax.files import new_folder
from rljax.offline import tables
from rljax.offline.dataset import Dataset
from rljax.types import ActionSpec, Box, Discrete, EnvSpec, Observation, Transition

FILE = "rows.json"
_STARTS = "starts.bin"
_VERSION = 1


@contextlib.contextmanager
def writing(
    folder: str | os.PathLike[str], features: str | None = None
) -> Iterator[Callable[[Dataset], None]]:
    """Gives `append(part)`; what it was given is a dataset at the end of the block, or nothing is.

    `features` is the `sources.feature_hash` of what is written, kept beside it.

    Raises:
        ValueError: the folder exists, nothing was appended, or a part is not as those before it.
    """
    folder = pathlib.Path(folder)
    open_files: list[BinaryIO] = []
    told: list[dict[str, Any]] = []
    starts, specs = [0], []

    def append(part: Dataset) -> None:
        arrays = _arrays(part.rows)
        shapes = [{"name": name, **_described(x)} for name, x in arrays.items()]
        if not specs:
            specs.append(part.spec)
            told.extend(shapes)
            open_files.extend((partial / f"{n}.bin").open("wb") for n in range(len(shapes)))
        specs[0] = _widened(specs[0], part)
        if shapes != told:
            names = [", ".join(each["name"] for each in all_of) for all_of in (shapes, told)]
            raise ValueError(f"{part.source} has the arrays {names[0]}; before it came {names[1]}.")
        for file, x in zip(open_files, arrays.values(), strict=True):
            file.write(np.ascontiguousarray(x).data)
        starts.extend((part.starts[1:] + starts[-1]).tolist())

    with new_folder(folder) as partial:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [file.close() for file in open_files])
            yield append
        if not specs:
            raise ValueError(f"there is no episode to write to {folder}.")
        np.array(starts, np.int64).tofile(partial / _STARTS)
        summary = {
            "version": _VERSION,
            "spec": tables.spec_to_json(specs[0]),
            "episodes": len(starts) - 1,
            "rows": starts[-1],
            "arrays": told,
            "features": features,
        }
        (partial / FILE).write_text(json.dumps(summary, indent=2) + "\n")


def read(folder: str | os.PathLike[str]) -> Dataset:
    """The dataset of a folder, its rows mapped. Raises ValueError where it is not whole."""
    folder = pathlib.Path(folder)
    try:
        told = json.loads((folder / FILE).read_text())
        if told["version"] != _VERSION:
            raise ValueError(f"its version is {told['version']}, and this reader knows {_VERSION}")
        spec = tables.spec_from_json(str(folder / FILE), told["spec"])
        arrays = {
            each["name"]: _mapped(folder / f"{number}.bin", told["rows"], each)
            for number, each in enumerate(told["arrays"])
        }
        rows = _transition(spec, arrays)
        starts = np.fromfile(folder / _STARTS, np.int64)
        whole = len(starts) == told["episodes"] + 1 and starts[-1] == told["rows"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(f"{folder} is damaged ({reason}): convert its source again.") from None
    if not whole or starts[0] != 0 or (np.diff(starts) < 2).any():  # a step and what it led to
        raise ValueError(f"{folder} is damaged ({_STARTS} does not fit): convert its source again.")
    return Dataset(spec, rows, starts, str(folder))


def feature_hash(folder: str | os.PathLike[str]) -> str | None:
    """What `writing` was told of the features; None for older folders too."""
    try:
        told = json.loads((pathlib.Path(folder) / FILE).read_text()).get("features")
    except (AttributeError, ValueError, OSError):
        return None  # `read` says what is wrong
    return told


def files(dataset: Dataset) -> list[pathlib.Path]:
    """The files that the rows are, each whole, in the order of the arrays; none if they are not."""
    found = []
    for x in jax.tree.leaves(dataset.rows):
        source, whole = x.base, False
        if isinstance(source, np.memmap) and x.flags.c_contiguous:
            whole = (source.offset, source.nbytes) == (0, x.nbytes)
        if not whole:
            return []
        found.append(pathlib.Path(str(source.filename)))
    return found if len({path.parent for path in found}) == 1 else []


def covers(action: ActionSpec, other: ActionSpec) -> bool:
    """Whether every action of the other space is one of this."""
    match action, other:
        case Discrete(), Discrete():
            return action.num_actions >= other.num_actions
        case Box(), Box() if len(action.low) == len(other.low):
            pairs = zip(action.low, other.low, strict=True)
            tops = zip(action.high, other.high, strict=True)
            return all(a <= b for a, b in pairs) and all(a >= b for a, b in tops)
    return action == other


def _widened(spec: EnvSpec, part: Dataset) -> EnvSpec:
    """The spec, with the actions of a part too: what a log does not say is found in its rows."""
    action, other = spec.action, part.spec.action
    if isinstance(action, Discrete) and isinstance(other, Discrete):
        action = Discrete(max(action.num_actions, other.num_actions))
    elif isinstance(action, Box) and isinstance(other, Box) and action.shape == other.shape:
        low = map(min, action.low, other.low)
        action = Box(tuple(low), tuple(map(max, action.high, other.high)))
    made = dataclasses.replace(spec, action=action)
    told = dataclasses.replace(part.spec, name=spec.name, action=action)
    if made != told or not covers(action, other):
        differences = configs.diff(*map(configs.to_json, (spec, part.spec)))
        raise ValueError(
            f"{part.source} is of something else than what came before: {'; '.join(differences)}."
        )
    return made


def _arrays(rows: Transition) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(rows)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in found}


def _transition(spec: EnvSpec, arrays: dict[str, Any]) -> Transition:
    """The rows whose `_arrays` these are."""
    features = arrays.get("observation.features")
    if spec.named_parts:
        features = {name: arrays[f"observation.features.{name}"] for name, _, _ in spec.parts}
    extras = {
        name.removeprefix("extras."): x for name, x in arrays.items() if name.startswith("extras.")
    }
    return Transition(
        Observation(features, arrays.get("observation.mask")),
        arrays["action"],
        arrays["reward"],
        arrays["discount"],
        arrays["valid"],
        extras,
    )


def _described(x: np.ndarray) -> dict[str, Any]:
    return {"dtype": np.dtype(x.dtype).str, "shape": list(x.shape[1:])}


def _mapped(path: pathlib.Path, rows: int, told: dict[str, Any]) -> Any:
    dtype, shape = np.dtype(told["dtype"]), (rows, *told["shape"])
    size = math.prod(shape) * dtype.itemsize
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes in place of {size}")
    # An ndarray, not a memmap, whose every view and sum would be one again.
    return np.asarray(np.memmap(path, dtype, "r", shape=shape)) if size else np.zeros(shape, dtype)
