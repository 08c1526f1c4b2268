"""When not to trust an estimate, and why, in words.

Weights that look harmless can rest on one episode, and estimators that differ cannot all be right.
The thresholds are rules of thumb: they warn, they prove nothing.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from rljax.ope import trajectories as trajectories_lib
from rljax.ope.intervals import Estimate, Interval
from rljax.ope.trajectories import Trajectories

_FEW, _SOME = 10, 50  # effective episodes below which nothing, and little, can be said
_MOST, _MUCH = 0.5, 0.1  # share of the whole weight that one episode may carry
_UNCOVERED = 0.01  # share of π's decisions that the log could not contain
_DEVIATIONS = 4.0  # standard errors that the mean weight may be from 1
_FACTOR = 2.0  # further from 1 than this, it says that most of π's doings are not in the log

Trust = Literal["high", "low", "none"]


class Verdict(NamedTuple):
    """How far to trust the estimates. Each reason is a clause in words, the gravest first."""

    trust: Trust
    reasons: tuple[str, ...]


def effective_sizes(log_weight: Float[np.ndarray, "E T"]) -> Float[np.ndarray, " T"]:
    """(Σ ρ)² / Σ ρ² at each step: of how many equal weights the variance would be the same.

    Kong 1992. From 1, where one episode carries all, to E; 0 where no episode has any weight.
    """
    weight = _relative(log_weight)
    square = (weight**2).sum(axis=0)
    return weight.sum(axis=0) ** 2 / np.where(square > 0, square, 1.0)


def largest_shares(log_weight: Float[np.ndarray, "E T"]) -> Float[np.ndarray, " T"]:
    """Max ρ / Σ ρ at each step; 0 where no episode has any weight."""
    weight = _relative(log_weight)
    total = weight.sum(axis=0)
    return weight.max(axis=0) / np.where(total > 0, total, 1.0)


def uncovered_mass(
    target: Float[np.ndarray, "*S A"], behavior: Float[np.ndarray, "*S A"]
) -> Float[np.ndarray, "*S"]:
    """π's probability of what b never does: no weight can make up for it."""
    return np.where(behavior > 0, 0.0, target).sum(axis=-1)


def episodes_for_skewness(contributions: Float[np.ndarray, " E"]) -> float:
    """25 G², G being the skewness: fewer give intervals that hold less often than they say.

    Cochran's rule (1977, "Sampling techniques"): with more, 95 % intervals fail 6 times in 100 at
    most. Weights alone do not show it, where rewards are rare.
    """
    largest = np.abs(contributions).max()
    if largest == 0:
        return 0.0
    scaled = contributions / largest  # whatever the unit of the reward, nothing overflows
    apart = scaled - scaled.mean()
    variance = (apart**2).mean()
    if variance <= 1e-12 * (scaled**2).mean():
        return 0.0
    return float(25 * ((apart / np.sqrt(variance)) ** 3).mean() ** 2)


def verdict(
    trajectories: Trajectories,
    estimates: Sequence[Estimate] = (),
    uncovered: Float[np.ndarray, "E T"] | None = None,
    caveats: Sequence[str] = (),
) -> Verdict:
    """Judges the weights, and whether estimators agree.

    Args:
        trajectories: what was logged.
        estimates: with their intervals, to be compared with each other.
        uncovered: `uncovered_mass` of each step, if all probabilities were logged.
        caveats: what else is wrong by an amount that no interval shows, in words: trust is low.
    """
    parts = [
        _of_weights(trajectories),
        _of_mean_weight(trajectories),
        _of_support(trajectories, uncovered),
        ([], _of_returns(trajectories, estimates)),
        ([], _of_agreement(estimates)),
        ([], list(caveats)),
    ]
    none = [reason for part, _ in parts for reason in part]
    low = [reason for _, part in parts for reason in part]
    if none or low:
        return Verdict("none" if none else "low", (*none, *low))
    size = effective_sizes(trajectories.log_ratio.cumsum(axis=1))[-1]
    unit = _unit(trajectories)
    sound = f"{size:.0f} of {trajectories.num_episodes} {unit}s are effective and estimators agree"
    return Verdict("high", (sound,))


def _of_weights(trajectories: Trajectories) -> tuple[list[str], list[str]]:
    """Reasons for no trust, and for little."""
    unit, num = _unit(trajectories), trajectories.num_episodes
    if num == 1:
        return [f"one {unit} only: its spread is unknown"], []
    if np.isposinf(trajectories.log_ratio).any():
        return ["the log holds actions whose propensity is given as 0"], []
    log_weight = trajectories_lib.log_weights(trajectories)
    sizes, share = effective_sizes(log_weight), largest_shares(log_weight)[-1]
    if sizes[-1] == 0:
        return [f"no overlap: the policy would have taken the actions of no {unit} in the log"], []
    none, low = [], []
    if share > _MUCH:
        (none if share > _MOST else low).append(
            f"one {unit} carries {_percent(share)} of the weight"
        )
    if sizes[-1] < _SOME:
        text = f"the weights are worth {sizes[-1]:.1f} {unit}s of {num}"
        if trajectories.num_steps > 1 and sizes[0] >= _FEW > sizes[-1]:
            reach = int(np.argmax(sizes < _FEW))
            text += f", and fewer than {_FEW} from step {reach} on"
        (none if sizes[-1] < _FEW else low).append(text)
    return none, low


