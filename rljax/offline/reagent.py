"""ReAgent's event logs: JSON lines with mdp_id, sequence_number, state_features, action, ...

Rows come shuffled. Actions are objects of features, or names, out of `possible_actions`: they are
numbered in the order of their features, {"4": 1} before {"5": 1}. Where no row has a choice, the
objects are vectors of reals.

An episode ended by the task if nothing is possible next in its last row. Rows before that may say
so, too, and go on nevertheless (in the CartPole log of ReAgent's own tests the last but one does,
and the last lists no possible action, yet takes one): where nothing is listed, nothing is masked.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from rljax.offline import cells, event_log, tables
from rljax.offline.schema import Columns, Found, Reading, Rules, Table
from rljax.types import EnvSpec

_RULES = Rules()
MARKS = frozenset(
    {"mdp_id", "sequence_number", "state_features", "action"}
)  # which name the format
_COLUMNS = Columns(episode_id="mdp_id", step="sequence_number", state="state_features", time=None)


def read(
    path: str | os.PathLike[str],
    rules: Rules = _RULES,
    spec: EnvSpec | None = None,
    time_limit: int | None = None,
) -> Reading:
    """The dataset of one file; .gz, .bz2 and .xz are unpacked.

    Args:
        path: of the JSON lines.
        rules: how rows become episodes; sorted, unless they say otherwise.
        spec: of what acted, as for `event_log.from_table`.
        time_limit: steps after which the task stops an episode: ReAgent has no mark for that, so
            that such an end looks like one by the task.

    Raises:
        ValueError: a row cannot be right; the sentence names the line.
    """
    if rules.sort is None:
        rules = dataclasses.replace(rules, sort=True)
    found, counts, unread = tables.objects(path, rules.on_fault)
    table = tables.of_objects(str(path), found, unread)
    for name in sorted(MARKS):
        if name not in table.columns:
            raise ValueError(f"{path} has no {name}: it is no event log of ReAgent.")
    columns = table.columns
    if "action_probability" in columns:
        columns.setdefault("propensity", columns["action_probability"])
    if "next_state_features" in columns:
        columns["next_state"] = columns["next_state_features"]
    choices = any(columns.get("possible_actions", ()))
    end = "possible_next_actions" if choices else "next_action"
    over = _last_rows(columns) & np.array([end in row and not row[end] for _, row in found], bool)
    late = np.zeros(len(found), bool)
    if time_limit is not None:
        late = np.array(
            [cells.number(step) + 1 >= time_limit for step in columns["sequence_number"]]
        )
    columns |= {"terminated": over & ~late, "truncated": over & late}
    if choices:
        counts["rows_without_possible_actions"] += sum(
            not row.get("possible_actions") for _, row in found
        )
        table = _with_choices(table)
    return event_log.from_table(table, _COLUMNS, rules, spec, counts)


def _with_choices(table: Table) -> Table:
    """The table with actions as numbers of all that are possible somewhere, and their masks."""
    columns = table.columns
    possible = [cell if isinstance(cell, list) else [] for cell in columns["possible_actions"]]
    following = columns.get("possible_next_actions", [None] * len(possible))
    every = {_canonical(x) for row in possible for x in row}
    number = {action: i for i, action in enumerate(sorted(every, key=_order))}

    def mask(row: list[Any]) -> list[bool]:
        listed = {_canonical(y) for y in row}
        return [x in listed for x in number]

    masks = [mask(row) if row else [True] * len(number) for row in possible]
    chosen = [_canonical(cell) for cell in columns["action"]]
    known = np.array([x in number for x in chosen], bool)
    found = Found(
        "action",
        ~known,
        lambda row: f"its action {columns['action'][row]} is among no possible_actions.",
    )
    made = {**columns, "action": [number.get(x, 0) for x in chosen]}
    if not all(map(all, masks)):
        made["action_mask"] = masks
        made["next_action_mask"] = [
            mask(row) if row and isinstance(row, list) else None for row in following
        ]
    return table._replace(columns=made, found=(found,))


def _last_rows(columns: dict[str, Any]) -> np.ndarray:
    """Bool `[N]`: whether no row of the same mdp_id has a larger sequence_number."""
    rows = [
        (str(name), cells.number(step))
        for name, step in zip(columns["mdp_id"], columns["sequence_number"], strict=True)
    ]
    last: dict[str, float] = {}
    for name, step in rows:
        last[name] = max(step, last.get(name, step))
    return np.array([step == last[name] for name, step in rows], bool)


def _canonical(action: Any) -> Any:
    """One action in a form that can be compared: features with their values, or a name."""
    if isinstance(action, dict):
        return tuple((key, cells.number(action[key])) for key in cells.sorted_keys(action))
    return str(action)


def _order(action: Any) -> Any:
    if isinstance(action, str):
        return (1, int(action), action) if action.isdecimal() else (2, 0, action)
    # by features, the larger value first: one-hot objects then come in the order of their ones
    ranked = tuple((int(k) if k.isdecimal() else 0, k, -value) for k, value in action)
    return (0, 0, ranked)
