"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), for vectors and pixels.

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import distributions, epochs, losses, minibatches, normalizers, returns, validation
from rljax.agent import AXIS, Agent
from rljax.loops import on_policy
from rljax.nn import actor_critic, policies, torsos
from rljax.nn.mlp import Activation
from rljax.nn.policies import BoxPolicy
from rljax.nn.torsos import Torso
from rljax.policy_gradient import gradient_step
from rljax.reductions import explained_variance, mean_over_devices, share_of_rows, standardize
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
    normalize_observation: bool = False  # vectors, by running moments; pixels are always over 255
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    reward_scale: RewardScale = RewardScale.NONE  # what is divided by a running deviation, if any
    reward_clip: float = 10.0  # scaled rewards are clipped to ± this; with reward_scale=reward only
    torso: Torso = Torso.AUTO  # auto: mlp for vectors, nature for frames, grid for small boards
    shared_torso: bool | None = None  # by actor and critic; None: where there are pixels
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the mlp that looks at vectors
    activation: Activation = Activation.TANH  # behind every layer of that mlp
    box_policy: BoxPolicy = BoxPolicy.NORMAL  # for boxes: clipped to the bounds, or squashed
    initial_log_std: float = 0.0  # boxes only: ln σ, a free parameter per action dimension
    policy_head_scale: float = 0.01  # gain of the policy's last layer; small: near uniform at first


class Policy(NamedTuple):
    """What acting needs: parameters, and the statistics that observations are normalized by."""

    params: dict[str, Any]  # of `rljax.nn.actor_critic`
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


def objective(
    config: Config,
    schedules: Schedules,
    chosen_by: distributions.Distribution,
    value: Float[Array, " B"],
    batch: Batch,
) -> tuple[Array, Metrics]:
    """Eq. 9 over this device's rows; the mean over devices is the mean over all rows."""
    share = share_of_rows(batch.weight)
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


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    counts = ("num_envs", "rollout_length", "num_epochs", "num_minibatches")
    steps = ("learning_rate", "adam_epsilon", "max_grad_norm", "clip_ratio", "policy_head_scale")
    optional = ("clip_value", "target_kl")
    validation.positive(config, *counts, *steps, *optional, "observation_clip", "reward_clip")
    validation.fraction(config, "discount", "gae_lambda")
    validation.not_negative(config, "entropy_cost", "value_cost")
    validation.sizes(config, "hidden_sizes")
    validation.rollouts(config)


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

    Raises ValueError for a squashed policy over a box without bounds, for a torso that cannot look
    at what the environment shows, and for the normalization of nothing but pixels.
    """
    squashed = config.box_policy is BoxPolicy.TANH_NORMAL
    if squashed and isinstance(spec.action, Box) and not spec.action.bounded:
        raise ValueError(f"{spec.name} has unbounded actions: use config.box_policy=normal.")
    networks = actor_critic.make(
        spec,
        config.torso,
        config.hidden_sizes,
        config.activation,
        shared=config.shared_torso,
        head_gain=config.policy_head_scale,
        initial_log_scale=config.initial_log_std,
    )
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    pixels = torsos.has_pixels(spec)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_epsilon),
    )
    rows = config.num_envs * config.rollout_length
    total_updates = config.total_steps // rows

    def init(key: PRNGKeyArray) -> TrainState:
        params = networks.init(key)
        return initial_state(config, params, optimizer.init(params), unknown)

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def normalized(policy: Policy, features: Any) -> Any:
        return normalizers.normalize_observation(
            features, policy.observation, config.observation_clip
        )

    def look(params: Any, observation: Observation) -> tuple[distributions.Distribution, Array]:
        """What the actor would do, and the critic's value."""
        outputs, value = networks.apply(params, observation.features)
        mask = policies.mask_of(observation)
        return policies.distribution(spec.action, config.box_policy, outputs, mask), value

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = observation._replace(features=normalized(policy, observation.features))
        chosen_by, value = look(policy.params, observation)
        action, extras = policies.decide(chosen_by, key, greedy=greedy)
        return carry, action, {**extras, "value": value}

    def values(params: Any, features: Any) -> Array:
        """V of all rows `[T, B]`; of pixels no more at a time than a minibatch has."""
        if not pixels:
            return networks.critic(params, features)
        some = -(-config.rollout_length // config.num_minibatches)
        return jax.lax.map(lambda x: networks.critic(params, x), features, batch_size=some)

    def loss(params: Any, batch: Batch, schedules: Schedules) -> tuple[Array, Metrics]:
        chosen_by, value = look(params, batch.observation)
        return objective(config, schedules, chosen_by, value, batch)

    def update(
        state: TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        schedules = annealed(config, state.schedules, state.updates / total_updates)
        rows, valid = batch.transitions, batch.transitions.valid
        length, num_envs = valid.shape
        weight = valid.astype(jnp.float32)
        # Statistics of before this rollout: those that its log-probabilities came from.
        features = normalized(state.policy, rows.observation.features)
        last_features = normalized(state.policy, batch.last_observation.features)
        reward, rewards, running_sum = scale_reward(config, state, rows.reward, valid)
        lambda_returns = state.rewards if config.reward_scale is RewardScale.VALUE else None
        deviation = 1.0 if lambda_returns is None else normalizers.deviation(lambda_returns)

        def estimate(params: Any) -> tuple[Array, Array, Array]:
            """Values, advantages and targets `[T, B]`; the values in the critic's scale."""
            value = values(params, features)
            last_value = networks.critic(params, last_features)
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
            if config.normalize_advantage:
                advantage = standardize(minibatch.advantage, minibatch.weight)
                minibatch = minibatch._replace(advantage=advantage)
            return gradient_step(
                lambda params: loss(params, minibatch, schedules),
                learner,
                optimizer,
                schedules.learning_rate,
            )

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
        keys = jax.random.split(key, config.num_epochs)
        (params, opt_state), metrics = epochs.run(epoch, learner, keys, config.target_kl)
        observation = state.observation
        if observation is not None:
            seen = rows.observation.features
            observation = normalizers.update_observation(observation, seen, weight, AXIS)
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


def initial_state(
    config: Config, params: Any, opt_state: optax.OptState, unknown: normalizers.Moments | None
) -> TrainState:
    """The state before the first update; `unknown` are moments of observations not yet seen."""
    scale = config.reward_scale
    return TrainState(
        params,
        opt_state,
        unknown,
        None if scale is RewardScale.NONE else normalizers.init(),
        jnp.zeros(config.num_envs) if scale is RewardScale.REWARD else None,
        Schedules(
            jnp.float32(config.learning_rate),
            jnp.float32(config.clip_ratio),
            jnp.float32(config.entropy_cost),
        ),
        jnp.int32(0),
    )


def annealed(config: Config, schedules: Schedules, progress: Array) -> Schedules:
    """The schedules where the share `progress` of all updates is done."""
    left = jnp.maximum(1.0 - progress, 0.0)
    if config.anneal_learning_rate:
        schedules = schedules._replace(learning_rate=schedules.learning_rate * left)
    if config.anneal_clip_ratio:
        schedules = schedules._replace(clip_ratio=schedules.clip_ratio * left)
    return schedules


def scale_reward(
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
