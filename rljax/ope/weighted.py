"""The form that estimators share: a sum of means, each weighted and divided by its own weights.

An estimator is kept as what each trajectory puts in, so that an interval can draw trajectories
anew and divide by the weights that were drawn, not by those of the whole sample.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

_FAINT = 1e-200  # less than this share of the heaviest weight: sums of such lose their digits


@dataclasses.dataclass(frozen=True)
class WeightedMeans:
    """Σ_k (Σ_i w_ik y_ik) / (Σ_i w_ik) over trajectories i; without weights, of plain means.

    Raises:
        ValueError: a value is not finite, or a weight is.
    """

    value: Float[np.ndarray, "E K"]  # y
    log_weight: Float[np.ndarray, "E K"] | None = None  # ln w; None: all are 1

    def __post_init__(self) -> None:
        if not np.isfinite(self.value).all():
            raise ValueError("a value to be averaged is infinite or not a number.")
        if self.log_weight is not None and not (self.log_weight < np.inf).all():
            raise ValueError("a weight is infinite or not a number.")


def plain(contributions: Float[np.ndarray, " E"]) -> WeightedMeans:
    """The mean of one number per trajectory."""
    return WeightedMeans(contributions[:, None])


def times_weight(
    log_weight: Float[np.ndarray, "*S"], value: Float[np.ndarray, "*S"]
) -> Float[np.ndarray, "*S"]:
    """exp(log_weight)·value, elementwise; 0 where the value is, however large the weight.

    Raises:
        ValueError: a product exceeds the range of float64.
    """
    with np.errstate(over="ignore"):
        product = np.exp(np.where(value == 0, 0.0, log_weight)) * value
    if not np.isfinite(product).all():
        raise ValueError(
            f"a product of ratios, e^{log_weight.max():.0f}, is too large for a number: use an "
            "estimator that divides by its weights, or shorter episodes."
        )
    return product


def estimate(means: WeightedMeans) -> float:
    """The estimate from all trajectories.

    Raises:
        ValueError: all weights of a mean are 0.
    """
    if means.log_weight is None:
        return float(means.value.mean(axis=0).sum())
    return float((normalized_weights(means.log_weight) * means.value).sum())


def normalized_weights(log_weight: Float[np.ndarray, "E K"]) -> Float[np.ndarray, "E K"]:
    """Weights that sum to 1 over the trajectories, computed relative to the heaviest.

    Raises:
        ValueError: all of a column are 0.
    """
    heaviest = log_weight.max(axis=0)
    if np.isneginf(heaviest).any():
        raise ValueError(
            "no weight is above 0: the policy never does what the log holds, so the log cannot "
            "say what it would earn."
        )
    weight = np.exp(log_weight - heaviest[None])
    return weight / weight.sum(axis=0)[None]


def contributions(means: WeightedMeans) -> Float[np.ndarray, " E"]:
    """One number per trajectory, whose mean is the estimate.

    Independent of each other for plain means; else to first order (the delta method), which is
    what a standard error needs.
    """
    if means.log_weight is None:
        return means.value.sum(axis=1)
    weight = normalized_weights(means.log_weight)
    mean = (weight * means.value).sum(axis=0)
    return mean.sum() + len(weight) * (weight * (means.value - mean[None])).sum(axis=1)


def resample_counts(num: int, resamples: int, rng: np.random.Generator) -> Float[np.ndarray, "R E"]:
    """How often each of `num` trajectories is drawn, with replacement, in each resample."""
    drawn = rng.integers(num, size=(resamples, num))
    drawn += np.arange(resamples)[:, None] * num
    counts = np.bincount(drawn.ravel(), minlength=resamples * num)
    return counts.reshape(resamples, num).astype(np.float64)


def resampled(means: WeightedMeans, counts: Float[np.ndarray, "R E"]) -> Float[np.ndarray, " R"]:
    """The estimate of each resample, divided by its own weights; NaN where it has none."""
    if means.log_weight is None:
        return counts @ means.value.sum(axis=1) / counts.sum(axis=1)
    weight = normalized_weights(means.log_weight)
    total = counts @ weight
    faint = total < _FAINT
    ratio = counts @ (weight * means.value) / np.where(faint, 1.0, total)
    if not faint.any():
        return ratio.sum(axis=1)
    lost = (faint & (counts @ np.isfinite(means.log_weight) == 0)).any(axis=1)  # none has weight
    ratio[lost, 0] = np.nan
    for row in np.flatnonzero(faint.any(axis=1) & ~lost):  # the heaviest were not drawn: afresh
        ratio[row, faint[row]] = _of_resample(
            means.value[:, faint[row]], means.log_weight[:, faint[row]], counts[row]
        )
    return ratio.sum(axis=1)


def _of_resample(
    value: Float[np.ndarray, "E K"],
    log_weight: Float[np.ndarray, "E K"],
    count: Float[np.ndarray, " E"],
) -> Float[np.ndarray, " K"]:
    drawn = count > 0
    log_weight = log_weight[drawn]
    weight = count[drawn, None] * np.exp(log_weight - log_weight.max(axis=0)[None])
    return (weight * value[drawn]).sum(axis=0) / weight.sum(axis=0)
