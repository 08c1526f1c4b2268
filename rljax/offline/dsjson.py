"""Vowpal Wabbit's decision logs (dsjson): JSON lines, one decision among described actions each.

Every row is an episode of one step. What describes context and actions becomes one vector:

    observation      the context's features, then those of each action in turn; 0 where a row has
                     none, or fewer actions: those are masked
    action           which of `_multi` was taken, from 0
    reward           minus `_label_cost`
    log_prob         ln `_label_probability`

Features are named by their path: text is "weather=Sunny" with the value 1, a number its path with
that value, true likewise 1; keys that start with "_" describe nothing, as in Vowpal Wabbit.
"""

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rljax.offline import cells, event_log, schema, tables
from rljax.offline.schema import Columns, Found, Reading, Rules, Table
from rljax.types import Discrete, EnvSpec

MARK = "_label_cost"  # which names the format
_RULES = Rules()
_COLUMNS = Columns(episode_id=None, step=None, time=None)
_VERSION = "1"  # of the format; some logs do not tell it
_TOLERANCE = 1e-3  # of probabilities, which the logs keep in single precision


class Features(NamedTuple):
    """What observations are made of; logs that are compared need the same."""

    context: tuple[str, ...]
    action: tuple[str, ...]
    num_actions: int


def read(
    path: str | os.PathLike[str], rules: Rules = _RULES, features: Features | None = None
) -> Reading:
    """The log of one file; .gz, .bz2 and .xz are unpacked.

    Args:
        path: of the JSON lines.
        rules: what happens to rows that cannot be right.
        features: by default those of this log.

    Raises:
        ValueError: it is no such log, or a row cannot be right.
    """
    found, counts, _ = tables.objects(path, rules.on_fault, last_wins=True)
    _check_format(path, [row for _, row in found])
    skipped = [row.get("_skipLearn") is True for _, row in found]
    found = [each for each, skip in zip(found, skipped, strict=True) if not skip]
    counts["rows_skipped"] += sum(skipped)
    rows = [row for _, row in found]
    described = [_describe(row) for row in rows]
    checked = _checked(rows, described)
    bad = np.logical_or.reduce([found.bad for found in checked])  # dropped: they decide nothing
    if features is None:
        features = _features([x for x, out in zip(described, bad, strict=True) if not out])
    masks = np.zeros((len(rows), features.num_actions), bool)
    state = np.zeros((len(rows), _width(features)))
    unknown = np.zeros(len(rows), bool)
    places = [{name: i for i, name in enumerate(names)} for names in features[:2]]
    for row, (context, actions) in enumerate(described):
        masks[row, : len(actions)] = True
        unknown[row] = not _fill(state[row], features, places, context, actions)
    table = Table(
        str(path),
        {
            "state": state,
            "action": [row.get("_labelIndex") for row in rows],
            "reward": [_negated(row.get(MARK)) for row in rows],
            "propensity": [row.get("_label_probability") for row in rows],
        },
        np.array([number for number, _ in found]),
        "line",
        (
            *checked,  # first: such rows add no features, so that theirs are too many
            Found("features", unknown, lambda row: "it has a feature or an action too many."),
            tables.repeated("EventId", [row.get("EventId") for row in rows]),
        ),
    )
    has_mask = not masks[~bad].all()
    if has_mask:
        table.columns["action_mask"] = masks
    name = str(os.path.basename(path)).partition(".")[0]
    spec = EnvSpec(
        name,
        state.shape[1:],
        "float32",
        Discrete(features.num_actions),
        has_mask=has_mask,
    )
    return event_log.from_table(table, _COLUMNS, rules, spec, counts)


def features(
    *paths: str | os.PathLike[str], on_fault: schema.OnFault = schema.OnFault.REFUSE
) -> Features:
    """The features that are in any of the logs, in order of their names.

    Raises ValueError where lines are no JSON objects, and those faults are refused.
    """
    rows = [row for path in paths for _, row in tables.objects(path, on_fault, last_wins=True)[0]]
    return _features([_describe(row) for row in rows if row.get("_skipLearn") is not True])


