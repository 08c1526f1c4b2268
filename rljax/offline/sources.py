"""Where datasets come from: `open(path)` tells the format by name and content.

folder with data/main_data.hdf5     Minari's
folder with item_context.csv        a campaign of the Open Bandit Dataset
.parquet                            an event log (`rljax.offline.schema`)
.jsonl .json .ndjson .dsjson        JSON lines: an event log, one of ReAgent, or Vowpal Wabbit's
                                    decision log (dsjson); also with .gz, .bz2 or .xz behind
.npz .hdf5 .h5                      flat arrays as D4RL's, or rollouts; HDF5 may be Minari's
"""

import json
import logging
import os
import pathlib

from rljax.offline import (
    d4rl_arrays,
    dsjson,
    event_log,
    minari_source,
    open_bandit,
    reagent,
    tables,
)
from rljax.offline.dataset import Dataset
from rljax.offline.schema import Columns, Reading, Rules
from rljax.types import EnvSpec

_COMPRESSED = (".gz", ".bz2", ".xz")
_BANDITS = ("open_bandit", "dsjson")
_JSON = (".jsonl", ".json", ".ndjson", ".dsjson")
_KNOWN = (
    "a folder of Minari's (data/main_data.hdf5) or of Open Bandit (item_context.csv), .parquet, "
    ".jsonl, .json, .dsjson, .npz, .hdf5 and .h5"
)
_COLUMNS, _RULES = Columns(), Rules()


def open(
    path: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    columns: Columns | None = None,
    rules: Rules | None = None,
    *,
    time_limit: int | None = None,
    clip_actions: bool = False,
    like: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The dataset at a path; what was dropped or given up is logged as a warning.

    Args:
        path: a file or a folder, as above.
        spec: of what acted; by default what the data tell. Bandits' logs have their own.
        columns: an event log's own names.
        rules: how rows become episodes, and what happens to those that cannot be right.
        time_limit: steps after which the task stops an episode, for flat arrays and ReAgent's logs.
        clip_actions: puts actions into the bounds of the spec's box; arrays and Minari's only.
        like: a bandit's log of the same kind, whose features this one is read with.

    Raises:
        ImportError: a package that the format needs is not installed.
        ValueError: the format is unknown, or what `read` of its module raises.
    """
    reading = read(
        path, spec, columns, rules, time_limit=time_limit, clip_actions=clip_actions, like=like
    )
    told = {name: count for name, count in reading.counts.items() if name != "rows"}
    if told:
        counts = ", ".join(f"{name} {count:,}" for name, count in told.items())
        logging.warning("%s, not read as it is: %s", path, counts)
    return reading.dataset


def read(
    path: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    columns: Columns | None = None,
    rules: Rules | None = None,
    *,
    time_limit: int | None = None,
    clip_actions: bool = False,
    like: str | os.PathLike[str] | None = None,
) -> Reading:
    """As `open`, with the counts of what did not come into the dataset."""
    path = pathlib.Path(path)
    kind = _kind(path, columns)
    _check_options(path, kind, spec, time_limit, clip_actions)
    if like is not None and (kind not in _BANDITS or _kind(pathlib.Path(like), None) != kind):
        raise ValueError(f"{path} and {like} are not two bandits' logs of one kind.")
    chosen = _RULES if rules is None else rules
    match kind:
        case "minari":
            on_fault = chosen.on_fault
            return minari_source.read(path, spec, on_fault, clip_actions=clip_actions)
        case "open_bandit":
            words = None if like is None else open_bandit.vocabulary(like)
            return open_bandit.read(path, chosen, words)
        case "parquet":
            return event_log.read_parquet(path, columns or _COLUMNS, chosen, spec)
        case "arrays":
            return d4rl_arrays.read(
                path, spec, chosen, time_limit=time_limit, clip_actions=clip_actions
            )
        case "dsjson":
            return dsjson.read(path, chosen, None if like is None else dsjson.features(like))
        case "reagent":
            return reagent.read(path, rules or reagent.RULES, spec, time_limit)
    return event_log.read_jsonl(path, columns or _COLUMNS, chosen, spec)


def is_bandit(path: str | os.PathLike[str]) -> bool:
    """Whether it is a log of Open Bandit or Vowpal Wabbit, which tells its own spec.

    Raises ValueError where the format is unknown.
    """
    return _kind(pathlib.Path(path), None) in _BANDITS


def _kind(path: pathlib.Path, columns: Columns | None) -> str:
    if not path.exists():
        raise ValueError(f"There is no dataset at {path}; known formats: {_KNOWN}.")
    if path.is_dir():
        if minari_source.data_file(path).exists():
            return "minari"
        if (path / open_bandit.ITEMS).exists():
            return "open_bandit"
        raise ValueError(f"The folder {path} is of no known format; known are {_KNOWN}.")
    name = path.name
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = pathlib.PurePath(name).suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".npz":
        return "arrays"
    if suffix in (".hdf5", ".h5"):
        return "minari" if _has_episodes(path) else "arrays"
    if suffix in _JSON:
        return "log" if columns is not None else _kind_of_json(path)
    raise ValueError(f"{path} is of no known format; known are {_KNOWN}.")


def _has_episodes(path: pathlib.Path) -> bool:
    try:
        with tables.optional("h5py").File(path, "r") as file:
            return "episode_0" in file
    except OSError:
        return False  # the reader of arrays says what is wrong


def _kind_of_json(path: pathlib.Path) -> str:
    """By the keys of the first object."""
    first = next((line for _, line in tables.lines(path) if line.strip()), "")
    try:
        keys = set(json.loads(first))
    except (ValueError, TypeError):
        return "log"  # whose reader says what is wrong
    if keys & {dsjson.MARK, "_outcomes", "_labelIndex"}:
        return "dsjson"
    return "reagent" if reagent.MARKS <= keys else "log"


def _check_options(
    path: pathlib.Path, kind: str, spec: EnvSpec | None, time_limit: int | None, clip_actions: bool
) -> None:
    """Nothing that is asked for is silently ignored."""
    if spec is not None and kind in _BANDITS:
        raise ValueError(f"{path} is a bandit's log, which has no environment: give no spec.")
    if time_limit is not None and kind not in ("arrays", "reagent"):
        raise ValueError(f"time_limit is for flat arrays and ReAgent's logs, not for {path}.")
    if time_limit is not None and time_limit < 1:
        raise ValueError(f"time_limit must be positive, not {time_limit}.")
    if clip_actions and kind not in ("arrays", "minari"):
        raise ValueError(f"clip_actions is for flat arrays and Minari's folders, not for {path}.")
