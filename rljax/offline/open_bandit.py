"""Open Bandit Dataset: which item a shop showed in which of three places, and the clicks.

Saito et al. 2021, arXiv:2008.07146. A folder holds one campaign's log, such as men.csv(.gz), and
item_context.csv. Every row is an episode of one step:

    observation      place (one-hot, 3), user features (one-hot of a vocabulary), and the affinity
                     of the user to each item
    action           the item
    reward           1 for a click
    log_prob         ln of the logging policy's probability of the item in this place
    position         the place, 0 to 2; beside log_prob in the dataset's extras
"""

import csv
import os
import pathlib
from typing import Any

import numpy as np

from rljax.offline import event_log, tables
from rljax.offline.schema import Columns, Found, Reading, Rules, Table
from rljax.types import Discrete, EnvSpec

Vocabulary = dict[str, tuple[str, ...]]  # user feature -> its values

ITEMS = "item_context.csv"
_ROW = ""  # the name of the column that numbers the rows
_PLACES = 3
_USER, _AFFINITY = "user_feature_", "user-item_affinity_"
_RULES = Rules()
_COLUMNS = Columns(
    episode_id=None,
    step=None,
    time=None,
    action="item_id",
    reward="click",
    propensity="propensity_score",
    extras=("position",),
)


def read(
    folder: str | os.PathLike[str],
    rules: Rules = _RULES,
    vocabulary: Vocabulary | None = None,
) -> Reading:
    """The log of one campaign.

    Args:
        folder: with the two files.
        rules: what happens to rows that cannot be right.
        vocabulary: of the user features; by default that of this log. Two logs that are compared
            need one: `vocabulary(folder, other_folder)`.

    Raises:
        ValueError: files or columns are absent, or a row cannot be right.
    """
    path = log_file(folder)
    items = len(item_features(folder))
    table = _csv(path)
    if vocabulary is None:
        vocabulary = _vocabulary([table])
    count = len(table.numbers)
    places = _numbers(table, "position")
    known = np.isin(places, np.arange(1, _PLACES + 1))
    found = [
        *table.found,
        Found(
            "position",
            ~known,
            lambda row: f"position is {table.columns['position'][row]!r}, not one of 1, 2 and 3.",
        ),
        tables.repeated("the row number", table.columns.get(_ROW, [None] * count)),
    ]
    seen = [places[:, None] == np.arange(1, _PLACES + 1)[None]]
    for name, values in vocabulary.items():
        if name not in table.columns:
            raise ValueError(f"{path} has no column {name!r}, which the vocabulary has.")
        number = {value: i for i, value in enumerate(values)}
        codes = np.array([number.get(value, -1) for value in table.columns[name]])
        seen.append(codes[:, None] == np.arange(len(values))[None])
        found.append(Found("user feature", codes < 0, _unknown(name, table.columns[name])))
    affinities = [name for name in table.columns if name.startswith(_AFFINITY)]
    if len(affinities) != items:
        raise ValueError(
            f"{path} has {len(affinities)} affinities for the {items} items there are."
        )
    seen += [_numbers(table, name)[:, None] for name in affinities]
    state = np.concatenate([x.astype(np.float64) for x in seen], axis=1).reshape(count, -1)
    names = ("item_id", "click", "propensity_score")
    columns = {name: _numbers(table, name) for name in names}
    found.append(
        Found(
            "click",
            ~np.isin(columns["click"], (0, 1)),
            lambda row: f"click is {table.columns['click'][row]!r}, neither 0 nor 1.",
        )
    )
    columns |= {"state": state, "position": np.where(known, places - 1, 0)}
    name = f"open_bandit_{path.name.partition('.')[0]}"
    spec = EnvSpec(name, state.shape[1:], "float32", Discrete(items))
    made = Table(table.file, columns, table.numbers, "line", tuple(found))
    return event_log.from_table(made, _COLUMNS, rules, spec)


def item_features(folder: str | os.PathLike[str]) -> np.ndarray:
    """What item_context.csv says of the items, float32 `[items, F]`: numbers, one-hot of the rest.

    Raises ValueError if it is absent, or the items are not numbered from 0.
    """
    path = pathlib.Path(folder) / ITEMS
    table = _csv(path)
    ids = _numbers(table, "item_id")
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise ValueError(f"{path}: its item_id must be the numbers from 0, each once.")
    features = []
    for name in (name for name in table.columns if name.startswith("item_feature_")):
        numbers = _numbers(table, name)
        if np.isfinite(numbers).all():
            features.append(numbers[:, None])
        else:
            values = np.array(table.columns[name])
            features.append(values[:, None] == np.unique(values)[None])
    joined = np.concatenate([x.astype(np.float32) for x in features], axis=1)
    return joined[np.argsort(ids)]


def vocabulary(*folders: str | os.PathLike[str]) -> Vocabulary:
    """The values that user features have in any of the logs, in order."""
    return _vocabulary([_csv(log_file(folder)) for folder in folders])


def log_file(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The log beside item_context.csv. Raises ValueError unless there is just one."""
    folder = pathlib.Path(folder)
    logs = [*folder.glob("*.csv"), *folder.glob("*.csv.gz")]
    logs = [path for path in logs if path.name != ITEMS]
    if len(logs) != 1:
        raise ValueError(
            f"{folder} must hold one log of a campaign beside {ITEMS}, such as men.csv; it holds "
            f"{len(logs)}."
        )
    return logs[0]


def _vocabulary(logs: list[Table]) -> Vocabulary:
    names = [name for name in logs[0].columns if name.startswith(_USER)]
    whole = [~log.found[0].bad for log in logs]  # a row cut short adds no value
    return {
        name: tuple(
            sorted(
                {
                    x
                    for log, fits in zip(logs, whole, strict=True)
                    for x, fit in zip(log.columns[name], fits, strict=True)
                    if fit
                }
            )
        )
        for name in names
    }


def _unknown(name: str, values: list[str]) -> Any:
    return lambda row: (
        f"{name} is {values[row]!r}, which the log that was learned from does not have: rules "
        "{on_fault: drop}, in a YAML file beside the data, leave such rows out."
    )


def _csv(path: pathlib.Path) -> Table:
    """A CSV file's columns as text; rows that are too short or too long are faults."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    read = [(number, _row(line)) for number, line in tables.lines(path) if line.strip()]
    if len(read) < 2:
        raise ValueError(f"{path} has no row below its header.")
    header, rows = read[0][1], [row for _, row in read[1:]]
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path} has two columns {name!r}.")
    bad = np.array([len(row) != len(header) for row in rows], bool)
    found = Found(
        "length",
        bad,
        lambda row: (
            f"it has {len(rows[row])} cells, and the header {len(header)}: perhaps the file "
            "is cut short."
        ),
    )
    padded = [row if len(row) == len(header) else [""] * len(header) for row in rows]
    columns = dict(zip(header, map(list, zip(*padded, strict=True)), strict=True))
    return Table(str(path), columns, np.array([n for n, _ in read[1:]]), "line", (found,))


def _row(line: str) -> list[str]:
    """One line's cells: a quote that is not closed takes no other lines with it."""
    try:
        return next(csv.reader([line.removeprefix("\ufeff")]))
    except csv.Error:
        return []


def _numbers(table: Table, name: str) -> np.ndarray:
    """Text as float64 `[N]`, NaN where it is no number, for readers to find."""
    if name not in table.columns:
        raise ValueError(f"{table.file} has no column {name!r}: it is no log of Open Bandit.")

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return float("nan")

    return np.array([number(text) for text in table.columns[name]], np.float64)
