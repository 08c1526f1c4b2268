"""Can the log be predicted? An ensemble of learned dynamics, tried on episodes it has not seen.

Each member is an MLP from observation and action to the change of the observation and the reward,
all normalized by the training part (as in Chua et al. 2018, arXiv:1805.12114, deterministic
members). Held-out segments are rolled out open loop: the model starts from a logged observation and
sees nothing but the logged actions from there on. Its error by horizon says how far a model of this
task, learned from this log, can be believed; it says nothing of what other actions would do.

Axes: M members, N steps, S segments, H horizon, O observation, A action.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from rljax.nn import torsos
from rljax.nn.heads import LinearHead
from rljax.nn.mlp import MLP, Activation
from rljax.offline.dataset import Dataset
from rljax.types import Box, Discrete, EnvSpec

_CLIP = 10.0  # deviations: a rollout that got out of hand stays a number
_SMALL = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """How the models are learned and tried."""

    num_members: int = 5
    hidden_sizes: tuple[int, ...] = (128, 128)
    total_updates: int = 3_000
    batch_size: int = 256  # of each member, whose draws are its own
    learning_rate: float = 1e-3  # of Adam
    held_out: float = 0.2  # share of the episodes
    horizon: int = 20  # H: steps ahead
    num_segments: int = 200  # at most
    seed: int = 0


class Scale(NamedTuple):
    """Mean and deviation of each column; a deviation is 1 where nothing varies."""

    mean: np.ndarray
    deviation: np.ndarray


class Model(NamedTuple):
    """An ensemble, and what its numbers are normalized by."""

    params: Any  # [M, ...]
    observation: Scale
    action: Scale
    change: Scale  # of normalized observations
    reward: Scale


class Errors(NamedTuple):
    """Root mean squared errors by horizon, from one step ahead on, in deviations of the log."""

    observation: tuple[float, ...]  # of the members' mean
    unchanged: tuple[float, ...]  # of predicting that the observation stays what it was
    reward: tuple[float, ...]  # predicting the mean reward has about 1
    num_segments: tuple[int, ...]  # that are this long
    num_episodes: int  # held out


def check(dataset: Dataset, config: Config) -> Errors:
    """Learns from a part of the episodes, and is tried on the others.

    Raises:
        ValueError: observations are no plain vectors, actions are several choices at once, or
            there is one episode only.
    """
    trained, held_out = split(dataset, config)
    model = learn(trained, config)
    return errors(model, held_out, config)


def split(dataset: Dataset, config: Config) -> tuple[Dataset, Dataset]:
    """The episodes that are learned from, and those that are held out, one at least."""
    spec = dataset.spec
    if torsos.has_pixels(spec) or spec.named_parts or len(spec.observation_shape) != 1:
        raise ValueError(f"models of dynamics are of plain vectors, which {spec.name} has not.")
    if not isinstance(spec.action, Box | Discrete):
        raise ValueError("models of dynamics are of one choice or of a box of actions.")
    count = dataset.num_episodes
    if count < 2:
        raise ValueError("models of dynamics need two episodes, one of them held out.")
    order = np.random.default_rng(config.seed).permutation(count)
    size = min(max(1, round(config.held_out * count)), count - 1)
    return dataset.select(np.sort(order[size:]).tolist()), dataset.select(
        np.sort(order[:size]).tolist()
    )


def learn(dataset: Dataset, config: Config) -> Model:
    """The ensemble, by one compiled scan over updates of all members side by side."""
    steps = np.flatnonzero(dataset.rows.valid)
    seen = np.asarray(dataset.rows.observation.features, np.float64)
    observation = _scale(seen[steps])
    action = _vectors(dataset.spec, dataset.rows.action[steps])
    action_scale = _scale(action) if isinstance(dataset.spec.action, Box) else _unit(action)
    change = (seen[steps + 1] - seen[steps]) / observation.deviation[None]
    reward = np.asarray(dataset.rows.reward, np.float64)[steps, None]
    scales = observation, action_scale, _scale(change), _scale(reward)
    inputs = np.concatenate(
        [_normal(seen[steps], observation), _normal(action, action_scale)], axis=1
    )
    goals = np.concatenate([_normal(change, scales[2]), _normal(reward, scales[3])], axis=1)
    params = _fit(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(goals, jnp.float32),
        jax.random.key(config.seed),
        config,
    )
    return Model(params, *scales)


def errors(model: Model, dataset: Dataset, config: Config) -> Errors:
    """Of open-loop rollouts from random steps of the dataset, up to its episodes' ends."""
    starts, lengths = _segments(dataset, config)
    horizon = int(lengths.max())
    # Behind an episode's end the last row is repeated, and not counted.
    places = starts[:, None] + np.minimum(np.arange(horizon + 1)[None], lengths[:, None])
    counted = np.arange(horizon)[None] < lengths[:, None]
    seen = np.asarray(dataset.rows.observation.features, np.float64)[places]
    truth = (seen - model.observation.mean) / model.observation.deviation
    action = _vectors(dataset.spec, dataset.rows.action[places[:, :-1].ravel()])
    action = _normal(action, model.action).reshape(*places[:, :-1].shape, -1)
    reward = np.asarray(dataset.rows.reward, np.float64)[places[:, :-1]]
    reward = (reward - model.reward.mean) / model.reward.deviation
    found, paid = _roll_out(
        model,
        jnp.asarray(truth[:, 0], jnp.float32),
        jnp.asarray(action.swapaxes(0, 1), jnp.float32),
        config.hidden_sizes,
    )
    predicted = np.asarray(found, np.float64).swapaxes(0, 1)

    def by_horizon(square: np.ndarray) -> tuple[float, ...]:
        total = np.where(counted, square, 0.0).sum(axis=0) / counted.sum(axis=0)
        return tuple(np.sqrt(total).tolist())

    return Errors(
        by_horizon(((predicted - truth[:, 1:]) ** 2).mean(axis=2)),
        by_horizon(((truth[:, :1] - truth[:, 1:]) ** 2).mean(axis=2)),
        by_horizon((np.asarray(paid, np.float64).T - reward) ** 2),
        tuple(counted.sum(axis=0).tolist()),
        dataset.num_episodes,
    )


