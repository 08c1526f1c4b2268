"""Marginalized ratios by a network (DICE): how much more often π is in a state than the log.

Stationary DIstribution Correction Estimation weighs a step by ζ(s, a) = d_π(s, a) / d_D(s, a):
d_D is the share of the log's steps, d_π(s, a) = Σ_t γ^t P(s_t = s, a_t = a) until it ends:
no product of ratios, so its variance does not grow exponentially with the horizon. As in Liu et al.
2018, arXiv:1810.12429, ζ = w(s) ρ with the ratio ρ = π(a|s) / b(a|s) of one step, and a network
learns w alone: one of s and a could say anything of actions that were never logged.

What is solved is the flow that Yang et al. 2020, arXiv:2007.03438, have as the constraint of their
Lagrangian: what π spends in a state started there, or came from elsewhere,

    d_D(s') w(s') = μ(s') + γ Σ d_D(s) b(a|s) ρ w(s) P(s'|s, a)      (P: unless it ended)

With their primal regularizer at 0 its solution is ζ, whatever the dual regularizer and the rewards.
Their saddle point has two networks that play against each other, which by Adam did not settle even
where 20 states can be counted (docs/offline.md). Here a target network that follows slowly holds
the right side while the left one is fitted to it by least squares (`loss`): the power iteration of
Wen et al. 2020, arXiv:2003.00722, with a discount, and the mirror image of fitted Q evaluation. Two
of their constraints stay: softplus keeps ratios positive, and `rljax.ope.visits` divides by the
mean which the flow says is 1. Axes: B rows, E episodes, T steps, N rows of a dataset.

What is estimated is the discounted value of an episode that no time limit ends, as by all other
estimators: flow ends where an episode was cut, and what lies behind is `Trajectories.last_value`, a
model's word. So all that flow reaches is a step of the log, whose own square holds w back; nothing
would where an episode was cut. And w is taken in the states that it was learned from, not
crosswise: in others, nothing has ever held it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import normalizers, optim
from rljax.agent import Agent
from rljax.loops import offline
from rljax.nn import torsos
from rljax.nn.heads import ValueHead
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.offline.dataset import Dataset
from rljax.ope import direct
from rljax.replay.base import Sample
from rljax.types import EnvSpec, Metrics, Observation, Scalar

_RATIO = "ratio"  # the column of ρ beside the rows of a dataset
_ONE = float(np.log(np.e - 1))  # softplus of it is 1


@dataclasses.dataclass(frozen=True)
class Config:
    """How w is learned; `discount` is that of the value."""

    total_updates: int = 5_000
    batch_size: int = 256
    discount: float = 0.99  # γ, below 1
    learning_rate: float = 1e-3  # of Adam
    target_rate: float = 0.02  # how far the target moves towards the network at each update
    hidden_sizes: tuple[int, ...] = (256, 256)
    seed: int = 0


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Any
    target: Any
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of the dataset's vectors
    updates: Int[Array, ""]
    first: Any = ()  # Observation [E, ...]: of the dataset, where its episodes begin

    @property
    def policy(self) -> tuple[()]:
        """It never acts."""
        return ()


def loss(
    ratio: Float[Array, " B"],
    following: Float[Array, " B"],
    first: Float[Array, " B"],
    inflow: Float[Array, " B"],
    mass: Scalar,
) -> Float[Array, " B"]:
    """½ w(s)² - w(s') γ ρ w̄(s) - w(s_0) / M: the flow as a regression, row by row.

    Its mean is least where d_D w is what flows in, divided by M (least-squares importance fitting,
    Kanamori et al. 2009), if s is drawn from the log, s' follows it and s_0 starts an episode.

    Args:
        ratio: w(s) of a step.
        following: w(s') of what it led to.
        first: w(s_0) of another episode's first state.
        inflow: γ ρ w̄(s) by the target network, 0 where the episode ends; a constant.
        mass: M, any positive number; w comes out as 1 on average if it is Σ d_π.
    """
    return 0.5 * ratio**2 - jax.lax.stop_gradient(inflow) * following - first / mass


def evaluate(
    dataset: Dataset, log_ratio: Float[np.ndarray, " N"], config: Config
) -> Float[np.ndarray, " N"]:
    """W of the dataset's rows, learned from all its episodes; of rows that are no step, anything.

    Raises ValueError for a discount of 1, and where a ratio is too large for a float32.
    """
    if not 0 <= config.discount < 1:
        raise ValueError(f"visits are discounted: γ must be below 1, not {config.discount:g}.")
    dataset = _weighed(dataset, log_ratio)
    lengths = np.diff(dataset.starts) - 1
    mass = float(((1 - config.discount**lengths) / (1 - config.discount)).mean())
    agent, network = _make(dataset.spec, config, mass)
    loop = offline.Config(
        config.total_updates, config.batch_size, config.discount, seed=config.seed, num_devices=1
    )
    state = offline.init(agent, dataset, loop)
    first = jax.tree.map(lambda x: jnp.asarray(x[dataset.starts[:-1]]), dataset.rows.observation)
    state = offline.State(state.train._replace(first=first))
    train = offline.learned(agent, dataset, state, loop).train

    def ratio(observation: Observation, action: Array, key: PRNGKeyArray) -> Array:
        del action, key
        return _ratio(network, train.target, observation, train.observation)

    return mass * direct.by_rows(ratio, dataset, config.seed)


def _weighed(dataset: Dataset, log_ratio: Float[np.ndarray, " N"]) -> Dataset:
    """With ρ beside its steps, and every episode ended where it was cut."""
    rows = dataset.rows
    with np.errstate(over="ignore"):
        ratio = np.where(rows.valid, np.exp(log_ratio), 0.0).astype(np.float32)
    if not np.isfinite(ratio).all():
        raise ValueError(
            f"a ratio of single steps, e^{log_ratio.max():.0f}, is too large for a network: what "
            "was logged must have had a chance."
        )
    goes_on = np.asarray(rows.discount, np.float32).copy()
    goes_on[dataset.starts[1:] - 2] = 0.0
    return dataclasses.replace(
        dataset, rows=rows._replace(discount=goes_on, extras={_RATIO: ratio})
    )


def _make(spec: EnvSpec, config: Config, mass: float) -> tuple[Agent, nn.Module]:
    torso = torsos.make(Torso.AUTO, spec, config.hidden_sizes, Activation.RELU)
    network = nn.Sequential([torso, ValueHead()])
    optimizer = optax.scale_by_adam()
    vector = torsos.is_vector(spec)

    def init(key: PRNGKeyArray) -> TrainState:
        params = network.init(key, spec.example().features)
        moments = normalizers.init_observation(spec) if vector else None
        copy = jax.tree.map(jnp.copy, params)  # `update`'s state is donated: no shared buffers
        return TrainState(params, copy, optimizer.init(params), moments, jnp.int32(0))

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        def ratio(params: Any, observation: Observation) -> Array:
            return _ratio(network, params, observation, state.observation)

        count = len(jax.tree.leaves(state.first)[0])
        episode = jax.random.randint(key, batch.reward.shape, 0, count)
        first = jax.tree.map(lambda x: x[episode], state.first)
        inflow = batch.discount * batch.extras[_RATIO] * ratio(state.target, batch.observation)

        def mean_loss(params: Any) -> tuple[Array, Metrics]:
            here = ratio(params, batch.observation)
            following = ratio(params, batch.next_observation)
            error = jnp.mean(loss(here, following, ratio(params, first), inflow, mass))
            return error, {"loss/ratio": error, "ratio/mean": jnp.mean(here)}

        learner = state.params, state.opt_state
        (params, opt_state), metrics, _ = optim.gradient_step(
            mean_loss, learner, optimizer, config.learning_rate
        )
        moved = optax.incremental_update(params, state.target, config.target_rate)
        after = TrainState(
            params, moved, opt_state, state.observation, state.updates + 1, state.first
        )
        return after, metrics

    def act(*arguments: Any) -> Any:
        raise NotImplementedError("a model of a policy's visits takes no action.")

    return Agent(spec, init, lambda batch: (), act, update, (_RATIO,)), network


def _ratio(
    network: nn.Module, params: Any, observation: Observation, moments: normalizers.Moments | None
) -> Array:
    """W [B] beside its mass."""
    features = direct.prepared(observation, moments)
    return jax.nn.softplus(jnp.asarray(network.apply(params, features)) + _ONE)
