"""Fitted Q evaluation: what a fixed policy is worth by a model, learned from the log of another.

Le, Voloshin & Yue 2019, arXiv:1903.08738, with a target network that follows slowly in
place of one regression after another. Q learns r + γ V(s'), V(s) = Σ π(a|s) Q(s, a): with V = 0
behind a termination only, so an episode that a time limit cut is bootstrapped from its true final
observation. It is an `Agent` that never acts, and the loop of datasets trains it, compiled and on
the device. Axes: B rows, A actions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from rljax import losses, normalizers, optim
from rljax.agent import Agent
from rljax.loops import offline
from rljax.nn import torsos
from rljax.nn.heads import LinearHead, ValueHead
from rljax.nn.mlp import MLP, Activation
from rljax.nn.torsos import Torso
from rljax.offline.dataset import Dataset
from rljax.replay.base import Sample
from rljax.types import Box, Discrete, EnvSpec, Metrics, Observation

_CLIP = 10.0  # of normalized observations
_CHUNK = 4096  # rows that are valued at a time


@dataclasses.dataclass(frozen=True)
class Config:
    """How the model is learned; `discount` is that of the value."""

    total_updates: int = 20_000
    batch_size: int = 256
    discount: float = 0.99  # γ
    learning_rate: float = 1e-3  # of Adam
    target_rate: float = 0.005  # how far the target moves towards the model at each update
    num_draws: int = 4  # of the policy's actions where they are real: V is their mean
    hidden_sizes: tuple[int, ...] = (256, 256)
    seed: int = 0


class NoModel(ValueError):
    """What is shown, or done, is of a kind that no model here is made for."""


class Target(NamedTuple):
    """The policy that is valued: of one of several actions, or of a box."""

    probabilities: Callable[[Observation], Array] | None  # [B, A]
    draw: Callable[[Observation, PRNGKeyArray], Array] | None  # an action [B, A]


class Values(NamedTuple):
    """What the model says of every row of a dataset, float64 `[N]`."""

    q: np.ndarray  # of the action that was logged
    v: np.ndarray  # of the policy


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Any
    target: Any
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of the dataset's vectors
    updates: Int[Array, ""]

    @property
    def policy(self) -> tuple[()]:
        """It never acts."""
        return ()


class _Network(NamedTuple):
    init: Callable[[PRNGKeyArray], Any]
    q: Callable[[Any, Any, Array], Array]  # params, features, action -> [B]
    v: Callable[[Any, Any, Observation, PRNGKeyArray], Array]  # params, features, raw, key -> [B]


def target_of(agent: Agent, policy: Any, *, greedy: bool) -> Target:
    """A feed-forward agent's policy, as it samples or at its greediest.

    Raises ValueError for a policy with a memory, or of several choices at once.
    """
    if jax.tree.leaves(agent.initial_carry(1)):
        raise ValueError("a policy with a memory cannot be evaluated from single steps.")
    if isinstance(agent.spec.action, Box):

        def draw(observation: Observation, key: PRNGKeyArray) -> Array:
            low, high = (np.array(x, np.float32) for x in _bounds(agent.spec))
            action = agent.act(policy, (), observation, key, greedy)[1]
            return jnp.clip(action, low[None], high[None])

        return Target(None, draw)
    if not isinstance(agent.spec.action, Discrete):
        raise ValueError("a policy of several choices at once cannot be evaluated from a log.")
    count = agent.spec.action.num_actions

    def probabilities(observation: Observation) -> Array:
        _, action, extras = agent.act(policy, (), observation, jax.random.key(0), greedy)
        return jax.nn.one_hot(action, count) if greedy else extras["probabilities"]

    return Target(probabilities, None)


def evaluate(
    dataset: Dataset, target: Target, config: Config, valued: Dataset | None = None
) -> Values:
    """Learns the model from the dataset, and values the rows of another one, or its own.

    Raises NoModel for real actions that have no bounds, or go with anything but plain vectors; and
    where what was learned is not finite.
    """
    agent, network = _make(dataset.spec, target, config)
    loop = offline.Config(
        config.total_updates,
        config.batch_size,
        config.discount,
        seed=config.seed,
        num_devices=1,
    )
    state = offline.init(agent, dataset, loop)
    try:
        state = offline.learned(agent, dataset, state, loop)
    except offline.DivergedError as error:
        raise NoModel(str(error)) from None
    return _values(network, state.train, valued or dataset, config)


def _make(spec: EnvSpec, target: Target, config: Config) -> tuple[Agent, _Network]:
    network = _network(spec, target, config)
    optimizer = optax.scale_by_adam()
    vector = torsos.is_vector(spec)

    def init(key: PRNGKeyArray) -> TrainState:
        params = network.init(key)
        moments = normalizers.init_observation(spec) if vector else None
        copy = jax.tree.map(jnp.copy, params)  # `update`'s state is donated: no shared buffers
        return TrainState(params, copy, optimizer.init(params), moments, jnp.int32(0))

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        features = prepared(batch.observation, state.observation)
        ahead = prepared(batch.next_observation, state.observation)
        value = network.v(state.target, ahead, batch.next_observation, key)
        goal = batch.reward + batch.discount * value

        def loss(params: Any) -> tuple[Array, Metrics]:
            q = network.q(params, features, batch.action)
            error = jnp.mean(losses.squared_error(q, goal))
            return error, {"loss/q": error, "value/mean": jnp.mean(q)}

        learner = state.params, state.opt_state
        (params, opt_state), metrics, _ = optim.gradient_step(
            loss, learner, optimizer, config.learning_rate
        )
        moved = optax.incremental_update(params, state.target, config.target_rate)
        after = TrainState(params, moved, opt_state, state.observation, state.updates + 1)
        return after, metrics

    def act(*arguments: Any) -> Any:
        raise NotImplementedError("a model of a policy's value takes no action.")

    return Agent(spec, init, lambda batch: (), act, update), network


def _network(spec: EnvSpec, target: Target, config: Config) -> _Network:
    example = spec.example().features
    if target.probabilities is not None:
        assert isinstance(spec.action, Discrete)
        torso = torsos.make(Torso.AUTO, spec, config.hidden_sizes, Activation.RELU)
        all_q = nn.Sequential([torso, LinearHead(spec.action.num_actions, 1.0)])
        probabilities = target.probabilities

        def q(params: Any, features: Any, action: Array) -> Array:
            values = jnp.asarray(all_q.apply(params, features))
            chosen = jax.nn.one_hot(action, values.shape[-1])
            return jnp.sum(chosen * values, axis=-1)

        def v(params: Any, features: Any, observation: Observation, key: PRNGKeyArray) -> Array:
            del key
            values = jnp.asarray(all_q.apply(params, features))
            return jnp.sum(probabilities(observation) * values, axis=-1)

        return _Network(lambda key: all_q.init(key, example), q, v)
    if torsos.has_pixels(spec) or spec.named_parts:
        raise NoModel("fitted Q evaluation of real actions is for plain vectors only.")
    joint = nn.Sequential([MLP(config.hidden_sizes, Activation.RELU), ValueHead()])
    low, high = (np.array(x, np.float32) for x in _bounds(spec))
    assert target.draw is not None
    draw = target.draw

    def q_box(params: Any, features: Any, action: Array) -> Array:
        unit = 2 * (action - low[None]) / (high - low)[None] - 1
        return jnp.asarray(joint.apply(params, jnp.concatenate([features, unit], axis=-1)))

    def v_box(params: Any, features: Any, observation: Observation, key: PRNGKeyArray) -> Array:
        keys = jax.random.split(key, config.num_draws)
        each = jax.vmap(lambda key: q_box(params, features, draw(observation, key)))(keys)
        return jnp.mean(each, axis=0)

    size = spec.parts[0].shape[0] + len(low)
    return _Network(lambda key: joint.init(key, jnp.zeros(size)), q_box, v_box)


def by_rows(
    function: Callable[[Observation, Array, PRNGKeyArray], Any], dataset: Dataset, seed: int
) -> Any:
    """A function of observations `[B, ...]`, actions and a key, of all rows; float64 `[N]`."""
    chunk = jax.jit(function)
    rows, count, found = dataset.rows, len(dataset.rows.reward), []
    for first in range(0, count, _CHUNK):
        # The last one is padded with its own last row: one size is one compilation.
        places = np.minimum(np.arange(first, first + _CHUNK), count - 1)
        seen = jax.tree.map(lambda x, places=places: x[places], rows.observation)
        key = jax.random.fold_in(jax.random.key(seed), first)
        found.append(jax.device_get(chunk(seen, rows.action[places], key)))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:count].astype(np.float64), *found)


def prepared(observation: Observation, moments: normalizers.Moments | None) -> Any:
    """What a network of the dataset's observations is shown: vectors normalized."""
    return normalizers.normalize_observation(observation.features, moments, _CLIP)


def _values(network: _Network, train: TrainState, dataset: Dataset, config: Config) -> Values:
    def q_and_v(observation: Observation, action: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        features = prepared(observation, train.observation)
        q = network.q(train.params, features, action)
        return q, network.v(train.params, features, observation, key)

    return Values(*by_rows(q_and_v, dataset, config.seed))


def _bounds(spec: EnvSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    assert isinstance(spec.action, Box)
    if not spec.action.bounded:
        raise NoModel(f"{spec.name} has no bounds of actions, which fitted Q evaluation needs.")
    return spec.action.low, spec.action.high
