"""Event logs to datasets: JSON lines and Parquet, one row a decision (see `rljax.offline.schema`).

Cells are parsed and checked here; `rljax.offline.sessions` puts rows in order, cuts them into
episodes, and joins these. What an episode's last step led to is told by a `final` row, or by
`next_state`. Where neither is there, a terminated episode repeats its last state, and a truncated
one gives up its last step, whose state becomes the final observation.
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rljax.offline import cells, sessions, tables
from rljax.offline.dataset import LOG_PROB_ABOVE
from rljax.offline.schema import VERSION, Columns, Faults, Reading, Rules, Table, column, require
from rljax.types import ActionSpec, Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part

MOST_CHOICES = 2**20  # a larger number is no choice but an id, which no network could rank
_COLUMNS, _RULES = Columns(), Rules()


def read_jsonl(
    path: str | os.PathLike[str],
    columns: Columns = _COLUMNS,
    rules: Rules = _RULES,
    spec: EnvSpec | None = None,
) -> Reading:
    """A log of JSON lines; .gz, .bz2 and .xz are unpacked. Raises what `from_table` raises.

    Of a file that was cut short, the last line is no JSON object: a fault like others.
    """
    found, counts, unread = tables.objects(path, rules.on_fault)
    table = tables.of_objects(str(path), found, unread)
    return from_table(table, columns, rules, spec, counts)


def read_parquet(
    path: str | os.PathLike[str],
    columns: Columns = _COLUMNS,
    rules: Rules = _RULES,
    spec: EnvSpec | None = None,
) -> Reading:
    """A Parquet log; ours know their spec. Raises what `from_table` raises, and ImportError.

    Of a file that was cut short nothing can be read: always a ValueError.
    """
    table, metadata = tables.parquet(path)
    if spec is None and tables.SPEC_KEY in metadata:
        spec = tables.spec_from_json(str(path), metadata[tables.SPEC_KEY])
    if not columns.extras and tables.EXTRAS_KEY in metadata:
        extras = metadata[tables.EXTRAS_KEY].decode(errors="replace").splitlines()
        columns = dataclasses.replace(columns, extras=tuple(extras))
    return from_table(table, columns, rules, spec)


def from_table(
    table: Table,
    columns: Columns = _COLUMNS,
    rules: Rules = _RULES,
    spec: EnvSpec | None = None,
    counts: Mapping[str, int] | None = None,
) -> Reading:
    """The dataset of a table of cells.

    Args:
        table: of one row for each decision.
        columns: what the log calls them.
        rules: how rows become episodes, and what happens to those that cannot be right.
        spec: of what acted. Without it states are vectors, as long as the first; whole numbers are
            actions of as many choices as the mask has, else one more than the largest; real ones
            are a box as wide as the data.
        counts: of rows that did not even get into the table.

    Raises:
        ValueError: a column is absent; or a row cannot be right, and faults are refused; or no
            episode is left. The sentence names the file and the row.
    """
    faults = Faults(table.file, table.numbers, table.unit, rules.on_fault)
    faults.counts.update(counts or {})
    faults.counts["rows"] += len(table.numbers) + (counts or {}).get("rows_dropped", 0)
    for fault in table.found:
        faults.find(*fault)
    log, found, versions = _decisions(faults, table, columns, rules, spec)
    parts = sessions.cut(faults, log, rules)
    spec = spec or sessions.narrowed(found, log, parts)
    faults.counts["rows_dropped"] += int((faults.alone | (log.stream < 0)).sum())
    made = sessions.join(spec, log, parts, rules, faults, table.file)
    kept = {name: count for name, count in faults.counts.items() if count}
    return Reading(made, kept, _policies(versions, parts, log))


def _decisions(
    faults: Faults, table: Table, columns: Columns, rules: Rules, spec: EnvSpec | None
) -> tuple[sessions.Decisions, EnvSpec, list[Any] | None]:
    count = len(table.numbers)
    every = np.ones(count, bool)

    def flag(field: str) -> np.ndarray | None:
        found = column(table, columns, field)
        return None if found is None else cells.flags(faults, field, found, every)

    _check_version(faults, column(table, columns, "schema_version"))
    ends = {field: flag(field) for field in ("done", "terminated", "truncated", "final")}
    nowhere = np.zeros(count, bool)
    final, truncated = (nowhere if x is None else x for x in (ends["final"], ends["truncated"]))
    terminated = nowhere if ends["terminated"] is None else ends["terminated"]
    if ends["done"] is not None:
        terminated = terminated | (ends["done"] & ~truncated)
    decides = ~final
    stream, has_ids = _streams(faults, table, columns, rules)
    step = column(table, columns, "step")
    time = column(table, columns, "time")
    features, shape = _states(faults, table, columns, spec, every, following=False)
    following, knows_next = features, nowhere
    if column(table, columns, "next_state") is not None:
        following, knows_next = _following(faults, table, columns, spec, features)

    action, action_spec = _actions(faults, table, columns, spec, decides)
    mask, next_mask, knows_mask = _masks(faults, table, columns, spec, action_spec)
    if mask is not None:
        # A final observation without its mask would be bootstrapped from with another's.
        knows_next = knows_next & (knows_mask | terminated)
    if spec is None and isinstance(action_spec, Discrete) and mask is not None:
        action_spec = Discrete(mask.shape[1])
    _check_actions(faults, action, action_spec, mask, decides)
    if spec is None:
        name = pathlib.Path(table.file).name.partition(".")[0]
        spec = EnvSpec(name, shape, "float32", action_spec, has_mask=mask is not None)
    if spec.has_mask and mask is None:
        raise ValueError(
            f"{table.file} has no column {columns.action_mask!r}, and {spec.name} masks actions."
        )
    if not spec.has_mask:
        mask = next_mask = None
    reward = require(table, columns.reward, "reward")
    log = sessions.Decisions(
        stream,
        has_ids,
        any(found is not None for found in ends.values()),
        None if step is None else cells.whole(faults, "step", step, every),
        None if time is None else cells.seconds(faults, "time", time, every),
        Observation(features, mask),
        Observation(following, next_mask),
        knows_next,
        action.astype(action_spec.dtype),
        cells.numbers(faults, "reward", reward, decides | cells.are_numbers(reward)).astype("f4"),
        terminated,
        truncated,
        final,
        _extras(faults, table, columns, decides, action_spec),
        table.unread,
    )
    versions = column(table, columns, "policy_version")
    return log, spec, None if versions is None else list(versions)


def _check_version(faults: Faults, found: Any) -> None:
    if found is None:
        return
    versions = found.tolist() if isinstance(found, np.ndarray) else found
    faults.find(
        "schema version",
        np.array([type(version) is not int or version != VERSION for version in versions], bool),
        lambda row: f"schema_version is {versions[row]!r}; this reader knows {VERSION}.",
    )


def _streams(
    faults: Faults, table: Table, columns: Columns, rules: Rules
) -> tuple[np.ndarray, bool]:
    """Numbers of the ids, in the order in which their episodes shall come."""
    found = column(table, columns, "episode_id")
    if found is None:
        return np.zeros(len(table.numbers), np.int64), False
    codes, names = cells.ids(faults, "episode_id", found)
    if rules.sort:
        places = {name: place for place, name in enumerate(cells.sorted_keys(names))}
        ranks = np.array([*(places[name] for name in names), -1], np.int64)
        codes = ranks[codes]
    return codes, True


def _states(
    faults: Faults,
    table: Table,
    columns: Columns,
    spec: EnvSpec | None,
    needed: np.ndarray,
    *,
    following: bool,
) -> tuple[Any, tuple[int, ...]]:
    """Features `[N, ...]`, or a dict of them, and the shape of one observation."""
    field = "next_state" if following else "state"
    name = getattr(columns, field)
    if spec is not None and spec.named_parts:
        read = {
            part.name: _part(
                faults, part.name, require(table, f"{name}/{part.name}", field), part, needed
            )
            for part in spec.parts
        }
        return read, ()
    if isinstance(name, tuple):
        columns_of = [cells.numbers(faults, x, require(table, x, field), needed) for x in name]
        values = np.stack(columns_of, axis=1).astype(np.float32)
        if spec is not None and values.shape[1:] != spec.observation_shape:
            raise ValueError(
                f"{table.file}: {len(name)} columns of states are named, where {spec.name} shows "
                f"{spec.observation_shape}."
            )
        return values, values.shape[1:]
    found = require(table, name, field)
    if spec is not None:
        return _part(faults, field, found, spec.parts[0], needed), spec.observation_shape
    values = cells.vectors(faults, field, found, needed).astype(np.float32)
    return values, values.shape[1:]


def _part(faults: Faults, name: str, found: Any, part: Part, needed: np.ndarray) -> np.ndarray:
    values = cells.vectors(faults, name, found, needed, math.prod(part.shape))
    if part.dtype == "uint8":
        bad = ((values < 0) | (values > 255) | (values != np.floor(values))).any(axis=1)
        faults.find("pixels", bad, lambda row: f"{name} holds something that is no byte.")
        values = np.where(bad[:, None], 0, values)
    return values.astype(part.dtype).reshape(len(values), *part.shape)


def _following(
    faults: Faults, table: Table, columns: Columns, spec: EnvSpec | None, features: Any
) -> tuple[Any, np.ndarray]:
    """What steps led to, and where the log knows that."""
    if spec is not None and spec.named_parts:
        raise ValueError(f"{table.file}: next_state cannot be of named parts; use final rows.")
    if isinstance(columns.next_state, tuple):
        raise ValueError(f"{table.file}: next_state must be one column.")
    knows = cells.present(column(table, columns, "next_state"), len(table.numbers))
    values, _ = _states(faults, table, columns, spec, knows, following=True)
    fits = values.shape == features.shape
    faults.find(
        "next_state",
        knows & (not fits),
        lambda row: f"next_state has shape {values.shape[1:]}, and state {features.shape[1:]}.",
    )
    return (values, knows) if fits else (features, np.zeros_like(knows))


def _actions(
    faults: Faults, table: Table, columns: Columns, spec: EnvSpec | None, decides: np.ndarray
) -> tuple[np.ndarray, ActionSpec]:
    """Actions `[N, ...]` and their space, found in the data if there is no spec."""
    found = require(table, columns.action, "action")
    if spec is not None:
        action = spec.action
        if isinstance(action, Discrete):
            return cells.whole(faults, "action", found, decides), action
        values = cells.vectors(faults, "action", _as_lists(found), decides, action.shape[0])
        if isinstance(action, MultiDiscrete):
            bad = (values != np.floor(values)).any(axis=1)
            faults.find(
                "action", bad, lambda row: f"the action {values[row].tolist()} is not whole."
            )
        return values.astype(np.float32 if isinstance(action, Box) else np.int64), action
    listed, whole = _kinds(found, decides)
    if not listed and (whole or _are_masked(table, columns)):
        values = cells.whole(faults, "action", found, decides)
        wild = decides & (values >= MOST_CHOICES)
        faults.find("action", wild, lambda row: f"the action {values[row]} numbers no choice.")
        return values, Discrete(int(values[decides & ~faults.spoiled].max(initial=0)) + 1)
    if listed and whole:
        raise ValueError(
            f"{table.file}: its actions are lists of whole numbers, which may be choices or reals: "
            "give a spec that says which."
        )
    values = cells.vectors(faults, "action", _as_lists(found), decides).astype(np.float32)
    known = values[decides & ~faults.spoiled]
    if not known.size:
        raise ValueError(f"{table.file} has no action that could be read.")
    return values, Box(tuple(known.min(axis=0).tolist()), tuple(known.max(axis=0).tolist()))


def _are_masked(table: Table, columns: Columns) -> bool:
    """Whether there are masks, so that actions are choices, whatever type their column has."""
    found = column(table, columns, "action_mask")
    return found is not None and bool(cells.present(found, len(table.numbers)).any())


def _kinds(found: Any, decides: np.ndarray) -> tuple[bool, bool]:
    """Whether the first action is a list, and whether all numbers are whole by type."""
    if isinstance(found, np.ndarray):
        return found.ndim == 2, found.dtype.kind in "iu"
    chosen = [cell for cell, due in zip(found, decides, strict=True) if due]
    listed = bool(chosen) and cells.len_of(chosen[0]) > 0
    items = [x for cell in chosen for x in _items(cell)]
    return listed, not any(isinstance(x, float) and math.isfinite(x) for x in items)


def _items(cell: Any) -> Iterable[Any]:
    if isinstance(cell, dict):
        return cell.values()
    return cell if isinstance(cell, list) else [cell]


def _as_lists(found: Any) -> Any:
    """Lone numbers as vectors of one."""
    if isinstance(found, np.ndarray):
        return found[:, None] if found.ndim == 1 else found
    return [[cell] if type(cell) in (int, float) else cell for cell in found]


def _masks(
    faults: Faults, table: Table, columns: Columns, spec: EnvSpec | None, action: ActionSpec
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Masks `[N, A]`, those of next states, and where the latter are known."""
    found = column(table, columns, "action_mask")
    count = len(table.numbers)
    knows = np.zeros(count, bool)
    if found is None or isinstance(action, Box):
        if spec is None and found is not None and _are_masked(table, columns):
            raise ValueError(
                f"{table.file} has {columns.action_mask!r}, and actions that are lists of reals: "
                "masks are of choices."
            )
        return None, None, knows
    width = action.mask_shape[0] if spec is not None else None
    mask = cells.masks(faults, "action_mask", found, np.ones(count, bool), width)
    following = column(table, columns, "next_action_mask")
    if following is None:
        return mask, mask, knows
    knows = cells.present(following, count)
    led_to = cells.masks(faults, "next_action_mask", following, knows, mask.shape[1])
    return mask, np.where(knows[:, None], led_to, mask), knows