def _of_mean_weight(trajectories: Trajectories) -> tuple[list[str], list[str]]:
    if trajectories.num_episodes == 1 or np.isposinf(trajectories.log_ratio).any():
        return [], []
    log_weight = trajectories_lib.log_weights(trajectories)[:, -1]
    if np.isneginf(log_weight).all():
        return [], []  # no overlap: said elsewhere
    if log_weight.max() > 300:  # the square is no number
        return ["the weights average more than 1e100 where 1 is due: propensities are wrong"], []
    weight = np.exp(log_weight)
    mean, error = weight.mean(), weight.std(ddof=1) / np.sqrt(len(weight))
    if abs(mean - 1) <= _DEVIATIONS * error + 1e-6:
        return [], []
    reason = (
        f"the weights average {mean:.3g} where 1 is due: propensities are wrong, or the policy "
        "does what the log never holds"
    )
    return ([], [reason]) if 1 / _FACTOR <= mean <= _FACTOR else ([reason], [])


def _of_support(
    trajectories: Trajectories, uncovered: Float[np.ndarray, "E T"] | None
) -> tuple[list[str], list[str]]:
    if uncovered is None:
        return [], []
    mass = float(uncovered[trajectories.valid].mean())
    if mass == 0:
        return [], []
    reason = f"{_percent(mass)} of what the policy would do has no chance to be in the log"
    return ([], [reason]) if mass <= _UNCOVERED else ([reason], [])


def _of_returns(trajectories: Trajectories, estimates: Sequence[Estimate]) -> list[str]:
    returns = trajectories_lib.returns(trajectories)
    low, high = float(returns.min()), float(returns.max())
    room = 1e-9 * (abs(low) + abs(high))
    reasons = [
        f"{name} says {value:.4g}, and no return in the log is {'below' if below else 'above'} "
        f"{low if below else high:.4g}"
        for name, value, *_ in estimates
        if value is not None and ((below := value < low - room) or value > high + room)
    ]
    if high - low <= room and trajectories.num_episodes > 1:
        reasons.append(f"all returns in the log are {low:.4g}: their spread is unknown")
    return reasons


def _of_agreement(estimates: Sequence[Estimate]) -> list[str]:
    reasons = [f"{row.name} has no answer: {row.note}" for row in estimates if row.value is None]
    reasons += [
        f"{row.name} has no interval"
        for row in estimates
        if row.value is not None and row.low is None and not row.note
    ]
    known = [
        (row.name, Interval(row.low, row.high))
        for row in estimates
        if row.low is not None and row.high is not None
    ]
    reasons += [
        f"the interval of {name} has no width: all that carries weight earned the same"
        for name, interval in known
        if interval.low == interval.high
    ]
    pairs = sorted(itertools.combinations(known, 2), key=lambda pair: _gap(pair[0][1], pair[1][1]))
    if pairs:
        (one, first), (other, second) = pairs[-1]
        scale = max(abs(end) for end in (*first, *second))
        if _gap(first, second) > 1e-9 * scale:  # not by rounding
            reasons.append(
                f"estimators disagree: {one} lies in {_range(first)}, {other} in {_range(second)}"
            )
    alone = [(row.name, row.value) for row in estimates if row.value is not None and row.note]
    beyond = [
        (_beyond(value, interval), name, value, other, interval)
        for name, value in alone
        for other, interval in known
    ]
    if beyond:
        far, name, value, other, interval = max(beyond, key=lambda each: each[0])
        if far > 0:
            reasons.append(
                f"estimators disagree: {name} says {value:.4g}, {other} lies in {_range(interval)}"
            )
    return reasons


def _relative(log_weight: Float[np.ndarray, "E T"]) -> Float[np.ndarray, "E T"]:
    heaviest = log_weight.max(axis=0)
    return np.exp(log_weight - np.where(np.isneginf(heaviest), 0.0, heaviest)[None])


def _unit(trajectories: Trajectories) -> str:
    return "event" if trajectories.num_steps == 1 else "episode"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.01 else 2}f} %"


def _gap(one: Interval, other: Interval) -> float:
    """Between two intervals; negative where they overlap."""
    return max(one.low, other.low) - min(one.high, other.high)


def _beyond(value: float, interval: Interval) -> float:
    """How far a value of unknown error lies outside of an interval, if it had one as wide.

    Two 95 % intervals of one width part where their middles are a width apart.
    """
    half = (interval.high - interval.low) / 2
    room = half + 1e-9 * max(abs(value), abs(interval.low), abs(interval.high))
    return max(interval.low - room - value, value - interval.high - room)


def _range(interval: Interval) -> str:
    return f"[{interval.low:.4g}, {interval.high:.4g}]"
