"""Event logs: what their columns hold, what a log may call them, and which rows cannot be right.

A log has one row for each decision. Beside the names below, all of which `Columns` can change:

    episode_id      whole number or text; without it the whole log is one stream of rows
    step            whole number that grows by 1 within an episode
    time            seconds, or ISO 8601 (without a zone: UTC); sessions are cut by its gaps
    state           what the policy saw: a list of numbers, an object of them, or several columns;
                    observations in named parts are columns "state/<name>"
    next_state      likewise, what the step led to; empty or null where unknown
    action          a whole number from 0, a real number, or a list of one of them
    action_mask     a list of booleans: the allowed actions; next_action_mask: those of next_state
    propensity      probability (of a box: density) that the logging policy gave to the action
    log_prob        its natural logarithm, to the last bit; goes before propensity
    reward          a number
    terminated      the task ended the episode here; truncated: something else did, as a time limit
    done            the episode ended here; by the task unless `truncated` is true, too
    final           the row only holds an episode's final observation, and mask: no decision
    policy_version  who decided; counted, no more
    schema_version  1

State, action and reward must be there. No text, boolean or null is ever taken for a number.
"""

import collections
import dataclasses
import enum
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rljax import config as configs
from rljax.offline.dataset import Dataset

VERSION = 1  # of this schema


@dataclasses.dataclass(frozen=True)
class Columns:
    """A log's own names for our columns; None says that there is none, whatever the log holds.

    A column with the name that it has here may be absent; one that was given a name may not.
    """

    episode_id: str | None = "episode_id"
    step: str | None = "step"
    time: str | None = "time"
    state: str | tuple[str, ...] = "state"  # one vector, or the columns that make it up
    next_state: str | None = "next_state"
    action: str = "action"
    action_mask: str | None = "action_mask"
    next_action_mask: str | None = "next_action_mask"
    propensity: str | None = "propensity"
    log_prob: str | None = "log_prob"
    reward: str = "reward"
    done: str | None = "done"
    terminated: str | None = "terminated"
    truncated: str | None = "truncated"
    final: str | None = "final"
    policy_version: str | None = "policy_version"
    schema_version: str | None = "schema_version"
    extras: tuple[str, ...] = ()  # more columns of numbers, kept beside the steps

    def __post_init__(self):
        if not self.state:
            raise ValueError("state names no column: it must be one of vectors, or several")


class OnFault(enum.Enum):
    """What happens to rows that cannot be right."""

    REFUSE = "refuse"  # the first one is a ValueError
    DROP = "drop"  # their episodes are left out, and counted


class Unfinished(enum.Enum):
    """What an episode is that stops without a flag, a final observation or a next one."""

    REFUSE = "refuse"  # a fault
    TRUNCATED = "truncated"  # it went on after the log's end, or its session's
    TERMINATED = "terminated"  # the task ended there


@dataclasses.dataclass(frozen=True)
class Rules:
    """How rows become episodes."""

    on_fault: OnFault = OnFault.REFUSE
    # By id and step (or time); else rows of one id must come in order. None: ReAgent's are sorted.
    sort: bool | None = None
    session_gap: float | None = None  # seconds: a longer pause within one id starts an episode
    unfinished: Unfinished = Unfinished.REFUSE

    def __post_init__(self):
        gap = self.session_gap
        if gap is not None and not 0 < gap < math.inf:
            raise ValueError(f"session_gap is {gap}: it must be a positive number of seconds")


@dataclasses.dataclass(frozen=True)
class Description:
    """A dataset and how it is read, as a YAML file beside it may say; `sources.read` has the rest.

    path: clicks.jsonl
    columns: {state: [age, income], reward: clicked}
    rules: {session_gap: 1800, unfinished: truncated}
    """

    path: str  # from the folder of the YAML file
    columns: Columns | None = None
    rules: Rules | None = None
    time_limit: int | None = None
    clip_actions: bool = False


class Found(NamedTuple):
    """Rows that cannot be right; the arguments of `Faults.find`."""

    kind: str
    bad: np.ndarray  # bool [N]
    say: Callable[[int], str]


