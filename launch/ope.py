"""A policy's value by the log of another: `launch.evaluate --dataset=... --ope`.

    workdir/ope.json        estimates with intervals, and how far to trust them, and why
    workdir/plots/ope.png   the same as a forest plot

Values are discounted, as the agent's config has it (0.99 where it has none), and go on behind a
time limit. Where the log has no propensities, they are estimated by behavior cloning, each half of
the episodes by a clone of the other.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from agents import bc
from launch import trained
from launch.trained import Trained
from rljax import drift
from rljax.agent import Agent
from rljax.loops import offline
from rljax.offline import collection, sources
from rljax.offline.dataset import Dataset
from rljax.ope import direct, table, trajectories
from rljax.types import Discrete, Observation

_CHUNK = 4096  # rows that are looked at in one call
_SHIFT_ROWS = 500  # of each sample that is compared
_SHIFT_EPISODES = 32  # played for the states that the policy meets
_LEAST = 1e-6  # of an estimated propensity: what was logged had a chance


def report(
    run: Trained, path: str, *, greedy: bool, updates: int, seed: int
) -> tuple[table.Report, dict[str, Any]]:
    """Evaluates the policy by the episodes of a dataset; and what belongs to the report.

    Raises ValueError where the dataset is of something else, or the actions are not one choice of
    several: what a decision tells of a density is not the same for all policies.
    """
    dataset = sources.open(path, run.agent.spec)
    if not isinstance(dataset.spec.action, Discrete):
        raise ValueError(
            f"--ope weighs discrete actions, and those of {dataset.spec.name} are real: evaluate "
            "by playing, with --env."
        )
    discount = float(getattr(run.experiment.config, "discount", 0.99))
    target = direct.target_of(run.agent, run.policy, greedy=greedy)
    config = direct.Config(total_updates=updates, discount=discount, seed=seed)
    values = direct.evaluate(dataset, target, config)
    chances = probabilities(run.agent, run.policy, dataset.rows.observation)
    if greedy:
        chances = np.eye(chances.shape[1])[np.argmax(chances, axis=1)]
    known = "log_prob" in dataset.rows.extras
    behavior = np.asarray(
        dataset.rows.extras["log_prob"] if known else cloned(dataset, seed), np.float64
    )
    with np.errstate(divide="ignore"):
        log_ratio = np.log(_of_action(chances, dataset)) - behavior
    told = {
        "dataset": path,
        "step": run.step,
        "mode": "greedy" if greedy else "sampled",
        "discount": discount,
        "propensities": "logged" if known else "estimated",
        "shift": shift(run, dataset, chances, seed),
    }
    found = table.evaluate(
        _padded(dataset, log_ratio, values, discount), bootstrap=table.Bootstrap(seed=seed)
    )
    return found, told


def shift(run: Trained, dataset: Dataset, chances: np.ndarray, seed: int) -> dict[str, Any]:
    """How far the policy is from the log, as MMD² with the p-value of a permutation test.

    `actions` compares logged steps, state and action together, with what the policy would have done
    in others of the logged states; `states` those with the states that it meets when it plays, if
    the run has an --env. Empty for anything but plain vectors.
    """
    seen = dataset.rows.observation.features
    if not isinstance(seen, np.ndarray) or seen.dtype == np.uint8:
        return {}
    rng = np.random.default_rng(seed)
    steps = rng.permutation(np.flatnonzero(dataset.rows.valid))[: 2 * _SHIFT_ROWS]
    if len(steps) < 4:
        return {}
    logged, others = np.array_split(steps, 2)
    count = chances.shape[1]
    drawn = (chances[others].cumsum(axis=1) < rng.random((len(others), 1))).sum(axis=1)

    def joined(rows: np.ndarray, action: np.ndarray) -> np.ndarray:
        flat = seen[rows].reshape(len(rows), -1)
        return np.concatenate([flat, np.eye(count)[np.minimum(action, count - 1)]], axis=1)

    taken = np.asarray(dataset.rows.action)[logged]
    found = {"actions": drift.mmd(joined(logged, taken), joined(others, drawn), seed=seed)}
    if run.experiment.source.name:
        env = trained.fresh_source(run.experiment)
        collect = collection.collector(run.agent, env, trained.EVAL_ENVS)
        episodes = collect(run.policy, _SHIFT_EPISODES, jax.random.key(seed))
        met = np.concatenate([episode.observation.features[:-1] for episode in episodes])
        met = met[rng.permutation(len(met))[:_SHIFT_ROWS]]
        flat = (x.reshape(len(x), -1) for x in (seen[logged], met))
        found["states"] = drift.mmd(*flat, seed=seed)
    return {name: measured._asdict() for name, measured in found.items()}


def write(found: table.Report, told: dict[str, Any], workdir: pathlib.Path) -> None:
    """Leaves the report and its plot in the workdir."""
    (workdir / "ope.json").write_text(json.dumps(told | table.to_json(found), indent=2) + "\n")
    table.forest_plot(found, workdir / "plots" / "ope.png")


def probabilities(agent: Agent, policy: Any, observations: Observation) -> np.ndarray:
    """Of each action by a feed-forward policy, float64 `[N, A]`, for observations `[N, ...]`."""

    @jax.jit
    def chunk(seen: Observation) -> jax.Array:
        return agent.act(policy, (), seen, jax.random.key(0), False)[2]["probabilities"]

    count = len(jax.tree.leaves(observations)[0])
    found = []
    for first in range(0, count, _CHUNK):
        # The last one is padded with its own last row: one size is one compilation.
        places = np.minimum(np.arange(first, first + _CHUNK), count - 1)
        found.append(chunk(jax.tree.map(lambda x, places=places: x[places], observations)))
    return np.concatenate(jax.device_get(found)).astype(np.float64)[:count]


def cloned(dataset: Dataset, seed: int, updates: int = 5_000) -> np.ndarray:
    """Estimated ln propensity of each logged action, `[N]`, by a clone that has not seen it.

    Raises ValueError where there is one episode only.
    """
    count = dataset.num_episodes
    if count < 2:
        raise ValueError(
            "the log has no propensities, and one episode is too few to estimate them."
        )
    half = np.random.default_rng(seed).permutation(count) < count // 2
    episode = np.repeat(np.arange(count), np.diff(dataset.starts))
    found = np.zeros(len(episode))
    for fold in (False, True):
        config = bc.Config(total_updates=updates, hidden_sizes=(64, 64))
        agent = bc.make(config, dataset.spec)
        others = dataset.select(np.flatnonzero(half != fold).tolist())
        loop = dataclasses.replace(bc.loop(config), seed=seed, num_devices=1)
        state = offline.init(agent, others, loop)
        *_, (_, state, _) = offline.run(agent, others, state, loop, 0)
        chances = probabilities(agent, state.train.policy, dataset.rows.observation)
        mine = half[episode] == fold
        found[mine] = np.log(np.maximum(_of_action(chances, dataset), _LEAST))[mine]
    return found


def _of_action(chances: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.take_along_axis(chances, np.asarray(dataset.rows.action)[:, None], axis=1)[:, 0]


def _padded(
    dataset: Dataset, log_ratio: np.ndarray, values: direct.Values, discount: float
) -> trajectories.Trajectories:
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
        q=split(values.q),
        v=split(values.v),
        last_value=np.where(cut, values.v[last], 0.0),
    )
