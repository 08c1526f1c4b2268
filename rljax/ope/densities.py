"""How likely real actions are under independent Gaussians, and where draws are clipped to a box.

An environment that clips draws takes the bounds of its box with a probability of their own: there
the action has no density, but the mass of the Gaussian's tail. Ratios need the same measure for
both policies. N actions of D dimensions; a distance of any size is a finite number here.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

_EDGE = 1 - 1e-6  # of tanh, as in `rljax.distributions`


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

    One alone may be where the bounds were taken from the data.
    """
    at_low, at_high = action <= low[None], action >= high[None]
    found = (at_low & (at_low.sum(axis=0) > 1)[None]) | (at_high & (at_high.sum(axis=0) > 1)[None])
    return found.any(axis=1)


def _normal(action: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return -0.5 * ((action - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
