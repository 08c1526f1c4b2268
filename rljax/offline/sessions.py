"""Rows of a log in order, cut into episodes, and joined to a dataset; all columns at once.

A log may hold millions of sessions of a step or two: nothing here loops over rows or episodes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from rljax.offline.dataset import Dataset
from rljax.offline.schema import Faults, Rules, Unfinished
from rljax.types import Box, Discrete, EnvSpec, Observation, Transition

_SLACK = 1e-6  # seconds: what is lost of a time since 1970 as a float64, and more


class Decisions(NamedTuple):
    """The rows of a log, as they lie in the file; where a row has no number of a kind, it is 0."""

    stream: np.ndarray  # int64 [N]: rows of one number belong together; -1: nobody knows to whom
    has_ids: bool  # a stream is what the log calls an episode or a session; else all are one
    has_ends: bool  # the log tells where episodes end
    step: np.ndarray | None  # int64 [N]
    time: np.ndarray | None  # float64 [N], seconds; NaN where it cannot be read
    observation: Observation  # [N, ...]
    next_observation: Observation  # [N, ...]; looked at where `knows_next`
    knows_next: np.ndarray  # bool [N]
    action: np.ndarray  # [N, ...]
    reward: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N]
    truncated: np.ndarray  # bool [N]
    final: np.ndarray  # bool [N]: holds a final observation, and no decision
    extras: dict[str, np.ndarray]  # [N]: log_prob float64, others float32
    unread: tuple[int, ...] = ()  # rows above which the file has a line that cannot be read


class Cut(NamedTuple):
    """Which rows make up which episode."""

    order: np.ndarray  # int64 [M]: rows of the file
    starts: np.ndarray  # int64 [E + 1]: where in `order` each episode starts; M at the end


def cut(faults: Faults, log: Decisions, rules: Rules) -> Cut:
    """Orders the rows and cuts them; what is wrong with their order goes to `faults`.

    A pause of exactly `session_gap` cuts nothing. Rows of one id with equal times are sorted by
    their steps; without ids, or steps, they keep the file's order.

    Raises:
        ValueError: rows are to be sorted or cut by what the log does not have, nothing tells which
            rows belong together though they have steps, or a fault is there.
    """
    _check_bandit(faults, log, rules)
    by_time = rules.session_gap is not None or not log.has_ids or log.step is None
    key = log.time if by_time else log.step
    if rules.session_gap is not None and log.time is None:
        raise ValueError(
            f"{faults.file}: session_gap needs a column of times: name it by Columns(time=...)."
        )
    if rules.sort and key is None:
        told = "steps or times" if log.step is None else "times, or of ids beside its steps,"
        raise ValueError(f"{faults.file} has no column of {told} to be sorted by.")
    lost = log.stream < 0
    if log.time is not None and (rules.session_gap is not None or (by_time and rules.sort)):
        lost = lost | np.isnan(log.time)
        faults.counts["rows_dropped"] += int((lost & (log.stream >= 0)).sum())
    if not _is_bandit(log, rules):
        _spoil_beside(faults, log, lost, rules)
    order = np.flatnonzero(~lost & ~faults.alone)
    keys = [log.stream]  # from the last one to the first
    if rules.sort and key is not None:
        keys = [key, log.stream]
        if by_time and log.has_ids and log.step is not None:
            keys = [log.step, *keys]
    order = order[np.lexsort([x[order] for x in keys])]
    known = log.has_ids or rules.session_gap is not None  # what belongs together, before it is cut
    if key is not None and known and not rules.sort:
        _find_disorder(faults, key, order, _together(log, order), "time" if by_time else "step")
    if log.step is not None and log.has_ids:
        order = _without_duplicates(faults, log, order, by_time)
    new = _starts(faults, log, order, rules)
    if key is not None and not (known or rules.sort or _is_bandit(log, rules)):
        _find_disorder(faults, key, order, ~new[1:], "time")
    if log.step is not None and not _is_bandit(log, rules):
        _find_missing_steps(faults, log, order, new, whole=log.has_ids and not by_time)
    _compare_next(faults, log, order, new)
    starts = np.append(np.flatnonzero(new), len(order))
    _find_lone_ends(faults, log, order[new])
    faults.find(
        "final row with reward",
        log.final & (log.reward != 0),
        lambda row: (
            f"its reward is {log.reward[row]:g}, but it is final: it holds what the last step led "
            "to, and decides nothing; a row that decides and ends is done."
        ),
    )
    if rules.unfinished is Unfinished.REFUSE and not _is_bandit(log, rules):
        last = order[starts[1:] - 1]
        faults.find(
            "unfinished",
            _marked(faults, last[~_ends(log)[last]]),
            lambda row: (
                "its episode stops here, neither terminated nor truncated: rules {unfinished: "
                "truncated} (or terminated), in a YAML file beside the data, say what that means."
            ),
        )
    return _without_spoiled(faults, Cut(order, starts))


def narrowed(spec: EnvSpec, log: Decisions, parts: Cut) -> EnvSpec:
    """A spec that was found in the log, with actions as wide as those of the rows that are left."""
    left = log.action[parts.order[~log.final[parts.order]]]
    if not len(left) or (spec.has_mask and isinstance(spec.action, Discrete)):
        return spec
    if isinstance(spec.action, Discrete):
        return dataclasses.replace(spec, action=Discrete(int(left.max()) + 1))
    low, high = (tuple(x.tolist()) for x in (left.min(axis=0), left.max(axis=0)))
    return dataclasses.replace(spec, action=Box(low, high))


def join(
    spec: EnvSpec, log: Decisions, parts: Cut, rules: Rules, faults: Faults, source: str
) -> Dataset:
    """The episodes as a dataset; `faults.counts` gets how many last steps were given up.

    Raises ValueError if no episode with a step is left.
    """
    last = parts.order[parts.starts[1:] - 1]
    has_final = log.final[last]
    before = parts.order[np.maximum(parts.starts[1:] - 2, parts.starts[:-1])]
    decided = np.where(has_final, before, last)  # the last decision
    terminated = log.terminated[decided]
    if _is_bandit(log, rules):
        terminated = np.ones_like(terminated)
    elif rules.unfinished is Unfinished.TERMINATED:
        terminated |= ~_ends(log)[last]
    # Nothing is known of what the last step led to: its own state is the last that was seen.
    given_up = ~has_final & ~terminated & ~log.knows_next[last]
    faults.counts["last_steps_given_up"] += int(given_up.sum())
    parts, kept = _without(parts, given_up & (np.diff(parts.starts) == 1))
    faults.counts["episodes_without_step"] += int((~kept).sum())
    last, has_final, terminated, given_up = (
        x[kept] for x in (last, has_final, terminated, given_up)
    )
    if not len(last):
        told = ", ".join(f"{name} {n:,}" for name, n in faults.counts.items() if n)
        raise ValueError(f"{source} has no episode that can be learned from; {told}.")

    # A final row is added where the log has none to spare. A terminated episode's is a copy of the
    # last state if the log does not know better: behind discount 0 nothing ever looks at it.
    added = ~has_final & ~given_up
    copies = np.ones(len(parts.order), np.int64)
    copies[parts.starts[1:] - 1] += added
    rows = np.repeat(parts.order, copies)
    starts = np.concatenate([[0], np.cumsum(np.diff(parts.starts) + added)])
    finals = starts[1:] - 1
    valid: Any = np.ones(len(rows), bool)
    valid[finals] = False
    told = added & log.knows_next[last]

    def seen(x: np.ndarray, following: np.ndarray) -> np.ndarray:
        x = x[rows]
        x[finals[told]] = following[last[told]]
        return x

    def decision(x: np.ndarray) -> Any:
        x = x[rows]
        x[finals] = 0
        return x

    discount: Any = np.ones(len(rows), np.float32)
    discount[finals[terminated] - 1] = 0.0
    made = Transition(
        jax.tree.map(seen, log.observation, log.next_observation),
        decision(log.action),
        decision(log.reward),
        discount,
        valid,
        {name: decision(x) for name, x in log.extras.items()},
    )
    return Dataset(spec, made, starts.astype(np.int64), source)


def _is_bandit(log: Decisions, rules: Rules) -> bool:
    """Whether nothing joins one row to the next: each is an episode that ends at once."""
    return not (log.has_ids or log.has_ends or rules.session_gap is not None)


def _check_bandit(faults: Faults, log: Decisions, rules: Rules) -> None:
    steps = log.step is not None and log.step.any()
    if _is_bandit(log, rules) and (steps or log.knows_next.any()):
        raise ValueError(
            f"{faults.file} has {'steps' if steps else 'next states'}, but no id of episodes and "
            "no column that ends them, so that each row would be an episode of its own: name that "
            "column by episode_id or done in columns, or leave these unread by "
            "{step: null, next_state: null}."
        )


def _spoil_beside(faults: Faults, log: Decisions, lost: np.ndarray, rules: Rules) -> None:
    """Marks the rows that may be of a lost one's episode: those next to it in the file.

    Where rows are yet to be sorted these tell nothing: then it is all rows of its stream, if that
    is known.
    """
    if rules.sort:
        beside = np.isin(log.stream, log.stream[lost & (log.stream >= 0)])
    else:
        beside = np.zeros(len(lost) + 2, bool)  # with room for a row above the first, and the last
        beside[:-2] |= lost
        beside[2:] |= lost
        for row in log.unread:
            beside[row : row + 2] = True
        beside = beside[1:-1]
        grouped = np.argsort(log.stream, kind="stable")  # rows of a stream may lie apart
        one = _together(log, grouped)
        above, row = grouped[:-1][one], grouped[1:][one]
        beside[above] |= lost[row]
        beside[row] |= lost[above]
    faults.find(
        "beside a lost row",
        beside & ~lost,
        lambda row: "the row beside it cannot be read, and may be of its episode.",
    )


def _ends(log: Decisions) -> np.ndarray:
    return log.terminated | log.truncated | log.final


def _together(log: Decisions, order: np.ndarray) -> np.ndarray:
    """Bool `[M - 1]`: whether a row belongs to the stream of the row before it."""
    return np.diff(log.stream[order]) == 0


def _all(x: np.ndarray) -> np.ndarray:
    """Bool `[M]` of bool `[M, ...]`: whether all of a row is True."""
    return np.asarray(x.all(axis=tuple(range(1, x.ndim))))


def _marked(faults: Faults, rows: np.ndarray) -> np.ndarray:
    bad = np.zeros(len(faults.spoiled), bool)
    bad[rows] = True
    return bad


def _starts(faults: Faults, log: Decisions, order: np.ndarray, rules: Rules) -> np.ndarray:
    """Bool `[M]`: the first row of each episode."""
    above, row = order[:-1], order[1:]
    together = _together(log, order)
    over = ((log.terminated | log.truncated)[above] & ~log.final[row]) | log.final[above]
    over &= together
    new = ~together
    if _is_bandit(log, rules):
        new[:] = True
    elif log.has_ids and rules.session_gap is None:
        faults.find(
            "after the end",
            _marked(faults, row[over]),
            lambda row: "its episode ended in the row before: rows behind an end need another id.",
        )
    else:
        new |= over
    if rules.session_gap is not None and log.time is not None:
        new |= np.diff(log.time[order]) > rules.session_gap + _SLACK
    return np.concatenate([[True] * bool(len(order)), new]).astype(bool)


def _find_disorder(
    faults: Faults, key: np.ndarray, order: np.ndarray, of_one: np.ndarray, name: str
) -> None:
    faults.find(
        "order",
        _marked(faults, order[1:][of_one & (np.diff(key[order]) < 0)]),
        lambda row: (
            f"its {name} {key[row]} is before that of the row above of the same episode: rules "
            "{sort: true}, in a YAML file beside the data, put rows in order."
        ),
    )


def _without_duplicates(
    faults: Faults, log: Decisions, order: np.ndarray, by_time: bool
) -> np.ndarray:
    """What was delivered twice is dropped once; two rows that differ spoil their episode."""
    assert log.step is not None
    twice = _together(log, order) & (np.diff(log.step[order]) == 0)
    if by_time and log.time is not None:  # the sessions of one id may start alike
        twice &= np.diff(log.time[order]) == 0
    above, row = order[:-1][twice], order[1:][twice]
    columns = [log.action, log.reward, log.terminated, log.truncated, log.final]
    columns += [*jax.tree.leaves(log.observation), *log.extras.values()]
    equal = np.ones(len(row), bool)
    for values in columns:
        equal &= _all(values[row] == values[above])
    where = np.full(len(log.step), -1)
    where[row] = above

    def say(row: int) -> str:
        assert log.step is not None
        return f"its episode has step {log.step[row]} twice: each must be there once."

    faults.find("duplicate", _marked(faults, row[equal]), say, alone=True)
    faults.find("two rows of one step", _marked(faults, row[~equal]), say)
    return order[~faults.alone[order]]


def _find_missing_steps(
    faults: Faults, log: Decisions, order: np.ndarray, new: np.ndarray, *, whole: bool
) -> None:
    """Steps that are absent between others; or at the start, where an id is a `whole` episode."""
    assert log.step is not None
    ahead = np.concatenate([[0], np.diff(log.step[order])]) if len(order) else order
    # Of whole ones, rows that go back or stand still are faults already.
    missing = ((ahead > 1) if whole else (ahead != 1)) & ~new
    advice = "" if whole else "; columns {step: null} leave steps unread"
    due = np.zeros(len(log.step), np.int64)
    due[order[1:]] = log.step[order[:-1]] + 1
    steps = log.step
    if whole and new.any():  # where most episodes start alike, others have lost their start
        numbers, counts = np.unique(steps[order[new]], return_counts=True)
        if 2 * counts.max() > counts.sum():
            missing |= new & (steps[order] > numbers[np.argmax(counts)])
            due[order[new]] = numbers[np.argmax(counts)]
    faults.find(
        "missing steps",
        _marked(faults, order[missing]),
        lambda row: f"step {steps[row]} comes where step {due[row]} of its episode is due{advice}.",
    )


def _compare_next(faults: Faults, log: Decisions, order: np.ndarray, new: np.ndarray) -> None:
    """What a row says it led to must be the state of the row behind it."""
    above, row = order[:-1], order[1:]
    compared = log.knows_next[above] & ~new[1:]
    above, row = above[compared], row[compared]
    equal = np.ones(len(row), bool)
    both = (log.next_observation.features, log.observation.features)
    for led_to, state in zip(*map(jax.tree.leaves, both), strict=True):
        equal &= _all(np.isclose(led_to[above], state[row], rtol=1e-4, atol=1e-6))
    faults.find(
        "next_state differs",
        _marked(faults, above[~equal]),
        lambda row: (
            "its next_state is not the state of the next row of its episode: one of them is"
            " wrong, or rows are missing; Columns(next_state=None) leaves it unread."
        ),
    )


def _find_lone_ends(faults: Faults, log: Decisions, first: np.ndarray) -> None:
    faults.find(
        "final row alone",
        _marked(faults, first[log.final[first]]),
        lambda row: "it holds a final observation, but its episode has no step before it.",
    )


def _without_spoiled(faults: Faults, parts: Cut) -> Cut:
    if not len(parts.order):
        return parts
    bad = np.logical_or.reduceat(faults.spoiled[parts.order], parts.starts[:-1])
    kept, _ = _without(parts, bad)
    faults.counts["episodes_dropped"] += int(bad.sum())
    faults.counts["rows_dropped"] += len(parts.order) - len(kept.order)
    return kept


def _without(parts: Cut, bad: np.ndarray) -> tuple[Cut, np.ndarray]:
    """The episodes that are not `bad`, bool [E]; and which were kept."""
    lengths = np.diff(parts.starts)
    order = parts.order[np.repeat(~bad, lengths)]
    return Cut(order, np.concatenate([[0], np.cumsum(lengths[~bad])])), ~bad
