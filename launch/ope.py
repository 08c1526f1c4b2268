"""A policy's value by the log of another: `launch.evaluate --dataset=... --ope`.

    workdir/ope.json        estimates with intervals, and how far to trust them, and why
    workdir/plots/ope.png   the same as a forest plot

Episodes of one step that all end there are a contextual bandit's and get its estimators. Values of
longer ones are discounted, as the agent's config has it (0.99 where it has none), and go on behind
a time limit. Both the propensities, where the log has none, and the model of the value are learned
crosswise: each half of the episodes is judged by what was learned from the other.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from launch import data, propensities, trained
from launch.propensities import Ratios
from launch.trained import Trained
from rljax import drift, files
from rljax.offline import collection, sources
from rljax.offline.dataset import Dataset
from rljax.ope import (
    diagnostics,
    dice,
    direct,
    dynamics,
    importance,
    intervals,
    table,
    trajectories,
    visits,
    weighted,
)
from rljax.ope.bandit import Events
from rljax.ope.trajectories import Trajectories
from rljax.types import Box, Discrete

_SHIFT_ROWS = 500  # of each sample that is compared
_MODELED = 0.05  # share of the returns that may be the model's alone
_FEW = 10  # effective episodes
_SHIFT_EPISODES = 32  # played for the states that the policy meets


class Options(NamedTuple):
    """What is asked for."""

    greedy: bool = False  # the policy without its noise
    updates: int = 20_000  # of the model of the value
    seed: int = 0
    bandwidth: float | None = None  # of the kernel, in deviations of the actions; None: by SLOPE
    dice_updates: int = 0  # of the network of ratios; 0: no DICE


def report(run: Trained, path: str, options: Options) -> tuple[table.Report, dict[str, Any]]:
    """Evaluates the policy by the episodes of a dataset; and what belongs to the report.

    Raises ValueError where the dataset is of something else, or the policy cannot be weighed.
    """
    dataset = _opened(run, path)
    if options.bandwidth is not None and not isinstance(dataset.spec.action, Box):
        raise ValueError(f"--ope_bandwidth is of real actions, and those of {path} are choices.")
    bandit = is_bandit(dataset)
    greedy, seed = options.greedy, options.seed
    discount = 1.0 if bandit else float(getattr(run.experiment.config, "discount", 0.99))
    target = direct.target_of(run.agent, run.policy, greedy=greedy)
    values, notes = _values(dataset, target, discount, options)
    ratios = _ratios(run, dataset, values, discount, options)
    logged = _trajectories(dataset, ratios.log_ratio, values, discount)
    caveats = (*ratios.caveats, *_behind_limits(dataset, logged))
    visited, lacking = _visits(dataset, ratios.log_ratio, logged, options)
    told = {
        "dataset": path,
        "step": run.step,
        "mode": "greedy" if greedy else "sampled",
        "kind": "bandit" if bandit else "episodes",
        "discount": discount,
        "propensities": ratios.propensities,
        "kernel": ratios.kernel,
        "notes": [*notes, *lacking, *caveats],
        "shift": shift(run, dataset, greedy=greedy, seed=seed),
        "dynamics": None,
        "dice": None if visited is None else {"mass": visits.mass(logged, visited)},
    }
    if not bandit:
        try:
            errors = dynamics.check(dataset, dynamics.Config(seed=seed))
            told["dynamics"] = dynamics.to_json(errors)
        except ValueError as error:
            told["notes"].append(f"no check of dynamics: {error}")
    bootstrap = table.Bootstrap(seed=seed)
    steps = dataset.rows.valid
    uncovered = None if ratios.uncovered is None else ratios.uncovered[steps]
    if bandit:
        events = Events(
            logged.reward[:, 0],
            logged.log_ratio[:, 0],
            None if logged.q is None else logged.q[:, 0],
            None if logged.v is None else logged.v[:, 0],
        )
        found = table.evaluate_events(
            events, uncovered=uncovered, caveats=caveats, bootstrap=bootstrap
        )
        return found, told
    if uncovered is not None:
        uncovered = _padded(uncovered, logged)
    found = table.evaluate(
        logged, visits=visited, uncovered=uncovered, caveats=caveats, bootstrap=bootstrap
    )
    return found, told


def is_bandit(dataset: Dataset) -> bool:
    """Whether every episode is one decision that ended it: nothing follows from an action."""
    alone = bool((np.diff(dataset.starts) == 2).all())
    return alone and not dataset.rows.discount[dataset.rows.valid].any()


def shift(run: Trained, dataset: Dataset, *, greedy: bool, seed: int) -> dict[str, Any]:
    """How far the policy is from the log, as MMD² with the p-value of a permutation test.

    `actions` compares logged steps, state and action together, with what the policy would have done
    in others of the logged states; `states` those with the states that it meets when it plays, if
    the run has an --env and its actions are sampled. Empty for anything but plain vectors.
    """
    seen = dataset.rows.observation.features
    if not isinstance(seen, np.ndarray) or seen.dtype == np.uint8:
        return {}
    rng = np.random.default_rng(seed)
    steps = rng.permutation(np.flatnonzero(dataset.rows.valid))[: 2 * _SHIFT_ROWS]
    if len(steps) < 4:
        return {}
    logged, others = np.array_split(steps, 2)
    shown = jax.tree.map(lambda x: x[others], dataset.rows.observation)
    said = propensities.decisions(run.agent, run.policy, shown, greedy=greedy, seed=seed)

    def joined(rows: np.ndarray, action: np.ndarray) -> np.ndarray:
        flat = seen[rows].reshape(len(rows), -1)
        return np.concatenate([flat, _as_vectors(dataset, action)], axis=1)

    taken = np.asarray(dataset.rows.action)[logged]
    found = {"actions": drift.mmd(joined(logged, taken), joined(others, said["action"]), seed=seed)}
    if run.experiment.source.name and not greedy:
        env = trained.fresh_source(run.experiment)
        collect = collection.collector(run.agent, env, trained.EVAL_ENVS)
        episodes = collect(run.policy, _SHIFT_EPISODES, jax.random.key(seed))
        met = np.concatenate([episode.observation.features[:-1] for episode in episodes])
        met = met[rng.permutation(len(met))[:_SHIFT_ROWS]]
        flat = (x.reshape(len(x), -1) for x in (seen[logged], met))
        found["states"] = drift.mmd(*flat, seed=seed)
    return {name: measured._asdict() for name, measured in found.items()}


def foretold(errors: dict[str, Any]) -> str:
    """A sentence on how far ahead models of the log's dynamics see."""
    last = len(errors["observation"])
    ahead = sorted({step for step in (1, 5, 10, last) if step <= last})
    told = ", ".join(
        f"{errors['observation'][step - 1]:.2g} (unchanged: {errors['unchanged'][step - 1]:.2g}) "
        f"{step} ahead"
        for step in ahead
    )
    return (
        f"dynamics: error of learned models on {errors['num_episodes']} held-out episodes, in "
        f"deviations: {told}; of the log's own actions, not of the policy's"
    )


