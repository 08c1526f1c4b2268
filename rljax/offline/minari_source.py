"""Minari's datasets, read from their HDF5 files with h5py alone.

A folder has data/main_data.hdf5, in which episode_0, episode_1, ... hold T + 1 observations, T
actions, rewards, terminations and truncations; and data/metadata.json with the spaces. Lengths are
checked, not assumed: there are old files with T observations. `infos` are left, but for what
`rljax.offline.writers` put there.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces as gym

from rljax.envs import spaces
from rljax.offline import dataset as datasets
from rljax.offline import tables, writers
from rljax.offline.dataset import Dataset, Episode
from rljax.offline.schema import OnFault, Reading
from rljax.types import Box, Discrete, EnvSpec, Observation

FILE = "main_data.hdf5"


class _Layout(NamedTuple):
    """How the arrays of an episode become ours."""

    spec: EnvSpec
    observation: Any  # what lies under "observations" -> Observation
    extras: tuple[str, ...]


def read(
    folder: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    on_fault: OnFault = OnFault.REFUSE,
    *,
    clip_actions: bool = False,
) -> Reading:
    """The dataset of a folder of Minari's, or of one HDF5 file of that layout.

    Args:
        folder: that holds data/main_data.hdf5, or main_data.hdf5; or the file.
        spec: of what acted; by default that of the metadata, else of the data.
        on_fault: whether episodes that cannot be right are refused, or dropped and counted.
        clip_actions: puts actions into the bounds of the box, as most tasks do before they act.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file is absent or cut short, or an episode cannot be right.
    """
    counts: collections.Counter[str] = collections.Counter()
    with _opened_file(folder, spec, on_fault, clip_actions, counts) as (made_of, found):
        made = datasets.make(made_of, found, str(folder))
    return Reading(made, _nonzero(counts), {})


def parts(
    folder: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    on_fault: OnFault = OnFault.REFUSE,
    *,
    clip_actions: bool = False,
    rows: int = 100_000,
) -> Generator[Dataset, None, dict[str, int]]:
    """As `read`, some episodes at a time: as many as have `rows` rows, or one that has more.

    What it returns at the end are the counts of a `Reading`.
    """
    counts: collections.Counter[str] = collections.Counter()
    with _opened_file(folder, spec, on_fault, clip_actions, counts) as (made_of, found):
        some: list[Episode] = []
        size = first = 0
        for number, episode in enumerate(found):
            some.append(episode)
            size += len(episode.reward)
            if size >= rows:
                yield datasets.make(made_of, some, str(folder), first)
                some, size, first = [], 0, number + 1
        if some:
            yield datasets.make(made_of, some, str(folder), first)
    return _nonzero(counts)


def data_file(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Where a folder has its episodes; the path itself if it is a file."""
    path = pathlib.Path(folder)
    if path.is_dir():
        return path / FILE if (path / FILE).exists() else path / "data" / FILE
    return path


@contextlib.contextmanager
def _opened_file(
    folder: str | os.PathLike[str],
    spec: EnvSpec | None,
    on_fault: OnFault,
    clip: bool,
    counts: collections.Counter[str],
) -> Iterator[tuple[EnvSpec, Iterator[Episode]]]:
    """The episodes of a file that is open for as long as the block; raises what `read` does."""
    path = data_file(folder)
    try:
        with tables.optional("h5py").File(path, "r") as file:
            metadata = _metadata(path, file)
            names = _episode_names(path, file, metadata)
            layout = _layout(path, file, names, metadata, spec)
            if on_fault is OnFault.REFUSE:
                found = (_episode(path, file[name], layout, clip, counts) for name in names)
            else:
                found = _kept(path, file, names, layout, clip, counts)
            yield layout.spec, found
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except tables.DAMAGED as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no HDF5 file, or is cut short: {told}") from None


