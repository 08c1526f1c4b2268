"""Whether two samples of vectors come from one distribution.

Maximum mean discrepancy (Gretton et al. 2012, "A kernel two-sample test"): with a Gaussian kernel,
it is 0 for equal distributions only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_SMALL = 1e-12


class Shift(NamedTuple):
    """How far two samples are apart."""

    mmd2: float  # unbiased estimate of MMD²: may be a little below 0 where nothing differs
    p_value: float  # share of random relabelings that are as far apart


def mmd(
    x: Float[np.ndarray, "N D"],
    y: Float[np.ndarray, "M D"],
    *,
    permutations: int = 200,
    seed: int = 0,
) -> Shift:
    """MMD² between two samples, by lemma 6, and a permutation test of whether they are one.

    Columns are scaled by the deviation of both samples together; the kernel's width is the median
    distance. Rows should be independent: those of one episode are not, so draw few of many.

    Raises:
        ValueError: fewer than two rows in a sample, or a number that is not finite.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"two rows of each sample are needed, not {len(x)} and {len(y)}.")
    both = np.concatenate([x, y]).astype(np.float64)
    if not np.isfinite(both).all():
        raise ValueError("a sample holds a number that is not finite.")
    mean, spread = both.mean(axis=0), both.std(axis=0)
    varies = spread > 1e-6 * np.abs(mean)  # what never varies would be rounding, blown up
    both = (both - mean[None]) / np.where(varies, spread, 1.0)[None]
    squares = (both**2).sum(axis=1)
    distance2 = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0.0)
    apart = distance2[np.triu_indices(len(both), 1)]
    kernel = np.exp(-distance2 / max(np.median(apart), _SMALL))
    np.fill_diagonal(kernel, 0.0)

    def statistic(order: np.ndarray) -> float:
        first, second = order[: len(x)], order[len(x) :]
        n, m = len(first), len(second)
        within = kernel[np.ix_(first, first)].sum() / (n * (n - 1))
        within += kernel[np.ix_(second, second)].sum() / (m * (m - 1))
        return within - 2 * kernel[np.ix_(first, second)].mean()

    found = statistic(np.arange(len(both)))
    rng = np.random.default_rng(seed)
    others = [statistic(rng.permutation(len(both))) for _ in range(permutations)]
    as_far = sum(other >= found for other in others)
    return Shift(float(found), (1 + as_far) / (1 + permutations))