def write(found: table.Report, told: dict[str, Any], workdir: pathlib.Path) -> None:
    """Leaves the report and its plot in the workdir, each whole or as it was."""
    table.forest_plot(found, workdir / "plots" / "ope.png")
    whole = told | table.to_json(found)
    files.write_text(workdir / "ope.json", json.dumps(whole, indent=2) + "\n")


def _opened(run: Trained, path: str) -> Dataset:
    """The log, with the observations and actions of the policy.

    Raises ValueError where it has others. A bandit's log is read with the features of the one that
    the policy was learned from: those of its own may be as many, and mean something else.
    """
    features = sources.feature_hash(path)
    if features is None:
        return sources.open(path, run.agent.spec)
    learned = run.experiment.dataset
    there = bool(learned) and pathlib.Path(learned).exists()
    known = data.feature_hash(run.experiment.workdir) if learned else None
    if known is None and there:  # a run of before this was kept
        known = sources.feature_hash(learned)
    raw, same, like = sources.is_bandit(path), features == known, None
    if raw and not same and there and sources.is_bandit(learned):
        like = learned if sources.feature_hash(learned) == known else None
    dataset = sources.open(path, like=like) if raw else sources.open(path, run.agent.spec)
    ours, theirs = run.agent.spec, dataset.spec
    if (ours.parts, ours.action, ours.has_mask) != (theirs.parts, theirs.action, theirs.has_mask):
        raise ValueError(
            f"{path} shows other observations or asks for other actions than {ours.name}, which "
            "the policy was learned from."
        )
    if not same and like is None:
        raise ValueError(
            f"{path} numbers its features by other values than the log did that the policy was "
            f"learned from: {learned or 'which nothing names'} must be there as it was then, and "
            "both be logs, not rows of launch.convert's."
        )
    return dataset