def _metadata(path: pathlib.Path, file: Any) -> dict[str, Any]:
    """metadata.json, or what older versions kept as attributes."""
    beside = path.with_name("metadata.json")
    if not beside.exists():
        return dict(file.attrs)
    try:
        told = json.loads(beside.read_text())
    except ValueError as error:
        raise ValueError(f"{beside} is no JSON, or is cut short: {error}.") from None
    if not isinstance(told, dict) or type(told.get("total_episodes", 0)) is not int:
        raise ValueError(f"{beside} is no JSON object with a whole number of total_episodes.")
    return told


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _episode_names(path: pathlib.Path, file: Any, metadata: Mapping[str, Any]) -> list[str]:
    named = [name for name in file if name.removeprefix("episode_").isdecimal()]
    names = sorted(named, key=lambda name: int(name.removeprefix("episode_")))
    if not names:
        raise ValueError(f"{path} has no group episode_0: it is no file of Minari's.")
    due = metadata.get("total_episodes")
    if due is not None and not np.array_equal(due, len(names)):
        raise ValueError(f"{path} has {len(names)} of the {due} episodes of its metadata.")
    return names


def _layout(
    path: pathlib.Path,
    file: Any,
    names: list[str],
    metadata: Mapping[str, Any],
    spec: EnvSpec | None,
) -> _Layout:
    """From the metadata; without spaces in it, from the arrays themselves."""
    if writers.SPEC in metadata:  # our own
        ours = tables.spec_from_json(str(path), metadata[writers.SPEC])
        return _Layout(spec or ours, _ours(ours), tuple(metadata.get(writers.EXTRAS, ())))
    name, limit = _task(metadata, path)
    if "observation_space" in metadata and "action_space" in metadata:
        try:
            shown = _space(json.loads(metadata["observation_space"]))
            acted = _space(json.loads(metadata["action_space"]))
            seen = spaces.observation_layout(shown)
            action = spaces.action_layout(acted, acted.dtype, seen.mask_shape).spec
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: its spaces cannot be read: {error}.") from None
        has_mask = seen.mask_shape is not None
        made = EnvSpec(name, seen.shape, seen.dtype, action, has_mask, limit, seen.named_parts)

        def observation(stored: Any) -> Observation:
            values = _stored(stored, shown)
            _check_choices(values, shown)
            mask = spaces.flat_mask(values[spaces.MASK]) if has_mask else None
            return Observation(seen.features(values, np), mask)

        return _Layout(spec or made, observation, ())
    made = spec or _guessed(file, names, name, limit)

    def plain(stored: Any) -> Observation:
        values = np.asarray(stored)
        values = values[:, None] if values.ndim == 1 else values
        return Observation(values.astype(made.observation_dtype or "float32"))

    return _Layout(made, plain, ())


def _ours(spec: EnvSpec) -> Any:
    """Reads back what `writers.write_minari` wrote."""

    def observation(stored: Any) -> Observation:
        if not spec.named_parts and not spec.has_mask:
            return Observation(np.asarray(stored))
        features = {name: stored[name][()] for name, _, _ in spec.parts}
        mask = stored[writers.MASK][()].astype(bool) if spec.has_mask else None
        return Observation(features if spec.named_parts else features["observation"], mask)

    return observation


def _task(metadata: Mapping[str, Any], path: pathlib.Path) -> tuple[str, int | None]:
    """Name and time limit of the environment, if it is known."""
    try:
        env = json.loads(metadata["env_spec"])
        return str(env["id"]), env.get("max_episode_steps")
    except (KeyError, ValueError, TypeError):
        return str(metadata.get("dataset_id", path.stem)), None


