"""How likely real actions are under independent Gaussians, and where draws are clipped to a box.

An environment that clips draws takes the bounds of its box with a probability of their own: there
the action has no density, but the mass of the Gaussian's tail. Ratios need the same measure for
both policies. N actions of D dimensions; a distance of any size is a finite number here.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

_EDGE = 1 - 1e-6  # of tanh, as in `rljax.distributions`
_BESIDE = 16  # numbers of float32 beside a bound, among which a density spreads what it has there


def normal(
    action: Float[np.ndarray, "N D"],
    mean: Float[np.ndarray, "N D"],
    scale: Float[np.ndarray, "N D"],
) -> Float[np.ndarray, " N"]:
    """Ln density, summed over the dimensions."""
    return _normal(action, mean, scale).sum(axis=1)


def clipped_normal(
    action: Float[np.ndarray, "N D"],
    mean: Float[np.ndarray, "N D"],
    scale: Float[np.ndarray, "N D"],
    low: Float[np.ndarray, " D"],
    high: Float[np.ndarray, " D"],
) -> Float[np.ndarray, " N"]:
    """Of draws that are clipped to the box: at a bound ln of the tail's mass, inside ln density."""
    at_low, at_high = action <= low[None], action >= high[None]
    below = special.log_ndtr((low[None] - mean) / scale)
    above = special.log_ndtr((mean - high[None]) / scale)
    inside = _normal(action, mean, scale)
    return np.where(at_low, below, np.where(at_high, above, inside)).sum(axis=1)


def squashed_normal(
    action: Float[np.ndarray, "N D"],
    mean: Float[np.ndarray, "N D"],
    scale: Float[np.ndarray, "N D"],
    low: Float[np.ndarray, " D"],
    high: Float[np.ndarray, " D"],
) -> Float[np.ndarray, " N"]:
    """Of tanh of draws, stretched to the box; `mean` and `scale` are of what is squashed."""
    half = (high - low)[None] / 2
    unit = np.clip((action - low[None]) / half - 1, -_EDGE, _EDGE)
    slope = np.log1p(-(unit**2)) + np.log(half)
    return (_normal(np.arctanh(unit), mean, scale) - slope).sum(axis=1)


def log_mass_within(
    mean: Float[np.ndarray, "N D"],
    scale: Float[np.ndarray, " D"],
    low: Float[np.ndarray, " D"],
    high: Float[np.ndarray, " D"],
) -> Float[np.ndarray, " N"]:
    """Ln of the share of draws that fall into the box, for a mean in it."""
    mass = special.ndtr((high[None] - mean) / scale[None])
    mass -= special.ndtr((low[None] - mean) / scale[None])
    return np.log(mass).sum(axis=1)


def clipped(
    action: Float[np.ndarray, "N D"], low: Float[np.ndarray, " D"], high: Float[np.ndarray, " D"]
) -> Bool[np.ndarray, " N"]:
    """Actions at a bound that two at least have taken exactly: no density does that.

    One alone may be where the bounds were taken from the data. Nor is it clipping where as many lie
    within a few numbers of float32 beside the bound: in a box that is far from 0 for its width,
    those are so far apart that a density has draws that are rounded to the bound.
    """

    def piled(beyond: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Of distances beyond the bound, `[N, D]`."""
        finite = np.where(np.isfinite(bound), bound, 0.0).astype(np.float32)
        beside = -_BESIDE * np.abs(np.spacing(finite).astype(np.float64))
        at = beyond >= 0
        near = (beyond < 0) & (beyond >= beside[None])
        return at & ((at.sum(axis=0) > 1) & (at.sum(axis=0) > near.sum(axis=0)))[None]

    found = piled(low[None] - action, low) | piled(action - high[None], high)
    return np.asarray(found.any(axis=1))


def _normal(action: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return -0.5 * ((action - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