def _values(
    dataset: Dataset, target: direct.Target, discount: float, options: Options
) -> tuple[direct.Values | None, list[str]]:
    """The model of the value, or None and why there is none."""
    config = direct.Config(total_updates=options.updates, discount=discount, seed=options.seed)

    def learn(others: Dataset) -> direct.Values:
        return direct.evaluate(others, target, config, dataset)

    try:
        return propensities.crossed(dataset, options.seed, learn), []
    except direct.NoModel as error:
        return None, [f"no model of the value: {error}"]


def _visits(
    dataset: Dataset, log_ratio: np.ndarray, logged: Trajectories, options: Options
) -> tuple[np.ndarray | None, list[str]]:
    """How the policy visits the log's states, if it is asked for; or None and why not."""
    if not options.dice_updates:
        return None, []
    if is_bandit(dataset):
        return None, ["no dice: every episode is one decision, and nothing follows from it"]
    config = dice.Config(options.dice_updates, discount=logged.discount, seed=options.seed)
    try:
        found = dice.evaluate(dataset, log_ratio, config)
    except ValueError as error:
        return None, [f"no dice: {error}"]
    return _padded(found[dataset.rows.valid], logged), []


def _ratios(
    run: Trained, dataset: Dataset, values: direct.Values | None, discount: float, options: Options
) -> Ratios:
    if not isinstance(dataset.spec.action, Box):
        return propensities.of_choices(
            run.agent, run.policy, dataset, greedy=options.greedy, seed=options.seed
        )

    def judge(log_ratio: np.ndarray) -> tuple[float, float]:
        return _judged(dataset, log_ratio, values, discount)

    return propensities.of_reals(
        run.agent,
        run.policy,
        dataset,
        deviations=options.bandwidth,
        judge=judge if options.greedy else None,
        seed=options.seed,
    )


def _judged(
    dataset: Dataset, log_ratio: np.ndarray, values: direct.Values | None, discount: float
) -> tuple[float, float]:
    """The estimate of WPDIS, and half its interval; infinite where few carry the weight."""
    logged = _trajectories(dataset, log_ratio, values, discount)
    size = diagnostics.effective_sizes(trajectories.log_weights(logged))[-1]
    if size < _FEW:  # the delta method's error vanishes where one episode carries everything
        return 0.0, np.inf
    try:
        means = importance.weighted_per_decision(logged)
        interval = intervals.student_t(means)
    except ValueError:
        interval = None
    if interval is None:
        return 0.0, np.inf
    return weighted.estimate(means), (interval.high - interval.low) / 2


def _behind_limits(dataset: Dataset, logged: Trajectories) -> list[str]:
    """What the verdict must know of episodes that a time limit cut: all estimators share it."""
    last = dataset.starts[1:] - 1
    if not (dataset.rows.discount[last - 1] > 0).any():
        return []
    if logged.last_value is None:
        return ["episodes end at time limits, and no model says what would have followed"]
    behind = logged.discount ** logged.valid.sum(axis=1) * np.abs(logged.last_value)
    share = behind.mean() / max(np.abs(trajectories.returns(logged)).mean(), 1e-300)
    if share <= _MODELED:
        return []
    return [
        f"{100 * share:.0f} % of the returns is the model's word of what lies behind time limits, "
        "whose error no interval shows"
    ]


def _trajectories(
    dataset: Dataset, log_ratio: np.ndarray, values: direct.Values | None, discount: float
) -> Trajectories:
    """The episodes' steps; V of the final observation where a time limit cut them, else 0."""
    steps = [slice(a, b - 1) for a, b in zip(dataset.starts, dataset.starts[1:], strict=False)]
    last = dataset.starts[1:] - 1
    cut = dataset.rows.discount[last - 1] > 0

    def split(column: np.ndarray) -> list[np.ndarray]:
        return [column[step] for step in steps]

    return trajectories.from_episodes(
        split(np.asarray(dataset.rows.reward, np.float64)),
        split(log_ratio),
        discount,
        q=None if values is None else split(values.q),
        v=None if values is None else split(values.v),
        last_value=None if values is None else np.where(cut, values.v[last], 0.0),
    )


def _padded(column: np.ndarray, logged: Trajectories) -> np.ndarray:
    """A number of each step as episodes have it, `[E, T]`."""
    padded = np.zeros(logged.valid.shape)
    padded[logged.valid] = column
    return padded


def _as_vectors(dataset: Dataset, action: np.ndarray) -> np.ndarray:
    """Actions as numbers that can be compared, one-hot if they are choices."""
    if isinstance(dataset.spec.action, Discrete):
        return np.eye(dataset.spec.action.num_actions)[action.astype(int)]
    return action