def to_json(found: Errors) -> dict[str, Any]:
    """Lists and numbers."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in found._asdict().items()}


def _network(size: int, hidden_sizes: tuple[int, ...]) -> nn.Module:
    return nn.Sequential([MLP(hidden_sizes, Activation.SWISH), LinearHead(size, 1.0)])


def _fit(
    inputs: Float[Array, "N I"], goals: Float[Array, "N G"], key: PRNGKeyArray, config: Config
) -> Any:
    network = _network(goals.shape[1], config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)

    def loss(params: Any, index: Array) -> Array:
        return jnp.mean((jnp.asarray(network.apply(params, inputs[index])) - goals[index]) ** 2)

    def member(key: PRNGKeyArray) -> Any:
        init_key, draw_key = jax.random.split(key)
        params = network.init(init_key, inputs[:1])

        def update(carry: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            drawn = jax.random.fold_in(draw_key, number)
            index = jax.random.randint(drawn, (config.batch_size,), 0, len(inputs))
            steps, state = optimizer.update(jax.grad(loss)(params, index), state)
            return (optax.apply_updates(params, steps), state), None

        (params, _), _ = jax.lax.scan(
            update, (params, optimizer.init(params)), jnp.arange(config.total_updates)
        )
        return params

    return jax.jit(jax.vmap(member))(jax.random.split(key, config.num_members))


def _roll_out(
    model: Model, start: Array, actions: Array, hidden_sizes: tuple[int, ...]
) -> tuple[Float[Array, "H S O"], Float[Array, "H S"]]:
    """The members' mean observations and rewards, each member going its own way."""
    network = _network(start.shape[1] + 1, hidden_sizes)
    change = [jnp.asarray(x, jnp.float32) for x in model.change]

    def member(params: Any) -> tuple[Array, Array]:
        def step(seen: Array, action: Array) -> tuple[Array, tuple[Array, Array]]:
            said = jnp.asarray(network.apply(params, jnp.concatenate([seen, action], axis=1)))
            seen = seen + change[0][None] + change[1][None] * said[:, :-1]
            seen = jnp.clip(seen, -_CLIP, _CLIP)
            return seen, (seen, said[:, -1])

        return jax.lax.scan(step, start, actions)[1]

    seen, reward = jax.jit(jax.vmap(member))(model.params)
    return jnp.mean(seen, axis=0), jnp.mean(reward, axis=0)


def _segments(dataset: Dataset, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """First rows of random segments, `[S]`, and how many steps each has, `[S]`."""
    steps = np.flatnonzero(dataset.rows.valid)
    rng = np.random.default_rng(config.seed)
    starts = np.sort(rng.permutation(steps)[: config.num_segments])
    ends = dataset.starts[np.searchsorted(dataset.starts, starts, side="right")] - 1
    return starts, np.minimum(ends - starts, config.horizon)


def _vectors(spec: EnvSpec, action: Any) -> np.ndarray:
    if isinstance(spec.action, Discrete):
        return np.eye(spec.action.num_actions)[np.asarray(action)]
    return np.asarray(action, np.float64)


def _scale(x: np.ndarray) -> Scale:
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    constant = deviation <= _SMALL * np.maximum(np.abs(mean), 1.0)
    return Scale(mean, np.where(constant, 1.0, deviation))


def _unit(x: np.ndarray) -> Scale:
    return Scale(np.zeros(x.shape[1]), np.ones(x.shape[1]))


def _normal(x: np.ndarray, scale: Scale) -> np.ndarray:
    return (x - scale.mean[None]) / scale.deviation[None]
