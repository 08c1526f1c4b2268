"""Where datasets come from: `open(path)` tells the format by name and content.

folder with data/main_data.hdf5     Minari's
folder with item_context.csv        a campaign of the Open Bandit Dataset
folder with rows.json               `launch.convert`'s: rows stay on disk
.parquet                            an event log (`rljax.offline.schema`)
.jsonl .json .ndjson .dsjson        JSON lines: an event log, one of ReAgent, or Vowpal Wabbit's
                                    decision log (dsjson); also with .gz, .bz2 or .xz behind
.npz .hdf5 .h5                      flat arrays as D4RL's, or rollouts; HDF5 may be Minari's
.yaml .yml                          names one of these, and how it is read (`schema.Description`)
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping

from rljax import config as configs
from rljax.offline import (
    d4rl_arrays,
    dsjson,
    event_log,
    mapped,
    minari_source,
    open_bandit,
    reagent,
    schema,
    tables,
)
from rljax.offline.dataset import Dataset
from rljax.offline.mapped import covers
from rljax.offline.schema import Columns, Reading, Rules
from rljax.replay import memory
from rljax.types import EnvSpec

_YAML = (".yaml", ".yml")
_COMPRESSED = (".gz", ".bz2", ".xz")
_BANDITS = ("open_bandit", "dsjson")
_JSON = (".jsonl", ".json", ".ndjson", ".dsjson")
_KNOWN = (
    "a folder of Minari's (data/main_data.hdf5), of Open Bandit (item_context.csv) or of "
    "launch.convert (rows.json), .parquet, .jsonl, .json, .dsjson, .npz, .hdf5 and .h5; and .yaml, "
    "which says how one of them is read"
)
_LINES_LOOKED_AT = 100  # for one that tells the format
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
    _tell(path, reading.counts)
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
    if path.suffix in _YAML:
        if (columns, rules, time_limit, clip_actions) != (None, None, None, False):
            raise ValueError(f"{path} says how its dataset is read: say nothing beside it.")
        told = _described(path)
        return read(
            told.path,
            spec,
            told.columns,
            told.rules,
            time_limit=told.time_limit,
            clip_actions=told.clip_actions,
            like=like,
        )
    kind = _kind(path, columns)
    _check_options(path, kind, spec, time_limit, clip_actions)
    _check_schema(path, kind, columns, rules)
    if like is not None:
        like = pathlib.Path(like)
        if kind not in _BANDITS or _kind(like, None) != kind:
            raise ValueError(f"{path} and {like} are not two bandits' logs of one kind.")
        told = _described(like) if like.suffix in _YAML else schema.Description(str(like))
        like, like_rules = told.path, told.rules or _RULES
    chosen = _RULES if rules is None else rules
    if kind != "mapped":
        _check_memory(path)
    match kind:
        case "mapped":
            made = mapped.read(path)
            return Reading(made if spec is None else _as(spec, made), {}, {})
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
            return dsjson.read(
                path,
                chosen,
                None if like is None else dsjson.features(like, on_fault=like_rules.on_fault),
            )
        case "reagent":
            return reagent.read(path, chosen, spec, time_limit)
    return event_log.read_jsonl(path, columns or _COLUMNS, chosen, spec)


def parts(
    path: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    like: str | os.PathLike[str] | None = None,
) -> Iterator[Dataset]:
    """The dataset at a path: of Minari's layout in parts that fit into memory, else as one.

    Raises ValueError as `open` does; of `spec` and `like` a bandit's log takes the latter.
    """
    path = pathlib.Path(path)
    kind = _kind(path, None)
    if kind != "minari":
        bandit = kind in _BANDITS
        yield open(path, None if bandit else spec, like=like if bandit else None)
        return
    told = _described(path) if path.suffix in _YAML else schema.Description(str(path))
    _check_schema(path, kind, told.columns, told.rules)
    on_fault = (told.rules or _RULES).on_fault
    clip = told.clip_actions
    _tell(path, (yield from minari_source.parts(told.path, spec, on_fault, clip_actions=clip)))


def is_bandit(path: str | os.PathLike[str]) -> bool:
    """Whether it is a log of Open Bandit or Vowpal Wabbit, which tells its own spec.

    Raises ValueError where the format is unknown.
    """
    return _kind(pathlib.Path(path), None) in _BANDITS


def feature_hash(path: str | os.PathLike[str]) -> str | None:
    """A hash of what the features of a bandit's log mean; None where the rows themselves hold them.

    Those of Open Bandit and Vowpal Wabbit are numbered by the values that are in a log, so rows of
    two logs can be compared where the hashes are equal. Raises ValueError as `open` does.
    """
    path = pathlib.Path(path)
    told = _described(path) if path.suffix in _YAML else schema.Description(str(path))
    match _kind(path, None):
        case "mapped":
            return mapped.feature_hash(told.path)
        case "open_bandit":
            words: object = open_bandit.vocabulary(told.path)
        case "dsjson":
            words = dsjson.features(told.path, on_fault=(told.rules or _RULES).on_fault)
        case _:
            return None
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _tell(path: str | os.PathLike[str], counts: Mapping[str, int]) -> None:
    """Logs what did not come into the dataset, if anything."""
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "rows")
    if told:
        logging.warning("%s, not read as it is: %s", path, told)


def _described(path: pathlib.Path) -> schema.Description:
    """What a YAML file says, with the path as it is from here."""
    told = schema.load(path)
    if pathlib.PurePath(told.path).suffix in _YAML:
        raise ValueError(f"{path} must name data, and {told.path} is another description.")
    return dataclasses.replace(told, path=str(path.parent / told.path))


def _kind(path: pathlib.Path, columns: Columns | None) -> str:
    if not path.exists():
        raise ValueError(f"There is no dataset at {path}; known formats: {_KNOWN}.")
    if path.suffix in _YAML:
        told = _described(path)
        return _kind(pathlib.Path(told.path), told.columns)
    if path.is_dir():
        if (path / mapped.FILE).exists():
            return "mapped"
        if minari_source.data_file(path).exists():
            return "minari"
        if (path / open_bandit.ITEMS).exists():
            return "open_bandit"
        if minari_source.data_file(path).with_name("metadata.json").exists():
            raise ValueError(
                f"{path} is Minari's, but has no {minari_source.FILE}: of Minari's formats only "
                'hdf5 is read, which it writes with data_format="hdf5".'
            )
        raise ValueError(f"The folder {path} is of no known format; known are {_KNOWN}.")
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = pathlib.PurePath(name).suffix
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
    except tables.DAMAGED:
        return False  # the reader of arrays says what is wrong


def _kind_of_json(path: pathlib.Path) -> str:
    """By the keys of the first object; lines above it may be damaged."""
    keys: set[str] = set()
    for _, line in itertools.islice(tables.lines(path), _LINES_LOOKED_AT):
        try:
            keys = set(json.loads(line))
            break
        except (ValueError, TypeError, RecursionError):
            continue  # if faults are refused, its reader says what is wrong
    if keys & {dsjson.MARK, "_outcomes", "_labelIndex"}:
        return "dsjson"
    return "reagent" if reagent.MARKS <= keys else "log"


def _as(spec: EnvSpec, made: Dataset) -> Dataset:
    """The same rows as those of `spec`, whose name and time limit may be others."""
    if (spec.parts, spec.has_mask) != (made.spec.parts, made.spec.has_mask) or not covers(
        spec.action, made.spec.action
    ):
        differences = configs.diff(*map(configs.to_json, (made.spec, spec)))
        raise ValueError(
            f"{made.source} is of something else than {spec.name}: {'; '.join(differences)}."
        )
    return dataclasses.replace(made, spec=spec)


def _check_memory(path: pathlib.Path) -> None:
    """Before a file is read that would fill all memory: its bytes, which may be packed tighter."""
    files = [path] if path.is_file() else list(path.rglob("*.hdf5"))
    size, free = sum(file.stat().st_size for file in files), memory.of_host()
    if free is not None and size > free:
        raise ValueError(
            f"{path} has {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free: "
            f"`python -m launch.convert --dataset={path} --out=FOLDER` makes of it what is read "
            "from disk; of Minari's layout whole, of other formats in files that fit."
        )


def _check_schema(
    path: pathlib.Path, kind: str, columns: Columns | None, rules: Rules | None
) -> None:
    """Likewise for names of columns and rules."""
    if columns is not None and kind not in ("parquet", "log"):
        raise ValueError(f"names of columns are for event logs, not for {path}.")
    others = rules is not None and dataclasses.replace(rules, on_fault=_RULES.on_fault) != _RULES
    if (kind == "mapped" and rules not in (None, _RULES)) or (kind == "minari" and others):
        raise ValueError(
            f"{path} tells its episodes itself: rules are for logs and arrays"
            f"{', but for on_fault' if kind == 'minari' else ''}."
        )


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
