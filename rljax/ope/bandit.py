"""Contextual bandits: one decision, one reward. π is weighed by w = π(a|x) / b(a|x) per event.

`q` is a model's q(x, a) of the action that was taken and `v` its Σ_a π(a|x) q(x, a). The λ of
`switch_dr` and `dr_os` leads from the direct method at 0, whose model may be wrong, to doubly
robust at infinity, whose weights may be large. Left out of what the Open Bandit Pipeline has:
weights by a classifier, and doubly robust estimates with sub-Gaussian ones.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import WeightedMeans, plain, times_weight

ROUNDING = 1e-5  # of a log weight at a threshold: propensities are kept in single precision


@dataclasses.dataclass(frozen=True)
class Events:
    """Logged decisions.

    Raises:
        ValueError: a number is not finite; a `log_ratio` alone may be -inf, where π never does it.
    """

    reward: np.ndarray  # [N]
    log_ratio: np.ndarray  # [N]: ln w = ln π(a|x) - ln b(a|x)
    q: np.ndarray | None = None  # [N]
    v: np.ndarray | None = None  # [N]

    def __post_init__(self) -> None:
        as_trajectories(self)  # which checks
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if column is not None:
                object.__setattr__(self, field.name, column.astype(np.float64))


def as_trajectories(events: Events) -> Trajectories:
    """Episodes of one step, for all that is said of trajectories, diagnostics for one."""

    def column(x: np.ndarray | None) -> np.ndarray | None:
        return None if x is None else x[:, None]

    valid = np.ones((len(events.reward), 1), bool)
    return Trajectories(
        events.reward[:, None],
        events.log_ratio[:, None],
        valid,
        1.0,
        q=column(events.q),
        v=column(events.v),
    )


def policy_value(
    probability: Float[np.ndarray, "N A"], q: Float[np.ndarray, "N A"]
) -> Float[np.ndarray, " N"]:
    """Σ_a π(a|x) q(x, a), the `v` of events.

    Raises:
        ValueError: the probabilities of an event do not sum to 1, or one is negative.
    """
    total = probability.sum(axis=1)
    wrong = ~np.isclose(total, 1.0, rtol=0, atol=1e-5) | (probability < 0).any(axis=1)
    if wrong.any():
        event = int(np.argmax(wrong))
        raise ValueError(
            f"the probabilities of event {event} sum to {total[event]:g}, and must be at least 0 "
            "and sum to 1."
        )
    return (probability * q).sum(axis=1)


def ipw(events: Events, clip: float = np.inf) -> WeightedMeans:
    """Inverse propensity weighting: the mean of min(w, clip)·r. Unbiased without the clip."""
    _positive("clip", clip)
    return plain(times_weight(np.minimum(_log_weights(events), np.log(clip)), events.reward))


def snipw(events: Events) -> WeightedMeans:
    """Self-normalized IPW: Σ w·r / Σ w (Swaminathan & Joachims 2015)."""
    return WeightedMeans(events.reward[:, None], _log_weights(events)[:, None])


def sub_gaussian_ipw(events: Events, lambda_: float) -> WeightedMeans:
    """IPW with w / (1 - λ + λ·w), which is at most 1/λ (Metelli et al. 2021, with s = -1).

    λ in [0, 1]: 0 is IPW, 1 the mean reward of the log where π may act so.
    """
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"the λ of sub-Gaussian weights must lie in [0, 1], not {lambda_}.")
    weight = times_weight(_log_weights(events), np.ones_like(events.reward))
    divisor = np.where(weight > 0, 1 - lambda_ + lambda_ * weight, 1.0)
    return plain(weight / divisor * events.reward)


def dm(events: Events) -> WeightedMeans:
    """Direct method: the mean of v, the model taken at its word."""
    return plain(_model(events)[1])


def dr(events: Events, clip: float = np.inf) -> WeightedMeans:
    """Doubly robust: the mean of v + min(w, clip)·(r - q) (Dudík et al. 2014, arXiv:1503.02834)."""
    _positive("clip", clip)
    q, v = _model(events)
    log_weight = np.minimum(_log_weights(events), np.log(clip))
    return plain(v + times_weight(log_weight, events.reward - q))


def sndr(events: Events) -> WeightedMeans:
    """Self-normalized DR: the mean of v, and Σ w·(r - q) / Σ w."""
    q, v = _model(events)
    value = np.stack([v, events.reward - q], axis=1)
    return WeightedMeans(value, np.stack([np.zeros_like(v), _log_weights(events)], axis=1))


def switch_dr(events: Events, lambda_: float) -> WeightedMeans:
    """DR whose correction is dropped where w > λ (Wang et al. 2017, arXiv:1612.01205)."""
    _not_negative(lambda_)
    q, v = _model(events)
    log_weight = _log_weights(events)
    trusted = log_weight <= (np.log(lambda_) + ROUNDING if lambda_ > 0 else -np.inf)
    return plain(v + times_weight(log_weight, np.where(trusted, events.reward - q, 0.0)))


def dr_os(events: Events, lambda_: float) -> WeightedMeans:
    """DR with optimistic shrinkage: λ·w / (w² + λ) for w (Su et al. 2020, arXiv:1907.09623)."""
    _not_negative(lambda_)
    q, v = _model(events)
    if lambda_ == 0:
        return plain(v)
    # ln of w / (1 + w²/λ), which has no overflow and no inf/inf at λ = inf
    log_weight = _log_weights(events)
    shrink = np.logaddexp(0.0, 2 * log_weight - np.log(lambda_))
    return plain(v + times_weight(log_weight - shrink, events.reward - q))


def _log_weights(events: Events) -> Float[np.ndarray, " N"]:
    return trajectories_lib.log_weights(as_trajectories(events))[:, 0]


def _model(events: Events) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    if events.q is None or events.v is None:
        raise ValueError("this estimator needs a model of the rewards: give both q and v.")
    return events.q, events.v


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}.")


def _not_negative(lambda_: float) -> None:
    if not lambda_ >= 0:
        raise ValueError(f"λ must be at least 0, not {lambda_}.")
