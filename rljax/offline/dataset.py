"""A dataset of episodes in memory: rows as rollouts have them, one episode after another.

An episode of T steps is T + 1 rows: its steps, then the row that holds its final observation, which
is not `valid` (`rljax.types` has the legend). So no observation is stored twice, a termination is
told from a time limit, and what follows a step is the row behind it, never another episode's.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from rljax.types import Box, EnvSpec, Observation, Transition

_PART = 2**18  # rows that are looked at at once
LOG_PROB_ABOVE = 1e-6  # what rounding may add to the logarithm of a probability of 1
_SMALL = 1e-12  # of a variance beside the square of the mean: rounding of what is constant


class Episode(NamedTuple):
    """What happened between a reset and an ending; NumPy arrays."""

    observation: Observation  # [T + 1, ...]: the last is what the last step led to
    action: Any  # [T, ...]
    reward: Any  # float32 [T]
    terminated: bool  # by the task; else by a time limit, or where the log ends
    extras: Mapping[str, Any] = MappingProxyType({})  # [T], e.g. "log_prob": ln propensity


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows of E episodes, `[N, ...]`; NumPy arrays, as they are kept on the host."""

    spec: EnvSpec
    rows: Transition  # [N, ...]
    starts: np.ndarray  # int64 [E + 1]: each episode's first row; N at the end
    source: str = ""  # where it came from, for messages and provenance

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.starts) - 1

    @property
    def num_steps(self) -> int:
        """Steps of all episodes; rows that only hold a final observation are none."""
        return len(self.rows.reward) - self.num_episodes

    def episode(self, number: int) -> Episode:
        """One of the episodes, from 0; views of the rows."""
        first, end = self.starts[number : number + 2]
        seen = jax.tree.map(lambda x: x[first:end], self.rows.observation)
        steps = slice(first, end - 1)
        return Episode(
            seen,
            self.rows.action[steps],
            self.rows.reward[steps],
            bool(self.rows.discount[end - 2] == 0),
            {name: column[steps] for name, column in self.rows.extras.items()},
        )

    def episodes(self) -> Iterator[Episode]:
        """All of them, in order."""
        return map(self.episode, range(self.num_episodes))

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 `[E]`."""
        # Each by itself: differences of running sums forget what lies behind one large reward.
        return np.add.reduceat(self.rows.reward, self.starts[:-1], dtype=np.float64)

    @functools.cached_property
    def sha256(self) -> str:
        """Of all rows and of where episodes start, in hexadecimal: they are read for it, once."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.rows, self.starts)):
            whole: Any = np.ascontiguousarray(leaf)
            digest.update(whole)
        return digest.hexdigest()

    def select(self, numbers: Iterable[int]) -> "Dataset":
        """The dataset of these episodes only, in this order. Raises ValueError for none."""
        chosen = [self.episode(number) for number in numbers]
        return make(self.spec, chosen, self.source)


def make(spec: EnvSpec, episodes: Iterable[Episode], source: str = "", first: int = 0) -> Dataset:
    """Joins episodes to a dataset; messages count them from `first`.

    Raises:
        ValueError: there is none, or one is empty, or its lengths, shapes or numbers do not fit;
            the sentence names the episode.
    """
    parts = []
    for number, episode in enumerate(episodes, first):
        try:
            parts.append(_rows(spec, episode))
        except ValueError as error:
            raise ValueError(f"{source or 'the dataset'}: episode {number} {error}") from None
    if not parts:
        raise ValueError(f"{source or 'the dataset'} has no episode.")
    names = set(parts[0].extras)
    for number, part in enumerate(parts, first):
        if set(part.extras) != names:
            raise ValueError(
                f"{source or 'the dataset'}: episode {number} has {sorted(part.extras)} beside "
                f"its steps, and episode {first} has {sorted(names)}."
            )
    rows = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    lengths = [len(part.reward) for part in parts]
    return Dataset(spec, rows, np.concatenate([[0], np.cumsum(lengths)]), source)


def top(dataset: Dataset, fraction: float) -> Dataset:
    """The share `fraction` of the episodes, one at least, whose returns are the highest."""
    return dataset.select(np.flatnonzero(_are_best(dataset, fraction)).tolist())


def steps(dataset: Dataset, fraction: float = 1.0) -> np.ndarray:
    """Which rows are steps of the episodes of `top`, bool `[N]`, without a copy of those."""
    if fraction == 1:
        return np.asarray(dataset.rows.valid)
    chosen = np.repeat(_are_best(dataset, fraction), np.diff(dataset.starts))
    return chosen & dataset.rows.valid