def _guessed(file: Any, names: list[str], name: str, limit: int | None) -> EnvSpec:
    """A spec from arrays alone: whole numbers are choices, reals a box as wide as the data."""
    whole = [file[name] for name in names if _is_plain(file[name])]
    if not whole:
        raise ValueError(
            f"{file.filename} has no episode whose observations and actions are arrays, and no "
            "metadata that tells their spaces."
        )
    actions = [each["actions"][()] for each in whole]
    if actions[0].dtype.kind in "iub":
        if actions[0].dtype == bool or max(x.size // max(len(x), 1) for x in actions) > 1:
            raise ValueError(
                f"{file.filename} has actions of {actions[0].dtype} and shape "
                f"{actions[0].shape[1:]}, which may be choices or reals, and no metadata that "
                "tells: give a spec."
            )
        action = Discrete(1 + max(int(x.max(initial=0)) for x in actions))
    else:
        rows = np.concatenate([x.reshape(len(x), -1) for x in actions]).astype(np.float32)
        action = Box(tuple(rows.min(axis=0).tolist()), tuple(rows.max(axis=0).tolist()))
    shape = whole[0]["observations"].shape[1:] or (1,)
    return EnvSpec(name, shape, "float32", action, max_episode_steps=limit)


def _is_plain(group: Any) -> bool:
    """Whether an episode has arrays of numbers for what it saw and did."""
    if not hasattr(group, "keys"):
        return False
    parts = [group.get("observations"), group.get("actions")]
    return all(getattr(x, "ndim", 0) > 0 and x.dtype.kind in "iufb" for x in parts)


def _kept(
    path: pathlib.Path,
    file: Any,
    names: list[str],
    layout: _Layout,
    clip: bool,
    counts: collections.Counter[str],
) -> Iterator[Episode]:
    """The episodes that can be right; others are counted."""
    for name in names:
        try:
            episode = _episode(path, file[name], layout, clip, counts)
            datasets.make(layout.spec, [episode])
        except ValueError:
            counts["episodes_dropped"] += 1
        else:
            yield episode


def _episode(
    path: pathlib.Path, group: Any, layout: _Layout, clip: bool, counts: collections.Counter[str]
) -> Episode:
    where = f"{path}, {group.name.strip('/')}"
    try:
        if not hasattr(group, "keys"):
            raise KeyError("no group")
        return _read_episode(where, group, layout, clip, counts)
    except (*tables.DAMAGED, TypeError, ValueError) as error:
        if str(error).startswith(where):
            raise
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{where} is damaged, or holds something else: {told}") from None


def _read_episode(
    where: str, group: Any, layout: _Layout, clip: bool, counts: collections.Counter[str]
) -> Episode:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    kinds = [getattr(group.get(name, getclass=True), "__name__", "nothing") for name in names]
    fits = [("Dataset", "Group")] * 2 + [("Dataset",)] * 3  # parts lie in a group
    missing = [x for x, kind, known in zip(names, kinds, fits, strict=True) if kind not in known]
    missing += [f"infos/{name}" for name in layout.extras if f"infos/{name}" not in group]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}.")
    rewards = np.asarray(group["rewards"])
    if rewards.ndim != 1 or not len(rewards) or rewards.dtype.kind not in "iuf":
        told = f"{rewards.dtype} of shape {rewards.shape}"
        raise ValueError(f"{where} has rewards of {told}; one number a step would be right.")
    reward = rewards.astype(np.float64)
    ended = {name: _flags(where, name, group[name][()]) for name in names[3:]}
    for name, flags in ended.items():
        if flags.shape != reward.shape:
            raise ValueError(f"{where} has {len(flags)} {name} and {len(reward)} rewards.")
        if flags[:-1].any():
            raise ValueError(f"{where} goes on behind step {int(np.argmax(flags))}, in {name}.")
    large = ~(np.abs(reward) <= np.finfo(np.float32).max)
    if large.any():
        row = int(np.argmax(large))
        raise ValueError(f"{where} has the reward {reward[row]} in step {row}.")
    return Episode(
        layout.observation(_opened(group["observations"])),
        _action(where, group["actions"], layout.spec, clip, counts),
        reward.astype(np.float32),
        bool(ended["terminations"][-1]),  # else cut, by a limit or by whoever collected it
        {name: group["infos"][name][()] for name in layout.extras},
    )


