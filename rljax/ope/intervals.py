"""Intervals around an estimate. What is drawn anew, or bounded, is always a whole trajectory.

`confidence` counts both sides: of 95 %, 2.5 % lie below and 2.5 % above. The lower end of a 90 %
interval is therefore the one-sided 95 % lower bound.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from rljax.ope import weighted
from rljax.ope.weighted import WeightedMeans

_AT_ONCE = 2_000_000  # draws that are held in memory at a time


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


class Estimate(NamedTuple):
    """One estimator's answer; None where it has none.

    `note` says why that is, or why there is no interval though there is a value.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


Resampled = Callable[[np.ndarray], np.ndarray]  # counts [R, E] -> estimates [R]


def bootstrap(
    means: WeightedMeans, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap: each resample is divided by its own weights.

    None for one trajectory, and where so many resamples hold no weight at all that they could be
    either end. Of few trajectories, or few that carry weight, it is too narrow.
    """
    estimate = functools.partial(weighted.resampled, means)
    return bootstrap_of(
        estimate, len(means.value), confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_of(
    estimate: Resampled,
    num: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """As `bootstrap`, for anything that can be estimated from how often each of `num` was drawn.

    `estimate` maps counts `[R, E]` to estimates `[R]`, NaN where there is none.
    """
    found = bootstrap_each([estimate], num, confidence=confidence, resamples=resamples, seed=seed)
    return found[0]


def bootstrap_each(
    estimates: Sequence[Resampled],
    num: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Interval | None]:
    """`bootstrap_of` each from the same resamples, which are drawn once."""
    tail = _tail(confidence)
    if resamples < 1:
        raise ValueError(f"there must be one resample at least, not {resamples}.")
    if num < 2:
        return [None] * len(estimates)
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // num)
    values: list[list[np.ndarray]] = [[] for _ in estimates]
    for first in range(0, resamples, at_once):
        counts = weighted.resample_counts(num, min(at_once, resamples - first), rng)
        for each, estimate in zip(values, estimates, strict=True):
            each.append(estimate(counts))
    return [_percentiles(np.concatenate(each), tail) for each in values]


def student_t(means: WeightedMeans, *, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the contributions' mean; None for one trajectory.

    To first order for estimators that divide by their weights. It trusts the central limit
    theorem, which heavy weights defeat.
    """
    tail = _tail(confidence)
    values = weighted.contributions(means)
    if len(values) < 2:
        return None
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(special.stdtrit(len(values) - 1, 1 - tail)) * error
    return _around(values, half)


def empirical_bernstein(
    means: WeightedMeans, low: float, high: float, *, confidence: float = 0.95
) -> Interval | None:
    """Holds for every distribution on [low, high] (Maurer & Pontil 2009, arXiv:0907.3740).

    Half its width is √(2 s² ln(2/δ) / n) + 7 (high - low) ln(2/δ) / (3 (n - 1)) with the sample
    variance s² and δ = (1 - confidence) / 2 for each side.

    Args:
        means: of an estimator that does not divide by its weights.
        low: what no contribution can be below, e.g. the least weight × return; not merely seen.
        high: what none can exceed.
        confidence: of both sides together.

    Returns:
        None for one trajectory.

    Raises:
        ValueError: a contribution lies outside of [low, high], or the estimator divides.
    """
    tail = _tail(confidence)
    values = _bounded(means, low, high)
    if len(values) < 2:
        return None
    log = np.log(2 / tail)
    spread = np.sqrt(2 * values.var(ddof=1) * log / len(values))
    return _around(values, spread + 7 * (high - low) * log / (3 * (len(values) - 1)))


def hoeffding(
    means: WeightedMeans, low: float, high: float, *, confidence: float = 0.95
) -> Interval | None:
    """As `empirical_bernstein`, from the range alone: (high - low) √(ln(1/δ) / (2 n))."""
    tail = _tail(confidence)
    values = _bounded(means, low, high)
    if len(values) < 2:
        return None
    return _around(values, (high - low) * np.sqrt(np.log(1 / tail) / (2 * len(values))))


def _percentiles(values: Float[np.ndarray, " R"], tail: float) -> Interval | None:
    undefined = np.isnan(values)
    if undefined.mean() > tail:
        return None
    low, high = np.quantile(values[~undefined], [tail, 1 - tail])
    return Interval(float(low), float(high))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must lie between 0 and 1, not at {confidence}.")
    return (1 - confidence) / 2


def _bounded(means: WeightedMeans, low: float, high: float) -> Float[np.ndarray, " E"]:
    if means.log_weight is not None:
        raise ValueError("this interval is for means, not for estimators that divide by weights.")
    values = weighted.contributions(means)
    rounding = 1e-9 * (high - low)
    if values.min() < low - rounding or values.max() > high + rounding:
        raise ValueError(
            f"the contributions reach from {values.min():g} to {values.max():g}, beyond the "
            f"stated range of {low:g} to {high:g}."
        )
    return values


def _around(values: Float[np.ndarray, " E"], half: float) -> Interval:
    middle = values.mean()
    return Interval(float(middle - half), float(middle + half))
