"""What off-policy evaluation reads: logged episodes with the ratio of the two policies.

Episodes are rows, padded to the longest one. Behind an episode's end its weight stays what it was
and its reward is 0: the episode goes on in a state that pays nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Episodes of a behavior policy b, to be weighed for a policy π. Padding becomes 0 here.

    Raises:
        ValueError: shapes do not fit, a row has no step or a gap, or a number is not one. A
            `log_ratio` may be -inf (π never does that) and +inf (the log claims that b never did),
            but estimators refuse the latter.
    """

    # Shapes are checked here in words, for whoever loads a log, not by annotations.
    reward: np.ndarray  # [E, T]
    log_ratio: np.ndarray  # [E, T]: ln π(a_t|s_t) - ln b(a_t|s_t)
    valid: np.ndarray  # bool [E, T]: True for the steps that were made
    discount: float  # γ, in [0, 1]
    q: np.ndarray | None = None  # [E, T]: a model's Q_π(s_t, a_t)
    v: np.ndarray | None = None  # [E, T]: a model's V_π(s_t) = Σ_a π(a|s_t) Q_π(s_t, a)
    first_value: np.ndarray | None = None  # [E]: V_π(s_0), if `v` is not known
    # [E]: V_π of where the last step led to, if a time limit cut the episode; 0 if it terminated
    last_value: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"the discount must lie in [0, 1], not {self.discount}.")
        for name in ("reward", "log_ratio", "q", "v"):
            column = getattr(self, name)
            if column is not None:
                column = np.where(self.valid, column, 0.0).astype(np.float64)
                _check_numbers(name, column)
                object.__setattr__(self, name, column)  # the one write, before anyone has seen it
        for name in ("first_value", "last_value"):
            column = getattr(self, name)
            if column is not None:
                _check_numbers(name, column)
                object.__setattr__(self, name, column.astype(np.float64))

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.reward)

    @property
    def num_steps(self) -> int:
        """T, the length of the longest episode, padding of all included."""
        return self.reward.shape[1]


def from_episodes(
    reward: Sequence[np.ndarray],
    log_ratio: Sequence[np.ndarray],
    discount: float,
    *,
    q: Sequence[np.ndarray] | None = None,
    v: Sequence[np.ndarray] | None = None,
    last_value: Float[np.ndarray, " E"] | None = None,
) -> Trajectories:
    """Pads episodes, an array `[T_i]` of each quantity per episode, to the longest one.

    Raises:
        ValueError: there is no episode, or the arrays of an episode differ in length.
    """
    if not len(reward):
        raise ValueError("there is no episode to evaluate a policy on.")
    lengths = np.array([len(episode) for episode in reward])
    valid = np.arange(lengths.max())[None] < lengths[:, None]

    def padded(name: str, episodes: Sequence[np.ndarray]) -> np.ndarray:
        found = np.array([len(episode) for episode in episodes])
        if found.shape != lengths.shape or (found != lengths).any():
            raise ValueError(f"{name} must have one number for each of the rewards of an episode.")
        column = np.zeros(valid.shape)
        column[valid] = np.concatenate(episodes)
        return column

    return Trajectories(
        padded("reward", reward),
        padded("log_ratio", log_ratio),
        valid,
        discount,
        None if q is None else padded("q", q),
        None if v is None else padded("v", v),
        last_value=last_value,
    )


def log_weights(trajectories: Trajectories) -> Float[np.ndarray, "E T"]:
    """Sums of the log-ratios up to each step, ln ρ_t; behind an episode's end the last one stays.

    Raises:
        ValueError: a ratio is infinite, since b cannot have done what it never does.
    """
    infinite = np.argwhere(np.isposinf(trajectories.log_ratio))
    if len(infinite):
        episode, step = infinite[0]
        raise ValueError(
            f"episode {episode} has an action in step {step} whose logged propensity is 0: what "
            "was logged must have had a chance."
        )
    return np.cumsum(trajectories.log_ratio, axis=1)


def log_discounts(trajectories: Trajectories) -> Float[np.ndarray, " T"]:
    """t·ln γ; -inf behind the first step for γ = 0."""
    steps = np.arange(trajectories.num_steps)
    if trajectories.discount == 0:
        return np.where(steps == 0, 0.0, -np.inf)
    return steps * np.log(trajectories.discount)


def rewards(trajectories: Trajectories) -> Float[np.ndarray, "E T"]:
    """Rewards, to which the last step of an episode adds γ·`last_value`, if that is given.

    So an episode that a time limit cut counts for what π would still have earned.
    """
    if trajectories.last_value is None:
        return trajectories.reward
    last = np.zeros_like(trajectories.reward)
    rows = np.arange(trajectories.num_episodes)
    last[rows, trajectories.valid.sum(axis=1) - 1] = trajectories.discount * trajectories.last_value
    return trajectories.reward + last


def returns(trajectories: Trajectories) -> Float[np.ndarray, " E"]:
    """Discounted returns of the episodes as they were logged, `last_value` included."""
    return rewards(trajectories) @ np.exp(log_discounts(trajectories))


def _check_shapes(trajectories: Trajectories) -> None:
    valid = trajectories.valid
    if valid.ndim != 2 or 0 in valid.shape or valid.dtype != bool:
        raise ValueError(
            "valid must be booleans [episodes, steps], one at least of each, not "
            f"{valid.dtype} {valid.shape}."
        )
    for name in ("reward", "log_ratio", "q", "v", "first_value", "last_value"):
        column = getattr(trajectories, name)
        due = valid.shape[:1] if name.endswith("_value") else valid.shape
        if column is not None and column.shape != due:
            raise ValueError(f"{name} must have the shape {due}, not {column.shape}.")
    if not valid[:, 0].all():
        raise ValueError(f"episode {int(np.argmin(valid[:, 0]))} has no first step.")
    gaps = (valid[:, 1:] & ~valid[:, :-1]).any(axis=1)
    if gaps.any():
        raise ValueError(f"the steps of episode {int(np.argmax(gaps))} have a gap.")


def _check_numbers(name: str, column: np.ndarray) -> None:
    wrong = np.isnan(column) if name == "log_ratio" else ~np.isfinite(column)
    if wrong.any():
        place = tuple(int(x) for x in np.argwhere(wrong)[0])
        where = f"episode {place[0]}" + (f", step {place[1]}" if len(place) > 1 else "")
        raise ValueError(f"{name} of {where} is {column[place]}, which is no number to add up.")
