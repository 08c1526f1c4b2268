"""Conservative Q-learning for boxes: SAC plus the gap, CQL(H) (Kumar et al. 2020, 2006.04779).

Read `Config`, then `conservative_gap` and the losses, then `terms`. The gap's log Σ exp over all
actions is estimated from N uniform draws, N of the policy at the state and N of the policy at the
next state, all valued at the state itself, each by its density (app. F). One pass of the critics
values the 3N draws and the dataset's action together; the policy learns from a pass of its own, and
no draw of the gap teaches it. Actions are scaled to [-1, 1], whatever the bounds, and all densities
are of scaled ones. Axes: B rows of a sample, M draws, A dimensions of an action, E critics.

As in the authors' code, and unlike the paper: the TD error beside the gap is squared without a ½;
targets hold no entropy unless asked; log Σ exp is a sum over draws, no mean, which moves the gap by
log 3N and with it what a good `gap_target` is. As in CORL, whose forms differ there, the multiplier
is outside of gap - target, and the greatest of N draws is that of the lesser critic. Departs from
both: these draws are those of the gap. From CORL's alone, whose second critic has three hidden
layers whatever it is told and whose policy is never orthogonal: here all are as configured.

With `calibrated`, Cal-QL (Nakamoto et al. 2023, arXiv:2303.05479): the gap pushes no value of what
the policy does below what the data's actions brought: of its 2N draws, none of the uniform ones.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from agents.sac import (
    LOG_SCALE_RANGE,
    actor_loss,
    critic_loss,
    soft_value,
    temperature_loss,
)
from rljax import device_rows, normalizers, optim, validation
from rljax.agent import Agent
from rljax.distributions import Normal, TanhNormal
from rljax.loops import offline
from rljax.nn import box_critics, box_policies, ensemble, torsos
from rljax.nn.box_critics import BoxCritic
from rljax.nn.ensemble import NUM_CRITICS
from rljax.nn.heads import StateGaussianHead
from rljax.nn.mlp import Activation
from rljax.nn.policies import decide
from rljax.nn.torsos import Torso
from rljax.offline import rows
from rljax.offline.outlook import RETURN_TO_GO
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, EnvSpec, Metrics, Observation, Scalar

_HEAD_GAIN = 0.01  # of the policy's last layer
_EDGE = 1 - 1e-5  # the policy's density is not finite at ±1, where actions of datasets often lie
_MAX_MULTIPLIER = 1e6  # of the gap, where it is learned


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of CQL; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    actor_learning_rate: float = 3e-5  # of Adam, for policy and temperature: less than the critics'
    critic_learning_rate: float = 3e-4  # for critics and the gap's multiplier
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    target_rate: float = 0.005  # τ: how far the targets move towards the critics at each update
    conservative_weight: float = 10.0  # of the gap beside squared TD errors; 0 is SAC
    num_draws: int = 10  # N, of each of three kinds
    importance_sampling: bool = True  # each draw by its density; else all alike, and the data's too
    gap_target: float | None = None  # learn a multiplier that keeps the gap there; None: it is 1
    gap_min: float | None = None  # gaps of rows are clipped from below; None: never
    gap_max: float | None = None  # and from above
    max_target_backup: bool = False  # targets are the greatest of N draws; else one draw's
    backup_entropy: bool = False  # targets hold the entropy of what comes next
    calibrated: bool = False  # Cal-QL: in the gap, the policy's values are at least returns to go
    cloning_updates: int = 0  # at first, the policy learns the data's actions in place of Q
    initial_temperature: float = 1.0  # α: what a nat of entropy is worth, in reward
    learn_temperature: bool = True  # towards the target entropy; else α stays as it is
    target_entropy: float | None = None  # in nats, of actions in [-1, 1]; None: -A
    log_std_multiplier: float = 1.0  # ln σ = multiplier · layer + offset; both are learned
    log_std_offset: float = -1.0
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    normalize_reward: bool = False  # × 1,000 / (best - worst return of the dataset); values too
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    actor_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of each critic
    activation: Activation = Activation.RELU  # behind every hidden layer


class Policy(NamedTuple):
    """What acting needs; the critics only to say what a decision is worth."""

    actor: Any
    critic: Any
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    conservative_weight: Float[Array, ""]


class Params(NamedTuple):
    """What is learned."""

    actor: Any
    critic: Any  # of E critics
    log_temperature: Float[Array, ""]
    log_multiplier: Float[Array, ""]  # of the gap; with gap_target only


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Any  # parameters of the E target critics
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    reward_scale: Float[Array, ""] | None  # by its returns; the loop fills it in
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params.actor, self.params.critic, self.observation)


def conservative_gap(
    q: Float[Array, "E B M"],
    q_of_data: Float[Array, "E B"],
    log_density: Float[Array, "B M"] | None,
) -> Float[Array, "E B"]:
    """Log Σ exp(Q(s, aᵢ) - log density(aᵢ)) - Q(s, a) of each critic (app. F); gradient into Q.

    Without densities, all draws count alike, and the dataset's action is one of them.
    """
    if log_density is None:
        entries = jnp.concatenate([q, q_of_data[..., None]], axis=-1)
    else:
        entries = q - jax.lax.stop_gradient(log_density)[None]
    return jax.nn.logsumexp(entries, axis=-1) - q_of_data


def calibrated(
    q: Float[Array, "E B M"], return_to_go: Float[Array, " B"], bounded: Bool[np.ndarray, " M"]
) -> Float[Array, "E B M"]:
    """Values of draws, of those `bounded` no less than the return to go of the state (Cal-QL, §5).

    What the bound replaces gets no gradient: it is pushed down no further. A bound of -∞ is none.
    """
    return jnp.where(bounded[None, None], jnp.maximum(q, return_to_go[None, :, None]), q)


def multiplier(log_multiplier: Float[Array, ""]) -> Float[Array, ""]:
    """What the gap is multiplied by beside its weight: exp, at most a million."""
    return jnp.clip(jnp.exp(log_multiplier), 0.0, _MAX_MULTIPLIER)


def multiplier_loss(
    log_multiplier: Float[Array, ""], excess: Float[Array, "E B"], weight: Scalar
) -> Float[Array, " B"]:
    """-½ Σ multiplier · weight · (gap - target): it grows while gaps exceed their target."""
    excess = jax.lax.stop_gradient(jnp.sum(excess, axis=0))
    return -0.5 * multiplier(log_multiplier) * weight * excess


def next_value(
    q: Float[Array, "E B M"], log_prob: Float[Array, "B M"], temperature: Scalar
) -> Float[Array, " B"]:
    """Value of the best draw by the lesser critic, less `temperature` × log_prob; no gradient."""
    best = jax.nn.one_hot(jnp.argmax(jnp.min(q, axis=0), axis=-1), q.shape[-1])
    chosen = jnp.sum(best[None] * q, axis=-1)
    value = soft_value(chosen, jnp.sum(best * log_prob, axis=-1), temperature)
    return jax.lax.stop_gradient(value)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    rates = ("actor_learning_rate", "critic_learning_rate", "adam_epsilon", "target_rate")
    validation.positive(config, "total_updates", "batch_size", "num_steps", "num_draws", *rates)
    validation.positive(config, "initial_temperature", "observation_clip")
    validation.not_negative(config, "conservative_weight", "cloning_updates")
    validation.fraction(config, "discount", "target_rate")
    validation.sizes(config, "actor_hidden_sizes", "critic_hidden_sizes")
    offline.of(config).change.check()
    low, high = config.gap_min, config.gap_max
    if low is not None and high is not None and low >= high:
        raise ValueError(f"config.gap_min={low} must be less than config.gap_max={high}.")


def loop(config: Config) -> offline.Config:
    """How CQL is driven: batches of the dataset."""
    return offline.of(config)


class Actor(nn.Module):
    """A torso and a Gaussian before squashing: log deviations have a learned scale and offset."""

    torso: nn.Module
    size: int
    log_std_multiplier: float
    log_std_offset: float

    @nn.compact
    def __call__(self, features: Any) -> Normal:
        """Features to a Gaussian over what tanh squashes."""
        mean, raw = StateGaussianHead(self.size, _HEAD_GAIN)(self.torso(features))
        constant = nn.initializers.constant
        scale = self.param("log_std_multiplier", constant(self.log_std_multiplier), ())
        offset = self.param("log_std_offset", constant(self.log_std_offset), ())
        return Normal(mean, jnp.clip(scale * raw + offset, *LOG_SCALE_RANGE))


class Networks(NamedTuple):
    """Actor, critic, and the box; what is asked of them are functions of parameters."""

    actor: Actor
    critic: BoxCritic
    box: Box

    def init(self, example: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Parameters of the actor and of E critics."""
        actor_key, critic_key = jax.random.split(key)
        action = jnp.zeros((1, self.actor.size))
        critics = ensemble.init(self.critic, NUM_CRITICS, critic_key, example, action)
        return self.actor.init(actor_key, example), critics

    def look(self, params: Any, observation: Observation) -> Normal:
        """The policy before squashing, at normalized observations."""
        normal: Any = self.actor.apply(params, observation.features)
        return normal

    def q(self, critics: Any, observation: Observation, unit: Array) -> Array:
        """Q `[E, B, M]` of actions `[B, M, A]` in [-1, 1]."""
        return ensemble.apply(self.critic, critics, observation.features, unit)


