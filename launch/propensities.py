"""How likely a policy, and whoever made a log, is to do what was logged: ratios for `--ope`.

Where the log has no propensities, they are estimated by behavior cloning, each half of the episodes
by a clone of the other. So they are where real actions were clipped to their bounds: a logged
density is of the draw before that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from agents import bc
from rljax.agent import Agent
from rljax.loops import offline
from rljax.nn import torsos
from rljax.offline.dataset import Dataset
from rljax.ope import densities, kernels
from rljax.types import Box, Observation

_CHUNK = 4096  # rows that are looked at in one call
_LEAST = 1e-6  # of an estimated propensity: what was logged had a chance
_RARE = 1e-4  # mass beside the log that is as good as none
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the rule's bandwidth, among which SLOPE chooses
_CLOSE = 0.01  # difference of ln densities that is rounding
_ESTIMATED = "the propensities are estimated, and no interval shows their error"
_SMOOTHED = (
    "a greedy policy of real actions has no density: a kernel counts actions near its own, and no "
    "interval shows the bias of that"
)

Columns = TypeVar("Columns")  # arrays [N]


class Ratios(NamedTuple):
    """The weights of the log's rows; N rows, final observations too."""

    log_ratio: np.ndarray  # [N]: ln π(a|s) - ln b(a|s)
    uncovered: np.ndarray | None  # [N]: π's probability of what the log never holds; or unknown
    propensities: str  # "logged" or "estimated"
    caveats: tuple[str, ...] = ()  # what no interval shows
    kernel: dict[str, Any] | None = None  # for a greedy policy of real actions: how wide


Judge = Callable[[np.ndarray], tuple[float, float]]  # ratios [N] -> an estimate, half its interval


def of_choices(agent: Agent, policy: Any, dataset: Dataset, *, greedy: bool, seed: int) -> Ratios:
    """The ratios where actions are one of several."""
    said = decisions(agent, policy, dataset.rows.observation, greedy=greedy, seed=seed)
    chances = said["probabilities"]
    if greedy:
        chances = np.eye(chances.shape[1])[said["action"].astype(int)]
    known = "log_prob" in dataset.rows.extras
    behavior = np.asarray(
        dataset.rows.extras["log_prob"] if known else _cloned_choices(dataset, seed), np.float64
    )
    with np.errstate(divide="ignore"):
        log_ratio = np.log(_of_action(chances, dataset)) - behavior
    taken = np.unique(np.asarray(dataset.rows.action)[dataset.rows.valid])
    never = np.setdiff1d(np.arange(chances.shape[1]), taken)
    uncovered = chances[:, never].sum(axis=1)
    rare = uncovered[dataset.rows.valid].mean() < _RARE
    return Ratios(log_ratio, None if rare else uncovered, *_source(known))


def of_reals(
    agent: Agent,
    policy: Any,
    dataset: Dataset,
    *,
    deviations: float | None,
    judge: Judge | None,
    seed: int,
) -> Ratios:
    """The ratios where actions are of a box: of densities; or with `judge` of a greedy policy's.

    The kernel is Gaussian, `deviations` of the logged actions wide; for None, SLOPE chooses among
    multiples of Scott's rule.

    Raises:
        ValueError: the policy does not tell its density; or, with `judge`, all logged actions agree
            in a dimension.
    """
    said = decisions(agent, policy, dataset.rows.observation, greedy=judge is not None, seed=seed)
    action = np.asarray(dataset.rows.action, np.float64)
    low, high = _bounds(agent)
    steps = dataset.rows.valid
    if judge is not None:
        _check_spread(action[steps])
    clipped = bool(densities.clipped(action[steps], low, high).any())
    known = "log_prob" in dataset.rows.extras and not clipped
    if known:
        behavior = np.asarray(dataset.rows.extras["log_prob"], np.float64)
    else:
        behavior = _cloned_reals(dataset, seed, clipped=clipped)

    def smoothed(bandwidth: np.ndarray) -> np.ndarray:
        target = np.clip(said["action"], low[None], high[None])
        if clipped:  # as if π had this noise, clipped as what was logged
            scale = np.broadcast_to(bandwidth, target.shape)
            return densities.clipped_normal(action, target, scale, low, high) - behavior
        within = densities.log_mass_within(target, bandwidth, low, high)
        return kernels.log_ratio(target, action, behavior, bandwidth) - within

    source, caveats = _source(known)
    if judge is None:
        return Ratios(_density(agent, said, action, clipped) - behavior, None, source, caveats)
    spread = action[steps].std(axis=0)
    rule = kernels.rule_of_thumb(action[steps])
    widths = [spread * deviations] if deviations else [rule * factor for factor in _MULTIPLES]
    judged = [judge(smoothed(width)) for width in widths] if len(widths) > 1 else [(0.0, 0.0)]
    width = widths[kernels.slope(*zip(*judged, strict=True))]
    kernel = {
        "kernel": "gaussian",
        "bandwidth": width.tolist(),
        "deviations": float((width / spread)[0]),
        "chosen_by": "--ope_bandwidth" if deviations else "SLOPE",
    }
    return Ratios(smoothed(width), None, source, (*caveats, _SMOOTHED), kernel)