class Table(NamedTuple):
    """The columns of a file."""

    file: str
    columns: dict[str, Any]  # arrays `[N]` or `[N, ...]`, or lists of N cells, None where absent
    numbers: np.ndarray  # int64 [N]: 1-based lines or rows of the file
    unit: str = "line"  # what `numbers` counts
    found: tuple["Found", ...] = ()  # what the file's reader saw already
    unread: tuple[int, ...] = ()  # rows above which the file has a line that cannot be read


class Reading(NamedTuple):
    """A dataset, and what did not come into it."""

    dataset: Dataset
    counts: dict[str, int]  # rows, faults by their kind, and what was dropped, where not 0
    policies: dict[str, int]  # steps by policy_version; empty where the log has none


class Faults:
    """Rows of one file that cannot be right: refused at once, or collected to be dropped."""

    def __init__(self, file: str, numbers: np.ndarray, unit: str, on_fault: OnFault):
        self.file, self._numbers, self._unit = file, numbers, unit
        self._refuses = on_fault is OnFault.REFUSE
        self.spoiled = np.zeros(len(numbers), bool)  # rows whose episode is dropped
        self.alone = np.zeros(len(numbers), bool)  # rows dropped for themselves
        self.counts: collections.Counter[str] = collections.Counter()

    def find(
        self, kind: str, bad: np.ndarray, say: Callable[[int], str], *, alone: bool = False
    ) -> None:
        """Marks the rows where `bad`, bool `[N]`, is True.

        A row taken out of the middle of an episode would join steps that never followed each
        other: so the whole episode goes, unless the row is `alone` in it, or belongs to none.

        Args:
            kind: what they are counted as.
            bad: the rows.
            say: what is wrong with a row, and what would be right; the end of a sentence.
            alone: the row alone is dropped.

        Raises:
            ValueError: faults are refused, and a row is bad.
        """
        if not bad.any():
            return
        if self._refuses:
            row = int(np.argmax(bad))
            raise ValueError(f"{self.file}, {self._unit} {self._numbers[row]}: {say(row)}")
        self.counts[f"fault/{kind}"] += int(bad.sum())
        (self.alone if alone else self.spoiled)[bad] = True


def load(path: str | os.PathLike[str]) -> Description:
    """What a YAML file says of a dataset. Raises ValueError, which names file and field."""
    import yaml  # what ml_collections needs anyway

    path = pathlib.Path(path)
    try:
        told = yaml.load(path.read_text(), _unique(yaml))
        if not isinstance(told, dict):
            raise ValueError("it must hold fields, the first of them 'path: FILE'")
        return configs.from_json(Description, told)
    except (OSError, ValueError, yaml.YAMLError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} does not describe a dataset: {words}.") from None


def _unique(yaml: Any) -> Any:
    """YAML's safe loader, for which a name that is there twice is an error: its last one won."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"it has {name!r} twice")
            return super().construct_mapping(node, deep)

    return Loader


def column(table: Table, columns: Columns, field: str, *, required: bool = False) -> Any:
    """The cells that a log has for one field of `Columns`, or None.

    Raises ValueError if the column is absent though it is required or was given a name.
    """
    name = getattr(columns, field)
    if name is None or name in table.columns:
        return None if name is None else table.columns[name]
    if required or name != getattr(_DEFAULTS, field):
        raise _missing(table, name, field)
    return None


def require(table: Table, name: str, field: str) -> Any:
    """The cells of a column. Raises ValueError if it is absent."""
    if name not in table.columns:
        raise _missing(table, name, field)
    return table.columns[name]


def _missing(table: Table, name: str, field: str) -> ValueError:
    known = ", ".join(map(str, table.columns)) or "none"
    return ValueError(
        f"{table.file} has no column {name!r} for {field}; its columns are {known}: name the right "
        f"one by Columns({field}=...), or in a YAML file beside it by columns: {{{field}: ...}}."
    )


_DEFAULTS = Columns()
