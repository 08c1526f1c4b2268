"""Continuous actions and a deterministic π: actions near π's count as π's, by a kernel.

The ratio of an event is K((π(x) - a) / h) / (h^D b(a|x)) with the density b (Kallus & Zhou 2018,
arXiv:1802.06037). The normalizer takes the bandwidth to the power of the action's
dimension. A stochastic π needs none of this: its ratio of densities is exact.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

LogKernel = Callable[[np.ndarray], np.ndarray]  # ln of a density of one distance, elementwise


def gaussian(distance: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    """Log-density of the standard normal distribution."""
    return -0.5 * distance**2 - 0.5 * np.log(2 * np.pi)


def epanechnikov(distance: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    """Ln of 0.75 (1 - u²) on [-1, 1]; -inf outside."""
    inside = np.maximum(1 - distance**2, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(0.75 * inside)


def uniform(distance: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    """Ln of ½ on [-1, 1]; -inf outside."""
    return np.where(np.abs(distance) <= 1, np.log(0.5), -np.inf)


def log_ratio(
    target: Float[np.ndarray, "*S D"],
    action: Float[np.ndarray, "*S D"],
    log_density: Float[np.ndarray, "*S"],
    bandwidth: Float[np.ndarray, " D"],
    kernel: LogKernel = gaussian,
) -> Float[np.ndarray, "*S"]:
    """Ln of the kernel's weight of each logged action, one factor per dimension.

    Args:
        target: what π does in that state.
        action: what was done.
        log_density: ln b(a|x), of the density over all D dimensions.
        bandwidth: h of each dimension, in the action's unit: bias grows with h², variance with
            1 / Π h.
        kernel: ln of a density on the line.

    Raises:
        ValueError: a bandwidth is not positive.
    """
    if not (bandwidth > 0).all():
        raise ValueError(f"bandwidths must be positive, not {bandwidth.tolist()}.")
    distance = (target - action) / bandwidth
    return (kernel(distance) - np.log(bandwidth)).sum(axis=-1) - log_density


def rule_of_thumb(action: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " D"]:
    """A bandwidth to begin with: σ_d N^(-1/(D + 4)) (Scott's rule, 1992).

    Raises:
        ValueError: the actions of a dimension are all the same.
    """
    num, dimension = action.shape
    deviation = action.std(axis=0)
    if not (deviation > 0).all():
        raise ValueError(
            f"all actions agree in dimension {int(np.argmin(deviation))}: no kernel is needed."
        )
    return deviation * num ** (-1 / (dimension + 4))


def slope(values: Sequence[float], halves: Sequence[float]) -> int:
    """Which of several estimates to take: the last whose interval meets all those before it.

    Lepski's method for estimators in the order of growing bias and falling variance, as by
    bandwidth: the intervals are value ± 2·half (SLOPE, Su et al. 2020, arXiv:2002.07729).

    Args:
        values: the estimates.
        halves: half the width of a confidence interval of each; infinite where nothing is known.
    """
    low, high, chosen = -np.inf, np.inf, 0
    for number, (value, half) in enumerate(zip(values, halves, strict=True)):
        low, high = max(low, value - 2 * half), min(high, value + 2 * half)
        if low > high:
            break
        chosen = number
    return chosen