def _are_best(dataset: Dataset, fraction: float) -> np.ndarray:
    """Which episodes are among the share with the highest returns, bool `[E]`."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the share of episodes must lie in (0, 1], not {fraction}.")
    count = max(1, round(fraction * dataset.num_episodes))
    found = np.zeros(dataset.num_episodes, bool)
    found[np.argsort(-dataset.returns(), kind="stable")[:count]] = True
    return found


def moments(dataset: Dataset, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of vectors over the steps, float32 `[O]`; final observations apart.

    `chosen` says which steps, as `steps` does; by default all.

    The variance of what never varies is 1: divided by nearly 0, its least change would drown all.

    Raises ValueError for anything but plain vectors.
    """
    features = dataset.rows.observation.features
    if not isinstance(features, np.ndarray) or features.dtype != np.float32:
        raise ValueError(f"{dataset.spec.name} shows no plain vectors to be normalized.")
    chosen = steps(dataset) if chosen is None else chosen
    count = np.count_nonzero(chosen)

    def mean_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Part by part: the rows may lie on disk, more than memory holds."""
        total = np.zeros(features.shape[1:])
        for at in range(0, len(chosen), _PART):
            part = slice(at, at + _PART)
            total += function(features[part][chosen[part]].astype(np.float64)).sum(axis=0)
        return total / count

    mean = mean_of(lambda x: x)
    variance = mean_of(lambda x: (x - mean[None]) ** 2)
    constant = variance <= _SMALL * np.maximum(mean**2, 1.0)
    return mean.astype(np.float32), np.where(constant, 1.0, variance).astype(np.float32)


def _rows(spec: EnvSpec, episode: Episode) -> Transition:
    """T + 1 rows. Raises ValueError with the end of a sentence that names the episode."""
    steps = len(episode.reward)
    if not steps:
        raise ValueError("has no step.")
    _check_lengths(episode, steps)
    _check_observation(spec, episode.observation)
    _check_action(spec, episode)
    if not np.isfinite(episode.reward).all():
        row = int(np.argmin(np.isfinite(episode.reward)))
        raise ValueError(f"has the reward {episode.reward[row]} in step {row}.")
    _check_extras(spec, episode)

    def padded(x: Any, dtype: Any) -> Any:
        x = np.asarray(x, dtype)
        return np.concatenate([x, np.zeros((1, *x.shape[1:]), dtype)])

    last = np.arange(steps + 1) == steps - 1
    discount: Any = np.where(last & episode.terminated, 0.0, 1.0).astype(np.float32)
    valid: Any = np.arange(steps + 1) < steps
    return Transition(
        Observation(*jax.tree.map(np.asarray, episode.observation)),
        padded(episode.action, spec.action.dtype),
        padded(episode.reward, np.float32),
        discount,
        valid,
        {
            # As the event logs' readers have it.
            name: padded(column, np.float64 if name == "log_prob" else np.float32)
            for name, column in episode.extras.items()
        },
    )


def _check_lengths(episode: Episode, steps: int) -> None:
    columns = {"action": episode.action, **episode.extras}
    for name, column in columns.items():
        if len(column) != steps:
            raise ValueError(f"has {len(column)} of {name} and {steps} rewards.")
    for array in jax.tree.leaves(episode.observation):
        if len(array) != steps + 1:
            raise ValueError(
                f"has {len(array)} observations for {steps} steps: there must be one more, what "
                "the last step led to."
            )


def _check_extras(spec: EnvSpec, episode: Episode) -> None:
    for name, column in episode.extras.items():
        values = np.asarray(column)
        fits = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if name == "log_prob" and not isinstance(spec.action, Box):
            fits &= values <= LOG_PROB_ABOVE
        if not fits.all():
            row = int(np.argmin(fits))
            raise ValueError(
                f"has the {name} {values[row]} in step {row}, "
                + ("of a propensity outside (0, 1]." if name == "log_prob" else "no finite number.")
            )


def _check_observation(spec: EnvSpec, observation: Observation) -> None:
    alone = not spec.named_parts
    features = {"observation": observation.features} if alone else observation.features
    for name, shape, dtype in spec.parts:
        if name not in features or features[name].shape[1:] != shape:
            found = features[name].shape[1:] if name in features else "nothing"
            raise ValueError(f"shows {found} where {spec.name} has {name} of shape {shape}.")
        if features[name].dtype != dtype:
            raise ValueError(f"shows {name} as {features[name].dtype}, not as {dtype}.")
        if dtype == "float32" and not np.isfinite(features[name]).all():
            flat = np.isfinite(features[name]).reshape(len(features[name]), -1).all(axis=1)
            raise ValueError(f"shows something that is not finite in row {int(np.argmin(flat))}.")
    if spec.has_mask != (observation.mask is not None):
        raise ValueError(f"{'lacks' if spec.has_mask else 'has'} masks of allowed actions.")


def _check_action(spec: EnvSpec, episode: Episode) -> None:
    action, steps = np.asarray(episode.action), len(episode.reward)
    if action.shape != (steps, *spec.action.shape):
        raise ValueError(
            f"has actions of shape {action.shape[1:]}, and {spec.name} of {spec.action.shape}."
        )
    if isinstance(spec.action, Box):
        fits = np.isfinite(action).all(axis=1)
        low, high = (np.array(x, np.float32) for x in (spec.action.low, spec.action.high))
        fits &= ((action >= low[None]) & (action <= high[None])).all(axis=1)
    else:
        counts = np.array(getattr(spec.action, "nvec", getattr(spec.action, "num_actions", 0)))
        fits = ((action >= 0) & (action < counts)).reshape(steps, -1).all(axis=1)
        mask = episode.observation.mask
        if mask is not None and action.ndim == 1:
            fits &= np.take_along_axis(np.asarray(mask)[:-1], action[:, None] % counts, 1)[:, 0]
    if not fits.all():
        row = int(np.argmin(fits))
        raise ValueError(
            f"takes the action {action[row].tolist()} in step {row}, which is not allowed there."
        )