def _check_format(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    if any("_outcomes" in row for row in rows):
        raise ValueError(
            f"{path} decides on several slots at once (_outcomes); only logs of one decision an "
            "event can be read."
        )
    if not any(MARK in row for row in rows):
        raise ValueError(f"{path} has no {MARK}: it is no decision log of Vowpal Wabbit (dsjson).")


def _features(described: list[tuple[dict[str, float], list[dict[str, float]]]]) -> Features:
    return Features(
        tuple(sorted({name for context, _ in described for name in context})),
        tuple(sorted({name for _, actions in described for each in actions for name in each})),
        max((len(actions) for _, actions in described), default=0),
    )


def _width(features: Features) -> int:
    return len(features.context) + features.num_actions * len(features.action)


def _fill(
    state: np.ndarray,
    features: Features,
    places: list[dict[str, int]],
    context: dict[str, float],
    actions: list[dict[str, float]],
) -> bool:
    """Writes one row's features into `state`, `[W]`; False where they are not all known."""
    if len(actions) > features.num_actions or not context.keys() <= places[0].keys():
        return False
    for name, value in context.items():
        state[places[0][name]] = value
    for number, action in enumerate(actions):
        if not action.keys() <= places[1].keys():
            return False
        start = len(features.context) + number * len(features.action)
        for name, value in action.items():
            state[start + places[1][name]] = value
    return True


def _describe(row: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The features of the context, and of each action."""
    context = row.get("c")
    if not isinstance(context, dict):
        return {}, []
    multi = context.get("_multi")
    actions = multi if isinstance(multi, list) else []
    return _summed(context), [_summed(action) for action in actions]


def _summed(described: Any) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in _flat(described, ""):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def _flat(described: Any, path: str) -> Iterator[tuple[str, float]]:
    match described:
        case dict():
            for key, value in described.items():
                if not key.startswith("_"):
                    yield from _flat(value, f"{path}.{key}" if path else key)
        case list():
            for number, value in enumerate(described):
                inside = isinstance(value, dict | list | str)  # numbers in a list have a place each
                yield from _flat(value, path if inside else f"{path}[{number}]")
        case str():
            yield f"{path}={described}", 1.0
        case bool():
            if described:
                yield path, 1.0
        case int() | float():
            yield path, cells.number(described)  # NaN if too large, which is found


def _checked(
    rows: list[dict[str, Any]], described: list[tuple[dict[str, float], list[dict[str, float]]]]
) -> list[Found]:
    """What contradicts itself in a row."""
    counts = [len(actions) for _, actions in described]
    labels = [(row.get("_labelIndex"), row.get("_label_Action")) for row in rows]
    outside = [
        type(index) is not int or not 0 <= index < count
        for (index, _), count in zip(labels, counts, strict=True)
    ]
    # `_label_Action` counts from 1
    other = [
        type(index) is int and action is not None and action != index + 1
        for index, action in labels
    ]
    return [
        Found(
            "schema version",
            np.array([str(row.get("Version", _VERSION)) != _VERSION for row in rows], bool),
            lambda row: f"its Version is {rows[row]['Version']!r}; this reader knows {_VERSION}.",
        ),
        Found(
            "no action",
            np.array([count == 0 for count in counts], bool),
            lambda row: "its context c describes no action in _multi.",
        ),
        Found(
            "action",
            np.array(outside, bool),
            lambda row: f"_labelIndex is {labels[row][0]}, and it has {counts[row]} actions.",
        ),
        Found(
            "label",
            np.array(other, bool),
            lambda row: (
                f"_labelIndex {labels[row][0]} and _label_Action {labels[row][1]}, which "
                "counts from 1, name two actions."
            ),
        ),
        Found(
            "probability",
            np.array([not _agrees(row) for row in rows], bool),
            lambda row: (
                "_label_probability is not what p, the probabilities of the actions a, "
                "says of the action taken."
            ),
        ),
        Found(
            "pdrop",
            np.array([bool(row.get("pdrop")) for row in rows], bool),
            lambda row: "its log left out a share pdrop of such rows, which is not supported.",
        ),
    ]


def _agrees(row: dict[str, Any]) -> bool:
    """Whether `p`, if it is there, has the probability of the action taken, and sums to 1."""
    ranked, chances = row.get("a"), row.get("p")
    index, told = row.get("_labelIndex"), row.get("_label_probability")
    if not isinstance(ranked, list) or not isinstance(chances, list) or type(index) is not int:
        return True
    taken = index + (0 if 0 in ranked else 1)  # logs count the ranked actions from 1, some from 0
    if len(ranked) != len(chances) or taken not in ranked:
        return False
    values = [cells.number(chance) for chance in chances]
    off = (sum(values) - 1, values[ranked.index(taken)] - cells.number(told))
    return all(abs(x) < _TOLERANCE for x in off)  # False for NaN


def _negated(cost: Any) -> Any:
    value = cells.number(cost)
    return cost if math.isnan(value) else 0.0 - value
