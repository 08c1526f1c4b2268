"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), for vectors of features.

Read `Config`, the losses (eqs. 7 and 9), then `update` inside `make`: statistics, advantages,
epochs over reshuffled minibatches. Discrete, multi-discrete, masked and continuous actions differ
in their distribution only. Axes: T time, B environments, N rows of a minibatch.

Departs from common practice: a truncated row bootstraps from its true final observation, and the
row that autoreset puts behind an ending has no weight (`rljax.types`); observations are normalized
by the statistics of before the rollout, so that the first ratio is exactly 1; minibatches are drawn
per group of environments, so that they are the same on any number of devices (`rljax.minibatches`).
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import distributions, losses, minibatches, normalizers, returns
from rljax.agent import AXIS, Agent
from rljax.loops import on_policy
from rljax.nn import policies
from rljax.nn.heads import ValueHead
from rljax.nn.mlp import MLP, Activation
from rljax.nn.policies import BoxPolicy
from rljax.reductions import explained_variance, mean_over_devices, standardize
from rljax.types import Box, EnvSpec, Metrics, Observation, Scalar, Trajectory


class RewardScale(enum.Enum):
    """What keeps value targets near unit scale."""

    NONE = "none"
    REWARD = "reward"  # rewards over the running deviation of their discounted sum, then clipped
    VALUE = "value"  # value targets over the running deviation of the λ-returns


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of PPO; each field is a flag `--config.<field>`."""

    total_steps: int = 1_000_000  # rows collected in all, over all environments
    num_envs: int = 8  # B: stepped side by side; a multiple of the number of devices
    rollout_length: int = 128  # T: rows per environment between updates
    num_epochs: int = 4  # passes over the rows of a rollout
    num_minibatches: int = 4  # per epoch; must divide num_envs × rollout_length
    learning_rate: float = 3e-4  # α of Adam, when training starts
    anneal_learning_rate: bool = True  # linearly, to 0 at total_steps
    adam_epsilon: float = 1e-5  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    max_grad_norm: float = 0.5  # L2, over all parameters; longer gradients are scaled down
    discount: float = 0.99  # γ, in [0, 1]
    gae_lambda: float = 0.95  # λ of GAE, in [0, 1]: 0 is TD(0), 1 Monte Carlo
    clip_ratio: float = 0.2  # ε of eq. 7: the ratio is clipped to 1 ± ε
    anneal_clip_ratio: bool = False  # linearly, to 0 at total_steps
    clip_value: float | None = None  # of V about the rollout's V, in the critic's scale; None: none
    entropy_cost: float = 0.0  # c₂ of eq. 9: weight of the entropy, which is in nats
    value_cost: float = 0.5  # c₁ of eq. 9: weight of ½(V - G)²
    normalize_advantage: bool = True  # per minibatch: mean 0, deviation 1
    recompute_advantage: bool = False  # with the current values, before each epoch
    target_kl: float | None = None  # stop an update's epochs once approx_kl passes 1.5 times this
    normalize_observation: bool = False  # by running moments, clipped to ± observation_clip
    observation_clip: float = 10.0  # in deviations; with normalize_observation only
    reward_scale: RewardScale = RewardScale.NONE  # what is divided by a running deviation, if any
    reward_clip: float = 10.0  # scaled rewards are clipped to ± this; with reward_scale=reward only
    hidden_sizes: tuple[int, ...] = (64, 64)  # of actor and critic, which share no layer
    activation: Activation = Activation.TANH  # behind every hidden layer
    box_policy: BoxPolicy = BoxPolicy.NORMAL  # for boxes: clipped to the bounds, or squashed
    initial_log_std: float = 0.0  # boxes only: ln σ, a free parameter per action dimension
    policy_head_scale: float = 0.01  # gain of the policy's last layer; small: near uniform at first


class Policy(NamedTuple):
    """What acting needs: parameters, and the statistics that observations are normalized by."""

    params: dict[str, Any]  # {"actor": ..., "critic": ...}
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]
    clip_ratio: Float[Array, ""]
    entropy_cost: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: dict[str, Any]
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of observations
    rewards: normalizers.Moments | None  # of discounted sums (REWARD) or of λ-returns (VALUE)
    running_sum: Float[Array, " B"] | None  # REWARD: each environment's, where the rollout ended
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params, self.observation)


class Batch(NamedTuple):
    """The rows of a rollout as the epochs see them, `[N, ...]` or `[minibatch, ...]`."""

    observation: Observation  # normalized
    action: Array
    log_prob: Array  # of the action, by the policy that took it
    value: Array  # V of that policy, in the critic's own scale
    advantage: Array
    target: Array  # in the critic's own scale
    weight: Array  # 1, or 0 on rows that are not valid


def policy_loss(
    log_prob: Float[Array, " B"],
    old_log_prob: Float[Array, " B"],
    advantage: Float[Array, " B"],
    clip_ratio: Scalar,
) -> Float[Array, " B"]:
    """Eq. 7, one term per row, to minimize; the gradient reaches `log_prob` only."""
    old_log_prob, advantage = jax.lax.stop_gradient((old_log_prob, advantage))
    return losses.clipped_surrogate(log_prob - old_log_prob, advantage, clip_ratio)


def value_loss(
    value: Float[Array, " B"],
    old_value: Float[Array, " B"],
    target: Float[Array, " B"],
    clip_value: float | None,
) -> Float[Array, " B"]:
    """½(V - G)² per row, or its clipped form; the gradient reaches `value` only."""
    old_value, target = jax.lax.stop_gradient((old_value, target))
    if clip_value is None:
        return 0.5 * (value - target) ** 2
    return losses.clipped_value(value, old_value, target, clip_value)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    counts = ("total_steps", "num_envs", "rollout_length", "num_epochs", "num_minibatches")
    positive = (*counts, "learning_rate", "adam_epsilon", "max_grad_norm", "clip_ratio")
    for name in (*positive, "observation_clip", "reward_clip", "policy_head_scale"):
        if not getattr(config, name) > 0:
            raise ValueError(f"config.{name} must be positive, not {getattr(config, name)}.")
    for name in ("clip_value", "target_kl"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(
                f"config.{name} must be positive, or None to turn it off, not {value}."
            )
    for name in ("discount", "gae_lambda"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"config.{name} must lie in [0, 1], not {getattr(config, name)}.")
    for name in ("entropy_cost", "value_cost"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"config.{name} must not be negative, not {getattr(config, name)}.")
    if any(size < 1 for size in config.hidden_sizes):
        raise ValueError(f"config.hidden_sizes must all be positive, not {config.hidden_sizes}.")
    rows = config.num_envs * config.rollout_length
    if rows % config.num_minibatches:
        raise ValueError(
            f"config.num_minibatches={config.num_minibatches} does not divide the {rows} rows of a "
            f"rollout (num_envs={config.num_envs} x rollout_length={config.rollout_length})."
        )
    if config.total_steps < rows:
        raise ValueError(
            f"config.total_steps={config.total_steps} is less than one rollout of {rows} rows."
        )


def loop(config: Config) -> on_policy.Config:
    """How PPO is driven: rollouts of fixed length, each learned from once."""
    return on_policy.Config(
        config.total_steps,
        config.num_envs,
        config.rollout_length,
        num_minibatches=config.num_minibatches,
    )


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for a squashed policy over a box without bounds.
    """
    squashed = config.box_policy is BoxPolicy.TANH_NORMAL
    if squashed and isinstance(spec.action, Box) and not spec.action.bounded:
        raise ValueError(f"{spec.name} has unbounded actions: use config.box_policy=normal.")
    torso = MLP(config.hidden_sizes, config.activation)
    actor = policies.Actor(torso, spec.action, config.policy_head_scale, config.initial_log_std)
    critic = nn.Sequential([torso.copy(), ValueHead()])
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_epsilon),
    )
    rows = config.num_envs * config.rollout_length
    total_updates = config.total_steps // rows

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key = jax.random.split(key)
        x = jnp.zeros(spec.observation_shape)
        params = {"actor": actor.init(actor_key, x), "critic": critic.init(critic_key, x)}
        scale = config.reward_scale
        return TrainState(
            params,
            optimizer.init(params),
            normalizers.init(spec.observation_shape) if config.normalize_observation else None,
            None if scale is RewardScale.NONE else normalizers.init(),
            jnp.zeros(config.num_envs) if scale is RewardScale.REWARD else None,
            Schedules(
                jnp.float32(config.learning_rate),
                jnp.float32(config.clip_ratio),
                jnp.float32(config.entropy_cost),
            ),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def normalized(policy: Policy, features: Array | np.ndarray) -> Array:
        features = jnp.asarray(features, jnp.float32)
        if policy.observation is None:
            return features
        return normalizers.normalize(features, policy.observation, config.observation_clip)

    def distribution(params: Any, observation: Observation) -> distributions.Distribution:
        outputs = actor.apply(params["actor"], observation.features)
        mask = None if observation.mask is None else jnp.asarray(observation.mask)
        return policies.distribution(spec.action, config.box_policy, outputs, mask)

    def value_of(params: Any, features: Array | np.ndarray) -> Array:
        return jnp.asarray(critic.apply(params["critic"], features))

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = observation._replace(features=normalized(policy, observation.features))
        chosen_by = distribution(policy.params, observation)
        action = chosen_by.mode() if greedy else chosen_by.sample(key)
        extras = {
            "log_prob": chosen_by.log_prob(action),
            "entropy": chosen_by.entropy(),
            "value": value_of(policy.params, observation.features),
            **chosen_by.parameters(),
        }
        return carry, action, extras

    def loss(params: Any, batch: Batch, schedules: Schedules) -> tuple[Array, Metrics]:
        """Eq. 9 over this device's rows; the mean over devices is the mean over all rows."""
        share = batch.weight / jnp.maximum(jax.lax.pmean(jnp.sum(batch.weight), AXIS), 1.0)
        chosen_by = distribution(params, batch.observation)
        value = value_of(params, batch.observation.features)
        log_prob = chosen_by.log_prob(batch.action)
        log_ratio = log_prob - batch.log_prob
        surrogate = policy_loss(log_prob, batch.log_prob, batch.advantage, schedules.clip_ratio)
        error = value_loss(value, batch.value, batch.target, config.clip_value)
        terms = {
            "loss/policy": surrogate,
            "loss/value": error,
            "policy/entropy": chosen_by.entropy(),
            "policy/approx_kl": jnp.expm1(log_ratio) - log_ratio,  # Schulman's k3 estimator
            "policy/clip_fraction": jnp.abs(jnp.expm1(log_ratio)) > schedules.clip_ratio,
        }
        means = {name: jnp.sum(share * term) for name, term in terms.items()}
        total = (
            means["loss/policy"]
            + config.value_cost * means["loss/value"]
            - schedules.entropy_cost * means["policy/entropy"]
        )
        return total, means

    def update(
        state: TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        schedules = _annealed(config, state.schedules, state.updates / total_updates)
        rows, valid = batch.transitions, batch.transitions.valid
        length, num_envs = valid.shape
        weight = valid.astype(jnp.float32)
        # Statistics of before this rollout: those that its log-probabilities came from.
        features = normalized(state.policy, rows.observation.features)
        last_features = normalized(state.policy, batch.last_observation.features)
        reward, rewards, running_sum = _scale_reward(config, state, rows.reward, valid)
        lambda_returns = state.rewards if config.reward_scale is RewardScale.VALUE else None
        deviation = 1.0 if lambda_returns is None else normalizers.deviation(lambda_returns)

        def estimate(params: Any) -> tuple[Array, Array, Array]:
            """Values, advantages and targets `[T, B]`; the values in the critic's scale."""
            value = value_of(params, features)
            last_value = value_of(params, last_features)
            advantage = returns.gae(
                reward,
                rows.discount,
                valid,
                value * deviation,
                last_value * deviation,
                config.discount,
                config.gae_lambda,
            )
            return value, advantage, value + advantage / deviation

        data = Batch(
            Observation(features, rows.observation.mask),
            rows.action,
            rows.extras["log_prob"],
            *estimate(state.params),
            weight,
        )

        def step(learner: tuple[Any, Any], minibatch: Batch) -> tuple[tuple[Any, Any], Metrics]:
            params, opt_state = learner
            if config.normalize_advantage:
                advantage = standardize(minibatch.advantage, minibatch.weight)
                minibatch = minibatch._replace(advantage=advantage)
            grads, metrics = jax.grad(loss, has_aux=True)(params, minibatch, schedules)
            grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
            metrics["policy/grad_norm"] = optax.tree.norm(grads)
            steps, opt_state = optimizer.update(grads, opt_state)
            params = jax.tree.map(lambda p, u: p - schedules.learning_rate * u, params, steps)
            return (params, opt_state), metrics

        def epoch(learner: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], Metrics]:
            batch = data
            if config.recompute_advantage:
                _, advantage, target = estimate(learner[0])
                batch = batch._replace(advantage=advantage, target=target)
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
            learner, metrics = jax.lax.scan(
                lambda learner, rows: step(learner, jax.tree.map(lambda x: x[rows], flat)),
                learner,
                minibatches.shuffled((length, num_envs), config.num_minibatches, key),
            )
            return learner, jax.tree.map(jnp.mean, metrics)

        learner = state.params, state.opt_state
        (params, opt_state), metrics = _epochs(config, epoch, learner, key)
        observation = state.observation
        if observation is not None:
            seen = jnp.asarray(rows.observation.features, jnp.float32)
            observation = normalizers.update(observation, seen, weight, AXIS)
        if lambda_returns is not None:
            rewards = normalizers.update(lambda_returns, data.target * deviation, weight, AXIS)
        metrics["value/explained_variance"] = explained_variance(data.value, data.target, weight)
        metrics["value/mean"] = mean_over_devices(data.value * deviation, weight)
        metrics["policy/learning_rate"] = schedules.learning_rate
        updates = state.updates + 1
        state = TrainState(
            params, opt_state, observation, rewards, running_sum, state.schedules, updates
        )
        return state, metrics

    return Agent(spec, init, initial_carry, act, update, stores=("log_prob",))


def _annealed(config: Config, schedules: Schedules, progress: Array) -> Schedules:
    left = jnp.maximum(1.0 - progress, 0.0)
    if config.anneal_learning_rate:
        schedules = schedules._replace(learning_rate=schedules.learning_rate * left)
    if config.anneal_clip_ratio:
        schedules = schedules._replace(clip_ratio=schedules.clip_ratio * left)
    return schedules


def _scale_reward(
    config: Config, state: TrainState, reward: Float[Array, "T B"], valid: Array
) -> tuple[Array, normalizers.Moments | None, Array | None]:
    """REWARD: rewards over the deviation of their running discounted sums, clipped; else as is.

    `state.running_sum` is of all environments; this device sees its own and gathers the others'.
    """
    if state.rewards is None or state.running_sum is None:  # running_sum: REWARD only
        return reward, state.rewards, state.running_sum
    mine = jax.lax.axis_index(AXIS) * reward.shape[1]
    before = jax.lax.dynamic_slice_in_dim(state.running_sum, mine, reward.shape[1])
    sums = returns.running_discounted_sum(reward, valid, before, config.discount)
    rewards = normalizers.update(state.rewards, sums, valid.astype(jnp.float32), AXIS)
    scaled = reward / normalizers.deviation(rewards)
    running_sum = jax.lax.all_gather(sums[-1], AXIS, tiled=True)
    return jnp.clip(scaled, -config.reward_clip, config.reward_clip), rewards, running_sum


def _epochs(
    config: Config, epoch: Callable[[Any, Array], tuple[Any, Metrics]], learner: Any, key: Array
) -> tuple[Any, Metrics]:
    """All epochs, or, with `target_kl`, until one ends with an approximate KL over 1.5 times it."""
    keys = jax.random.split(key, config.num_epochs)
    target_kl = config.target_kl
    if target_kl is None:
        learner, metrics = jax.lax.scan(epoch, learner, keys)
        return learner, jax.tree.map(jnp.mean, metrics)

    def guarded(carry: tuple[Any, Array], key: Array) -> tuple[tuple[Any, Array], Any]:
        learner, go = carry
        unchanged = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(epoch, learner, key)[1]
        )
        learner, metrics = jax.lax.cond(
            go, epoch, lambda learner, key: (learner, unchanged), learner, key
        )
        near = metrics["policy/approx_kl"] <= 1.5 * target_kl
        return (learner, go & near), (metrics, go)

    (learner, _), (metrics, ran) = jax.lax.scan(guarded, (learner, jnp.bool_(True)), keys)
    count = jnp.sum(ran)
    means = jax.tree.map(lambda x: jnp.sum(x) / count, metrics)
    return learner, {**means, "policy/epochs": count.astype(jnp.float32)}
