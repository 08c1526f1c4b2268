"""Implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169): no action outside the dataset.

Read `Config`, then the losses (eqs. 5 to 7), then `update` inside `make`. The order is that of the
authors' code: V from the target critics; policy and critics with the new V; then the targets. The
policy's weights come from the same lesser target critic that V was moved towards. Boxes: a Gaussian
that is not squashed, of actions scaled to [-1, 1], its mean by tanh. Discrete actions: critics
value all of them in one pass, the policy is categorical, masks are obeyed; with
`support_threshold` a model of the behavior is learned beside it, and what that finds too rare is
never chosen. Axes: B rows of a sample, A actions or dimensions of one, E critics.

Departs from the authors' code: the first biases of critics and V are random (docs/benchmarks.md has
what that brings); ½ in the critics' loss, which Adam cancels; n-step returns, if asked for, are the
behavior's; no dropout.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from agents.sac import critic_loss
from rljax import distributions, losses, normalizers, optim, validation
from rljax.agent import Agent
from rljax.distributions import Distribution
from rljax.loops import offline
from rljax.nn import box_critics, box_policies, ensemble, initializers, policies, torsos
from rljax.nn.ensemble import NUM_CRITICS
from rljax.nn.heads import LinearHead, ValueHead
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.offline import rows, support
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, Discrete, EnvSpec, Metrics, Observation, Scalar

_HEAD_GAIN = 0.01  # of the policy's last layer: the first policies are near N(0, 1), or uniform


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of IQL; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    expectile: float = 0.7  # τ of eq. 5: 0.5 is the mean of Q, towards 1 its maximum in the data
    inverse_temperature: float = 3.0  # β of eq. 7: 0 is behavior cloning
    max_weight: float = 100.0  # the most that exp(βA) may weigh
    actor_learning_rate: float = 3e-4  # of Adam
    anneal_actor_learning_rate: bool = True  # along a cosine, to 0 at total_updates
    critic_learning_rate: float = 3e-4  # of Q, and of the behavior's model
    value_learning_rate: float = 3e-4  # of V
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    target_rate: float = 0.005  # how far the targets move towards the critics at each update
    deterministic: bool = False  # boxes only: weigh (μ - a)² in place of -log π(a|s)
    initial_log_std: float = 0.0  # boxes only: ln σ, a free parameter per dimension, in [-1, 1]
    support_threshold: float = 0.0  # choices below this × the behavior's likeliest are never made
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    normalize_reward: bool = False  # × 1,000 / (best - worst return of the dataset); values too
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy, critics and V each, which share none
    activation: Activation = Activation.RELU  # behind every hidden layer


class Policy(NamedTuple):
    """What acting needs; V only to say what a state is worth."""

    actor: Any
    value: Any
    behavior: Any  # None without support_threshold
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    value_learning_rate: Float[Array, ""]
    expectile: Float[Array, ""]
    inverse_temperature: Float[Array, ""]


class Params(NamedTuple):
    """What is learned."""

    actor: Any
    critic: Any  # of E critics
    value: Any
    behavior: Any  # None without support_threshold


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Any  # parameters of the E target critics
    opt_state: tuple[optax.OptState, optax.OptState]  # of V; of the others
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    reward_scale: Float[Array, ""] | None  # by its returns; the loop fills it in
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        params = self.params
        return Policy(params.actor, params.value, params.behavior, self.observation)


def value_loss(
    value: Float[Array, " B"], q: Float[Array, " B"], expectile: Scalar
) -> Float[Array, " B"]:
    """Eq. 5: |τ - 1(u < 0)| u², u = Q - V: V moves towards the τ-expectile; gradient into V."""
    u = jax.lax.stop_gradient(q) - value
    return jnp.where(u < 0, 1 - expectile, expectile) * u**2


def advantage_weight(
    advantage: Float[Array, " B"], inverse_temperature: Scalar, max_weight: float
) -> Float[Array, " B"]:
    """min(exp(βA), max_weight); no gradient. The exponent is cut, so that nothing overflows."""
    exponent = jnp.minimum(inverse_temperature * advantage, math.log(max_weight))
    return jax.lax.stop_gradient(jnp.exp(exponent))


def actor_loss(log_prob: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """Eq. 7: -exp(βA) log π(a|s); the gradient reaches the policy only."""
    return losses.policy_gradient(log_prob, weight)


def squared_error(mean: Float[Array, "B A"], action: Float[Array, "B A"]) -> Float[Array, " B"]:
    """(μ(s) - a)², summed over the dimensions: what a deterministic policy has for -log π."""
    return jnp.sum((mean - action) ** 2, axis=-1)


def cosine(updates: Array, total_updates: int) -> Float[Array, ""]:
    """½(1 + cos(π t / T)): from 1 to 0, where it stays (Loshchilov & Hutter 2017, eq. 5)."""
    progress = jnp.clip(updates / total_updates, 0.0, 1.0)
    return 0.5 * (1 + jnp.cos(math.pi * progress))


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    rates = ("actor_learning_rate", "critic_learning_rate", "value_learning_rate", "target_rate")
    validation.positive(config, "total_updates", "batch_size", "num_steps", *rates)
    validation.positive(config, "adam_epsilon", "max_weight", "observation_clip")
    validation.not_negative(config, "inverse_temperature")
    validation.fraction(config, "discount", "target_rate", "support_threshold")
    validation.sizes(config, "hidden_sizes")
    offline.of(config).change.check()
    if not 0 < config.expectile < 1:
        raise ValueError(f"config.expectile must lie in (0, 1), not {config.expectile}.")


def loop(config: Config) -> offline.Config:
    """How IQL is driven: batches of the dataset."""
    return offline.of(config)


class Networks(NamedTuple):
    """What boxes and discrete actions differ in, made by `box` and `discrete`.

    Functions of parameters and normalized observations; actions are as the environment takes them.
    """

    init: Callable[[PRNGKeyArray], tuple[Any, Any]]  # key -> actor, critic
    q: Callable[[Any, Observation, Array], Array]  # critic, observation, action -> Q [E, B]
    # actor, observation, action -> -log π of it, or squared error [B], and the entropy [B]
    surprise: Callable[[Any, Observation, Array], tuple[Array, Array]]
    # actor, behavior, observation -> the policy, of the environment's own actions
    chosen_by: Callable[[Any, Any, Observation], Distribution]


def box(config: Config, spec: EnvSpec, action_spec: Box) -> Networks:
    """Networks for a box."""
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    actor = box_policies.GaussianActor(
        torso, action_spec, False, config.initial_log_std, _HEAD_GAIN
    )
    critic = box_critics.make(spec, torso, config.hidden_sizes, config.activation)
    example, size = spec.example().features, len(action_spec.low)

    def init(key: PRNGKeyArray) -> tuple[Any, Any]:
        actor_key, critic_key = jax.random.split(key)
        critics = ensemble.init(critic, NUM_CRITICS, critic_key, example, jnp.zeros(size))
        return actor.init(actor_key, example), critics

    def look(params: Any, observation: Observation) -> distributions.Normal:
        normal: Any = actor.apply(params, observation.features)
        return normal

    def q(critics: Any, observation: Observation, action: Array) -> Array:
        unit = box_policies.to_unit(action, action_spec)
        return ensemble.apply(critic, critics, observation.features, unit)

    def surprise(params: Any, observation: Observation, action: Array) -> tuple[Array, Array]:
        normal, unit = look(params, observation), box_policies.to_unit(action, action_spec)
        if config.deterministic:
            return squared_error(normal.mean, unit), normal.entropy()
        return -normal.log_prob(unit), normal.entropy()

    def chosen_by(params: Any, behavior: Any, observation: Observation) -> Distribution:
        del behavior  # of choices only
        return box_policies.stretched(look(params, observation), action_spec)

    return Networks(init, q, surprise, chosen_by)


def discrete(config: Config, spec: EnvSpec, action_spec: Discrete) -> Networks:
    """Networks for one of several actions; forbidden ones have no probability."""
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    size = action_spec.num_actions
    actor = nn.Sequential([torso, LinearHead(size, _HEAD_GAIN)])
    critic = nn.Sequential([torso.copy(), LinearHead(size, 1.0)])
    example = spec.example().features

    def init(key: PRNGKeyArray) -> tuple[Any, Any]:
        actor_key, critic_key = jax.random.split(key)
        critics = ensemble.init(critic, NUM_CRITICS, critic_key, example)
        return actor.init(actor_key, example), critics

    def q(critics: Any, observation: Observation, action: Array) -> Array:
        # A one-hot sum, not a gather: its gradient is a product instead of a scatter, slow on CPU.
        chosen = jax.nn.one_hot(action, size)[None]
        return jnp.sum(chosen * ensemble.apply(critic, critics, observation.features), axis=-1)

    def look(params: Any, observation: Observation) -> distributions.Categorical:
        logits = jnp.asarray(actor.apply(params, observation.features))
        return distributions.categorical(logits, policies.mask_of(observation))

    def chosen_by(params: Any, behavior: Any, observation: Observation) -> Distribution:
        policy = look(params, observation)
        if not config.support_threshold:
            return policy
        imitated = look(behavior, observation)
        common = support.supported(
            imitated, config.support_threshold, policies.mask_of(observation)
        )
        return distributions.categorical(policy.log_probs, common)

    def surprise(params: Any, observation: Observation, action: Array) -> tuple[Array, Array]:
        categorical = look(params, observation)
        return -categorical.log_prob(action), categorical.entropy()

    return Networks(init, q, surprise, chosen_by)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizers; every function it returns is pure.

    Raises ValueError for several choices at once, a torso that cannot look at what the environment
    shows, and the normalization of nothing but pixels.
    """
    networks = _networks(config, spec)
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    state_value = nn.Sequential([torso, ValueHead()])
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        key, value_key, *bias_keys = jax.random.split(key, 4)
        actor, critic = networks.init(key)
        value = state_value.init(value_key, spec.example().features)
        critic, value = map(initializers.random_biases, (critic, value), bias_keys)
        # The behavior's model is a network like the policy's, and starts where that starts.
        behavior: Any = jax.tree.map(jnp.copy, actor) if config.support_threshold else None
        others: Any = (actor, critic, behavior)
        schedules = [getattr(config, name) for name in Schedules._fields]
        return TrainState(
            Params(actor, critic, value, behavior),
            jax.tree.map(jnp.copy, critic),  # `update`'s state is donated: no two share a buffer
            (optimizer.init(value), optimizer.init(others)),
            unknown,
            jnp.float32(1.0) if config.normalize_reward else None,
            Schedules(*map(jnp.float32, schedules)),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def value_of(params: Any, features: Any) -> Array:
        return jnp.asarray(state_value.apply(params, features))

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = rows.normalized(observation, policy.observation, config.observation_clip)
        chosen_by = networks.chosen_by(policy.actor, policy.behavior, observation)
        action, extras = policies.decide(chosen_by, key, greedy=greedy)
        return carry, action, {**extras, "value": value_of(policy.value, observation.features)}

    def learn_value(
        state: TrainState, batch: Sample, q: Array, share: Array
    ) -> tuple[tuple[Any, optax.OptState], Metrics]:
        """V after a step towards the expectile of the target critics' `q` `[B]`."""

        def loss(params: Any) -> tuple[Array, Metrics]:
            value = value_of(params, batch.observation.features)
            error = jnp.sum(share * value_loss(value, q, state.schedules.expectile))
            return error, {"loss/value": error, "value/mean": jnp.sum(share * value)}

        learner = state.params.value, state.opt_state[0]
        rate = state.schedules.value_learning_rate
        learner, metrics, _ = optim.gradient_step(loss, learner, optimizer, rate)
        return learner, metrics

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        del key  # deterministic given the batch
        batch = rows.normalized_sample(batch, state.observation, config.observation_clip)
        batch = rows.scaled_rewards(batch, state.reward_scale)
        share, rates = share_of_rows(batch.weight), state.schedules
        target_q = jnp.min(networks.q(state.target, batch.observation, batch.action), axis=0)
        (value, value_opt_state), metrics = learn_value(state, batch, target_q, share)
        # The new V of both observations in one pass.
        features = (batch.observation.features, batch.next_observation.features)
        both = value_of(value, jax.tree.map(lambda *x: jnp.concatenate(x), *features))
        now, ahead = jnp.split(both, 2)
        weight = advantage_weight(target_q - now, rates.inverse_temperature, config.max_weight)

        def loss(learned: tuple[Any, Any, Any]) -> tuple[Array, Metrics]:
            """Of all but V over this device's rows."""
            actor, critic, behavior = learned
            surprise, entropy = networks.surprise(actor, batch.observation, batch.action)
            q = networks.q(critic, batch.observation, batch.action)
            terms = {
                "loss/actor": actor_loss(-surprise, weight),
                "loss/critic": critic_loss(q, batch.reward, batch.discount, ahead),
                "policy/entropy": entropy,
                "policy/advantage": target_q - now,
                "policy/weight": weight,
            }
            if config.support_threshold:
                terms["loss/behavior"], _ = networks.surprise(
                    behavior, batch.observation, batch.action
                )
            means = {name: jnp.sum(share * term) for name, term in terms.items()}
            total = means["loss/actor"] + means["loss/critic"]
            return total + means.get("loss/behavior", 0.0), means

        learned = (state.params.actor, state.params.critic, state.params.behavior)
        actor_rate = rates.actor_learning_rate
        if config.anneal_actor_learning_rate:
            actor_rate *= cosine(state.updates, config.total_updates)
        ((actor, critic, behavior), opt_state), found, _ = optim.gradient_step(
            loss,
            (learned, state.opt_state[1]),
            optimizer,
            (actor_rate, rates.critic_learning_rate, rates.critic_learning_rate),
        )
        state = state._replace(
            params=Params(actor, critic, value, behavior),
            target=optax.incremental_update(critic, state.target, config.target_rate),
            opt_state=(value_opt_state, opt_state),
            updates=state.updates + 1,
        )
        return state, {**metrics, **found, "policy/learning_rate": actor_rate}

    return Agent(spec, init, initial_carry, act, update)


def _networks(config: Config, spec: EnvSpec) -> Networks:
    match spec.action:
        case Box() as action_spec:
            if config.support_threshold:
                raise ValueError(
                    f"config.support_threshold is of choices, and {spec.name} takes real actions: "
                    "leave it at 0."
                )
            return box(config, spec, action_spec)
        case Discrete() as action_spec:
            if config.deterministic:
                raise ValueError(
                    f"config.deterministic is of real actions, and {spec.name} takes choices: "
                    "leave it off."
                )
            return discrete(config, spec, action_spec)
    raise ValueError(
        f"iql takes a box of actions or one of several, and {spec.name} asks for several at once: "
        "use --agent=bc."
    )