def _flags(where: str, name: str, stored: Any) -> np.ndarray:
    flags = np.asarray(stored)
    if flags.dtype.kind not in "biuf" or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{where} has {name} that are neither true nor false.")
    return flags.astype(bool)


def _opened(stored: Any) -> Any:
    """A dataset as an array; a group as it is."""
    return stored if hasattr(stored, "keys") else stored[()]


def _action(
    where: str, stored: Any, spec: EnvSpec, clip: bool, counts: collections.Counter[str]
) -> np.ndarray:
    if hasattr(stored, "keys"):
        raise ValueError(f"{where} has actions of several parts, which no agent here takes.")
    action = stored[()]
    if not isinstance(spec.action, Box):
        if action.dtype.kind not in "iu":
            raise ValueError(f"{where} has actions of {action.dtype}, which are no choices.")
        one = isinstance(spec.action, Discrete) and action.ndim == 2 and action.shape[1] == 1
        return action[:, 0] if one else action
    action = action.reshape(len(action), -1).astype(np.float32)
    low, high = (np.array(x, np.float32)[None] for x in (spec.action.low, spec.action.high))
    if not clip or action.shape[1] != low.shape[1]:
        return action
    counts["actions_clipped"] += int(((action < low) | (action > high)).any(axis=1).sum())
    return np.clip(action, low, high)


def _stored(stored: Any, space: gym.Space) -> Any:
    """What lies in the file as a batch of the space's elements."""
    if isinstance(space, gym.Dict):
        return {name: _stored(_opened(stored[name]), part) for name, part in space.items()}
    if isinstance(space, gym.Tuple):
        parts = enumerate(space.spaces)
        return tuple(_stored(_opened(stored[f"_index_{i}"]), part) for i, part in parts)
    values = np.asarray(stored)
    if isinstance(space, gym.Box) and space.dtype == np.uint8 and values.shape[1:] != space.shape:
        from PIL import Image  # Minari keeps frames as JPEG

        values = np.stack([np.array(Image.open(io.BytesIO(bytes(frame)))) for frame in values])
    return values


def _check_choices(values: Any, space: gym.Space) -> None:
    """Raises ValueError for an observed choice that its space does not have."""
    match space:
        case gym.Dict():
            for name, part in space.items():
                _check_choices(values[name], part)
        case gym.Tuple():
            for value, part in zip(values, space.spaces, strict=True):
                _check_choices(value, part)
        case gym.Discrete() | gym.MultiDiscrete() | gym.MultiBinary():
            low = getattr(space, "start", 0)
            count = {gym.Discrete: "n", gym.MultiDiscrete: "nvec"}.get(type(space))
            high = low + (getattr(space, count) if count else 2)
            rows = np.reshape(values, (len(values), -1))
            low, high = (np.reshape(np.asarray(x), (1, -1)) for x in (low, high))
            bad = ((rows < low) | (rows >= high)).any(axis=1)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(f"the observation {row} is {rows[row].tolist()}, not of {space}.")


def _space(told: Mapping[str, Any]) -> gym.Space:
    """A space from the JSON that Minari writes of it."""
    match told["type"]:
        case "Box":
            dtype = np.dtype(told["dtype"])
            low, high = (np.array(told[name], dtype) for name in ("low", "high"))
            return gym.Box(low, high, tuple(told["shape"]), dtype.type)
        case "Discrete":
            return gym.Discrete(told["n"], start=told["start"])
        case "MultiDiscrete":
            return gym.MultiDiscrete(np.array(told["nvec"]), start=np.array(told["start"]))
        case "MultiBinary":
            return gym.MultiBinary(told["n"])
        case "Dict":
            return gym.Dict({name: _space(part) for name, part in told["subspaces"].items()})
        case "Tuple":
            return gym.Tuple([_space(part) for part in told["subspaces"]])
    raise ValueError(f"the space {told['type']} is not supported")