def _check_actions(
    faults: Faults,
    action: np.ndarray,
    spec: ActionSpec,
    mask: np.ndarray | None,
    decides: np.ndarray,
) -> None:
    if isinstance(spec, Box):
        low, high = (np.array(x, np.float32)[None] for x in (spec.low, spec.high))
        inside = (action >= low) & (action <= high)
        told = "outside the bounds of its box"
        nvec = ()
    else:
        nvec = spec.nvec if isinstance(spec, MultiDiscrete) else (spec.num_actions,)
        inside = (action >= 0) & (
            action < (np.array(nvec) if action.ndim == 1 else np.array([nvec]))
        )
        told = f"not from 0 to {', '.join(str(n - 1) for n in nvec)}"
    fits = np.asarray(inside.reshape(len(action), -1).all(axis=1))
    faults.find(
        "action", decides & ~fits, lambda row: f"the action {action[row].tolist()} is {told}."
    )
    if mask is None:
        return
    choices = np.where(fits[:, None], action.reshape(len(action), -1), 0)
    offsets = np.cumsum([0, *nvec[:-1]])  # components' masks lie one after another
    allowed = np.asarray(np.take_along_axis(mask, choices + offsets[None, :], axis=1).all(axis=1))
    faults.find(
        "masked action",
        decides & fits & ~allowed,
        lambda row: (
            f"the action {action[row].tolist()} is not among those that its action_mask allows."
        ),
    )


