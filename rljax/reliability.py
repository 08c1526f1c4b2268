"""Comparing agents over several tasks and seeds (Agarwal et al. 2021, arXiv:2108.13264).

Scores are `[runs, tasks]`, normalized so that tasks can be averaged. Intervals resample the runs of
each task by themselves: tasks are given, runs are a sample.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from rljax.evaluation import iqm

Statistic = Callable[..., float | np.ndarray]  # of one array of scores or several


def normalized(
    scores: Float[np.ndarray, "N M"], floor: Float[np.ndarray, " M"], top: Float[np.ndarray, " M"]
) -> Float[np.ndarray, "N M"]:
    """0 at the floor of each task, 1 at its top.

    Raises:
        ValueError: floor and top of a task are the same.
    """
    if (floor == top).any():
        raise ValueError("a task whose floor is its top cannot be normalized.")
    return (scores - floor[None]) / (top - floor)[None]


def interquartile_mean(scores: Float[np.ndarray, "N M"]) -> float:
    """Mean of the middle half of all runs of all tasks."""
    return iqm(scores.ravel())


def performance_profile(
    scores: Float[np.ndarray, "N M"], thresholds: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Fraction of runs above each threshold, averaged over the tasks (their §4.2)."""
    return (scores[None] > thresholds[:, None, None]).mean(axis=(1, 2))


def probability_of_improvement(
    ours: Float[np.ndarray, "N M"], theirs: Float[np.ndarray, "N2 M"]
) -> float:
    """P(a run of ours beats one of theirs on the same task), ties half; mean over tasks (§4.3)."""
    difference = ours[:, None] - theirs[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def interval(
    statistic: Statistic,
    *scores: Float[np.ndarray, "_ M"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*K"], Float[np.ndarray, "*K"]]:
    """Stratified percentile bootstrap: low and high of `statistic(*resampled scores)`.

    The runs of each task are drawn anew, with replacement, apart from those of other tasks.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [
            np.take_along_axis(each, rng.integers(len(each), size=each.shape), axis=0)
            for each in scores
        ]
        values.append(statistic(*drawn))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(values), [tail, 1 - tail], axis=0)
    return np.asarray(low), np.asarray(high)