def decisions(
    agent: Agent, policy: Any, observations: Observation, *, greedy: bool, seed: int
) -> dict[str, np.ndarray]:
    """What a feed-forward policy does, "action", and says of it, the extras of `act`, float64.

    `[N, ...]` for observations `[N, ...]`.
    """

    @jax.jit
    def chunk(seen: Observation, key: jax.Array) -> dict[str, jax.Array]:
        _, action, extras = agent.act(policy, (), seen, key, greedy)
        return {"action": action, **extras}

    count = len(jax.tree.leaves(observations)[0])
    found = []
    for first in range(0, count, _CHUNK):
        # The last one is padded with its own last row: one size is one compilation.
        places = np.minimum(np.arange(first, first + _CHUNK), count - 1)
        seen = jax.tree.map(lambda x, places=places: x[places], observations)
        found.append(chunk(seen, jax.random.fold_in(jax.random.key(seed), first)))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *jax.device_get(found))
    return {name: np.asarray(column, np.float64) for name, column in joined.items()}


def crossed(dataset: Dataset, seed: int, learn: Callable[[Dataset], Columns]) -> Columns:
    """Each half of the episodes as `learn` sees it from the other half; from itself if it is alone.

    `learn` gives arrays `[N]` for all rows of `dataset`. What is fitted to the rows that it is
    asked about has learned their chance, too, and estimates would not show it.
    """
    count = dataset.num_episodes
    if count < 2:
        return learn(dataset)
    half = np.random.default_rng(seed).permutation(count) < count // 2
    row = np.repeat(half, np.diff(dataset.starts))
    one, other = (
        learn(dataset.select(np.flatnonzero(half != fold).tolist())) for fold in (False, True)
    )
    return jax.tree.map(lambda x, y: np.where(row, y, x), one, other)


def clone(dataset: Dataset, seed: int, updates: int = 5_000, **settings: Any) -> tuple[Agent, Any]:
    """Who did what was logged, as far as it can be told: an agent and its policy."""
    vector = torsos.is_vector(dataset.spec)  # a large number beside others would hide them
    config = bc.Config(
        total_updates=updates, hidden_sizes=(64, 64), normalize_observation=vector, **settings
    )
    agent = bc.make(config, dataset.spec)
    loop = dataclasses.replace(bc.loop(config), seed=seed, num_devices=1)
    state = offline.init(agent, dataset, loop)
    return agent, offline.learned(agent, dataset, state, loop).train.policy


def _cloned_choices(dataset: Dataset, seed: int) -> np.ndarray:
    """Estimated ln propensity of each logged action, `[N]`, by a clone that has not seen it.

    Raises ValueError where there is one episode only.
    """
    _check_count(dataset)

    def learn(others: Dataset) -> np.ndarray:
        agent, policy = clone(others, seed)
        seen = dataset.rows.observation
        said = decisions(agent, policy, seen, greedy=False, seed=seed)
        return np.log(np.maximum(_of_action(said["probabilities"], dataset), _LEAST))

    return crossed(dataset, seed, learn)


def _cloned_reals(dataset: Dataset, seed: int, *, clipped: bool) -> np.ndarray:
    """The same for real actions: ln density, and of clipped ones ln mass, by Gaussian clones."""
    _check_count(dataset)
    action = np.asarray(dataset.rows.action, np.float64)

    def learn(others: Dataset) -> np.ndarray:
        agent, policy = clone(others, seed, state_dependent_std=True)
        seen = dataset.rows.observation
        said = decisions(agent, policy, seen, greedy=False, seed=seed)
        return _density(agent, said, action, clipped)

    return crossed(dataset, seed, learn)


def _density(
    agent: Agent, said: dict[str, np.ndarray], action: np.ndarray, clipped: bool
) -> np.ndarray:
    """Ln density of given actions, `[N]`, by what the policy says of its own.

    Agents say mean and scale, of a Gaussian that may be squashed: it is the one which gives their
    own draws the `log_prob` that they say.
    """
    low, high = _bounds(agent)
    if "mean" in said and "scale" in said:
        gaussian = said["mean"], said["scale"]
        drawn, own = said["action"], said["log_prob"]
        near = _CLOSE * drawn.shape[1]
        if np.median(np.abs(densities.normal(drawn, *gaussian) - own)) < near:
            if clipped:
                return densities.clipped_normal(action, *gaussian, low, high)
            return densities.normal(action, *gaussian)
        squashed = densities.squashed_normal
        bounded = np.isfinite(low).all() and np.isfinite(high).all()
        if bounded and np.median(np.abs(squashed(drawn, *gaussian, low, high) - own)) < near:
            found = squashed(action, *gaussian, low, high)
            # Where others are clipped a squashed draw never is: the bounds have no mass.
            at_bounds = densities.clipped(action, low, high) if clipped else False
            return np.where(at_bounds, -np.inf, found)
    raise ValueError("the policy does not tell the density of its actions: evaluate it --greedy.")


def _bounds(agent: Agent) -> tuple[np.ndarray, np.ndarray]:
    box = agent.spec.action
    assert isinstance(box, Box)
    return np.array(box.low, np.float64), np.array(box.high, np.float64)


def _source(known: bool) -> tuple[str, tuple[str, ...]]:
    return ("logged", ()) if known else ("estimated", (_ESTIMATED,))


def _check_spread(action: np.ndarray) -> None:
    """Raises ValueError where a kernel would have no width; deviations of constants may be > 0."""
    same = np.ptp(action, axis=0) == 0
    if same.any():
        dimension = int(np.argmax(same))
        raise ValueError(
            f"all logged actions are {action[0, dimension]:g} in dimension {dimension}, so that "
            "the log cannot tell what any other would bring: leave that dimension out of log and "
            "policy, or evaluate without --greedy."
        )


def _check_count(dataset: Dataset) -> None:
    if dataset.num_episodes < 2:
        raise ValueError(
            "the log has no propensities, and one episode is too few to estimate them."
        )


def _of_action(chances: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.take_along_axis(chances, np.asarray(dataset.rows.action)[:, None], axis=1)[:, 0]
