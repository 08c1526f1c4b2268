"""What a step of a dataset can tell of the steps behind it, as further columns of its rows."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from rljax.offline.dataset import Dataset
from rljax.types import Transition

NEXT_ACTION = "next_action"  # what was done in the next state, `[N, ...]`; zeros where unknown
KNOWS_NEXT_ACTION = "knows_next_action"  # float32: 0 at the last step of an episode, else 1
RETURN_TO_GO = "return_to_go"  # float32: `returns_to_go`
_NOTHING = -1e30  # what a bound from below is that says nothing; finite: sums take 0 × it
OF_NEXT_ROW = (NEXT_ACTION, KNOWS_NEXT_ACTION)  # what a step and the row behind it tell alone


def add(dataset: Dataset, names: Sequence[str], discount: float) -> Dataset:
    """The dataset with these columns beside its rows, and no others.

    Raises ValueError for a name that is neither one of the above nor a column of the dataset.
    """
    rows = dataset.rows
    found = of_next_row(rows, names)
    for name in names:
        match name:
            case _ if name in found:
                pass
            case "return_to_go":
                found[name] = returns_to_go(dataset, discount)
            case _ if name in rows.extras:
                found[name] = np.asarray(rows.extras[name])
            case _:
                raise ValueError(
                    f"{dataset.source or 'the dataset'} has no column {name!r}, which the agent "
                    f"learns from; it has {sorted(rows.extras) or 'none beside its steps'}."
                )
    return dataclasses.replace(dataset, rows=rows._replace(extras=found))


def of_next_row(rows: Transition, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of these columns that are `OF_NEXT_ROW`, where what follows a row is the row behind it.

    For some rows of a dataset, in its order, they are right for those whose next row is there.
    """
    found = {}
    if not set(names) & set(OF_NEXT_ROW):
        return found
    after = np.roll(rows.valid, -1, axis=0)
    after[-1:] = False
    follows = rows.valid & after  # the row behind has an action
    if NEXT_ACTION in names:
        found[NEXT_ACTION] = np.roll(rows.action, -1, axis=0)
        found[NEXT_ACTION][~follows] = 0
    if KNOWS_NEXT_ACTION in names:
        found[KNOWS_NEXT_ACTION] = follows.astype(np.float32)
    return found


def row_bytes(rows: Transition, names: Sequence[str]) -> float:
    """Bytes of a row `[N, ...]` with these columns beside it, and no others."""
    leaves = [*jax.tree.leaves(rows._replace(extras={}))]
    columns = [rows.action if name == NEXT_ACTION else rows.reward for name in names]
    return sum(x.nbytes for x in (*leaves, *columns)) / max(1, len(rows.reward))


def returns_to_go(dataset: Dataset, discount: float) -> Float[np.ndarray, " N"]:
    """Σ_k γ^k r_{t+k} to the end of the episode, float32; 0 in rows that are no step.

    Behind a time limit comes `least_to_come`, so that it bounds the value of the behavior from
    below there, too.
    """
    reward = np.asarray(dataset.rows.reward, np.float64)
    total = np.zeros(len(reward))
    ends = dataset.starts[1:] - 1
    total[ends[dataset.rows.discount[ends - 1] > 0]] = least_to_come(dataset, discount)
    # One position of all episodes after the other, from their ends, the longest episodes first: so
    # those that reach a position are the first so many, and no step is looked at twice.
    last = dataset.starts[1:] - 2
    steps = np.diff(dataset.starts) - 1
    order = np.argsort(-steps, kind="stable")
    last, steps = last[order], steps[order]
    reaching = np.searchsorted(-steps, -np.arange(steps[0]))  # episodes longer than each position
    for back, count in enumerate(reaching):
        at = last[:count] - back
        total[at] = reward[at] + discount * total[at + 1]
    total[ends] = 0
    return total.astype(np.float32)


def least_to_come(dataset: Dataset, discount: float) -> float:
    """What a time limit hides at the least: min(0, least reward) / (1 - γ), for ever or to an end.

    Where γ is 1 and rewards can be negative it bounds nothing.
    """
    least = min(0.0, float(np.min(dataset.rows.reward)))
    if discount < 1:
        return least / (1 - discount)
    return _NOTHING if least else 0.0