def drawn(normal: Normal, noise: Float[Array, "B M A"]) -> tuple[Array, Array]:
    """Actions `[B, M, A]` in [-1, 1] that noise gives, and their log-densities `[B, M]`."""
    mean, log_scale = (jnp.broadcast_to(x[:, None], noise.shape) for x in normal)
    low, high = jnp.full(noise.shape, -1.0), jnp.full(noise.shape, 1.0)
    return TanhNormal(Normal(mean, log_scale), low, high).from_noise(noise)


def log_prob_of_data(normal: Normal, unit: Float[Array, "B A"]) -> Float[Array, " B"]:
    """Log-density of given actions in [-1, 1], which are moved off the edge: finite everywhere."""
    low, high = jnp.full(unit.shape, -1.0), jnp.full(unit.shape, 1.0)
    return TanhNormal(normal, low, high).log_prob(jnp.clip(unit, -_EDGE, _EDGE))


def terms(
    config: Config, networks: Networks, state: TrainState, params: Params, batch: Sample, key: Array
) -> dict[str, Float[Array, " B"]]:
    """The losses of each row, and what is logged of it; each loss teaches its own part of `params`.

    `batch` is normalized. Within a map over the axis `AXIS`.
    """
    frozen = jax.lax.stop_gradient(params)
    temperature, weight = jnp.exp(frozen.log_temperature), state.schedules.conservative_weight
    unit = box_policies.to_unit(batch.action, networks.box)
    (size, dims), count = unit.shape, config.num_draws
    normal_key, uniform_key = jax.random.split(key)
    noise = device_rows.normal(normal_key, (size, 2 * count + 2, dims))
    own, here, ahead = jnp.split(noise, (1, count + 1), axis=1)
    policy = networks.look(params.actor, batch.observation)
    next_policy = networks.look(frozen.actor, batch.next_observation)
    own, own_log_prob = drawn(policy, own)
    here, here_log_prob = drawn(jax.lax.stop_gradient(policy), here)
    ahead, ahead_log_prob = drawn(next_policy, ahead)  # N for the gap, then one for the target

    backed_up = slice(count) if config.max_target_backup else slice(count, count + 1)
    target_q = networks.q(state.target, batch.next_observation, ahead[:, backed_up])
    entropy_worth = temperature if config.backup_entropy else 0.0
    value = next_value(target_q, ahead_log_prob[:, backed_up], entropy_worth)

    anywhere = device_rows.uniform(uniform_key, (size, count, dims))
    actions = [anywhere, here, ahead[:, :count], unit[:, None]]
    q = networks.q(params.critic, batch.observation, jnp.concatenate(actions, axis=1))
    q, q_of_data = q[..., :-1], q[..., -1]
    uniform_density = jnp.full((size, count), -dims * math.log(2))
    densities = [uniform_density, here_log_prob, ahead_log_prob[:, :count]]
    log_density = jnp.concatenate(densities, axis=1) if config.importance_sampling else None
    bound = {}
    if config.calibrated:
        unbounded, q = q, calibrated(q, batch.extras[RETURN_TO_GO], np.arange(3 * count) >= count)
        bound["value/bound_rate"] = jnp.mean((q > unbounded)[..., count:], axis=(0, 2))
    gap = conservative_gap(q, q_of_data, log_density)
    excess = jnp.clip(gap, config.gap_min, config.gap_max) - (config.gap_target or 0.0)
    times = 1.0 if config.gap_target is None else multiplier(frozen.log_multiplier)

    def by_value() -> Array:
        own_q = networks.q(frozen.critic, batch.observation, own)[..., 0]
        return soft_value(own_q, own_log_prob[:, 0], temperature)

    def by_data() -> Array:
        return log_prob_of_data(policy, unit) - temperature * own_log_prob[:, 0]

    cloned = config.cloning_updates
    goal = jax.lax.cond(state.updates < cloned, by_data, by_value) if cloned else by_value()
    entropy = -own_log_prob[:, 0]
    wanted = -float(dims) if config.target_entropy is None else config.target_entropy
    return {
        "loss/critic": 2 * critic_loss(q_of_data, batch.reward, batch.discount, value),
        "loss/conservative": weight * times * jnp.sum(excess, axis=0),
        "loss/actor": actor_loss(goal),
        "loss/temperature": temperature_loss(params.log_temperature, entropy, wanted),
        "loss/multiplier": multiplier_loss(params.log_multiplier, excess, weight),
        "policy/entropy": entropy,
        "value/mean": jnp.min(q_of_data, axis=0),
        "value/gap": jnp.mean(gap, axis=0),
        **bound,
    }


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for anything but a box with bounds, for a torso that cannot look at what the
    environment shows, and for the normalization of nothing but pixels.
    """
    networks = networks_of(config, spec)
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        actor, critic = networks.init(spec.example().features, key)
        log_temperature = jnp.log(jnp.float32(config.initial_temperature))
        params = Params(actor, critic, log_temperature, jnp.float32(1.0))
        schedules = [getattr(config, name) for name in Schedules._fields]
        return TrainState(
            params,
            jax.tree.map(jnp.copy, critic),  # `update`'s state is donated: no two share a buffer
            optimizer.init(params),
            unknown,
            jnp.float32(1.0) if config.normalize_reward else None,
            Schedules(*map(jnp.float32, schedules)),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = rows.normalized(observation, policy.observation, config.observation_clip)
        normal = networks.look(policy.actor, observation)
        bounds = (networks.box.low, networks.box.high)
        low, high = (jnp.broadcast_to(jnp.float32(x), normal.mean.shape) for x in bounds)
        action, extras = decide(TanhNormal(normal, low, high), key, greedy=greedy)
        unit = box_policies.to_unit(action, networks.box)[..., None, :]
        q = networks.q(policy.critic, observation, unit)[..., 0]
        return carry, action, {**extras, "value": jnp.min(q, axis=0)}

    def loss(params: Params, state: TrainState, batch: Sample, key: Array) -> tuple[Array, Metrics]:
        """All losses over this device's rows; the mean over devices is that of all rows."""
        share = share_of_rows(batch.weight)
        found = terms(config, networks, state, params, batch, key)
        means = {name: jnp.sum(share * term) for name, term in found.items()}
        total = means["loss/critic"] + means["loss/conservative"] + means["loss/actor"]
        if config.learn_temperature:
            total += means["loss/temperature"]
        if config.gap_target is None:
            del means["loss/multiplier"]
        else:
            total += means["loss/multiplier"]
            means["value/gap_multiplier"] = multiplier(params.log_multiplier)
        means["policy/temperature"] = jnp.exp(params.log_temperature)
        return total, means

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        batch = rows.normalized_sample(batch, state.observation, config.observation_clip)
        batch = rows.scaled_rewards(batch, state.reward_scale)
        slow, fast = state.schedules.actor_learning_rate, state.schedules.critic_learning_rate
        (params, opt_state), metrics, _ = optim.gradient_step(
            lambda params: loss(params, state, batch, key),
            (state.params, state.opt_state),
            optimizer,
            Params(actor=slow, critic=fast, log_temperature=slow, log_multiplier=fast),
        )
        state = state._replace(
            params=params,
            target=optax.incremental_update(params.critic, state.target, config.target_rate),
            opt_state=opt_state,
            updates=state.updates + 1,
        )
        return state, metrics

    stores = (RETURN_TO_GO,) if config.calibrated else ()
    return Agent(spec, init, initial_carry, act, update, stores)


def networks_of(config: Config, spec: EnvSpec) -> Networks:
    """Networks for a box with bounds; ValueError for anything else."""
    if not isinstance(spec.action, Box) or not spec.action.bounded:
        raise ValueError(
            f"cql takes a box of actions with bounds, which {spec.name} does not have: use "
            "--agent=cql_discrete for one of several, or --agent=bc for any."
        )
    sizes = (config.actor_hidden_sizes, config.critic_hidden_sizes)
    torso, for_critic = (torsos.make(config.torso, spec, s, config.activation) for s in sizes)
    size = len(spec.action.low)
    actor = Actor(torso, size, config.log_std_multiplier, config.log_std_offset)
    critic = box_critics.make(spec, for_critic, config.critic_hidden_sizes, config.activation)
    return Networks(actor, critic, spec.action)