def _extras(
    faults: Faults, table: Table, columns: Columns, decides: np.ndarray, action: ActionSpec
) -> dict[str, np.ndarray]:
    """The logarithm of propensities, float64 `[N]`, and what else the columns name, float32."""
    extras = {
        name: cells.numbers(faults, name, require(table, name, "extras"), decides)
        for name in columns.extras
    }
    propensity = column(table, columns, "propensity")
    exact = column(table, columns, "log_prob")
    if propensity is not None and exact is None:
        chance = cells.numbers(faults, "propensity", propensity, decides)
        wide = isinstance(action, Box)  # densities have no upper limit
        read = cells.are_numbers(propensity)  # others are faults already
        fits = (chance > 0) & (chance <= (np.inf if wide else 1))
        faults.find(
            "propensity",
            decides & read & ~fits,
            lambda row: (
                f"the propensity {chance[row]} is no "
                f"{'density: it must be above 0' if wide else 'probability in (0, 1]'}."
            ),
        )
        extras["log_prob"] = np.log(np.where(fits, chance, 1.0))
    if exact is not None:
        values = cells.numbers(faults, "log_prob", exact, decides)
        high = decides & (values > LOG_PROB_ABOVE) & (not isinstance(action, Box))
        faults.find(
            "propensity", high, lambda row: f"log_prob is {values[row]}, above that of certainty."
        )
        extras["log_prob"] = values
    # Ratios of probabilities are estimated in double precision: theirs are kept in it.
    return {
        name: values if name == "log_prob" else values.astype(np.float32)
        for name, values in extras.items()
    }


def _policies(
    versions: list[Any] | None, parts: sessions.Cut, log: sessions.Decisions
) -> dict[str, int]:
    if versions is None:
        return {}
    return dict(collections.Counter(str(versions[i]) for i in parts.order if not log.final[i]))
