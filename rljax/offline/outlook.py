"""What a step of a dataset can tell of the steps behind it, as further columns of its rows."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rljax.offline.dataset import Dataset

NEXT_ACTION = "next_action"  # what was done in the next state, `[N, ...]`; zeros where unknown
KNOWS_NEXT_ACTION = "knows_next_action"  # float32: 0 at the last step of an episode, else 1
RETURN_TO_GO = "return_to_go"  # float32: `returns_to_go`


def add(dataset: Dataset, names: Sequence[str], discount: float) -> Dataset:
    """The dataset with these columns beside its rows, and no others.

    Raises ValueError for a name that is neither one of the above nor a column of the dataset.
    """
    rows, found = dataset.rows, {}
    follows = rows.valid & np.append(rows.valid[1:], False)  # the row behind has an action
    for name in names:
        match name:
            case "next_action":
                found[name] = np.roll(rows.action, -1, axis=0)
                found[name][~follows] = 0
            case "knows_next_action":
                found[name] = follows.astype(np.float32)
            case "return_to_go":
                found[name] = returns_to_go(dataset, discount)
            case _ if name in rows.extras:
                found[name] = rows.extras[name]
            case _:
                raise ValueError(
                    f"{dataset.source or 'the dataset'} has no column {name!r}, which the agent "
                    f"learns from; it has {sorted(rows.extras) or 'none beside its steps'}."
                )
    return dataclasses.replace(dataset, rows=rows._replace(extras=found))


def returns_to_go(dataset: Dataset, discount: float) -> Float[np.ndarray, " N"]:
    """Σ_k γ^k r_{t+k} to the end of the episode, float32; 0 in rows that are no step.

    Of an episode that a time limit ended it is what was seen of it, no estimate of the rest.
    """
    reward = np.asarray(dataset.rows.reward, np.float64)
    total = np.zeros(len(reward))
    # One position of all episodes after the other, from their ends: the longest says how many.
    first, last = dataset.starts[:-1], dataset.starts[1:] - 2
    for back in range(int((last - first).max()) + 1):
        at = (last - back)[last - back >= first]
        total[at] = reward[at] + discount * total[at + 1]
    return total.astype(np.float32)
