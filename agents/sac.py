"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290 and 1812.05905), discrete as well.

Read `Config`, then the losses, then `update` inside `make`. Boxes: a Gaussian squashed by tanh into
the bounds, learned through its draws. Discrete actions (Christodoulou 2019, arXiv:1910.07207): all
expectations over actions are exact. What the two differ in is in `Networks`. Axes: B rows of a
sample, A actions or dimensions of one, E critics.

One gradient step moves critics, policy and temperature together, each by the others as they were
before it, as the authors' own code does. Log-densities, and with them the temperature and its
target, are of actions scaled to [-1, 1], whatever the bounds. Departs from the papers: n-step
targets add no entropy within the n steps; the temperature's loss is linear in log α, as in the
authors' code; the discrete target entropy counts the allowed actions only.
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
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from rljax import device_rows, distributions, losses, optim, validation
from rljax.agent import Agent
from rljax.loops import off_policy
from rljax.nn import box_critics, ensemble, torsos
from rljax.nn.ensemble import NUM_CRITICS
from rljax.nn.heads import LinearHead, StateGaussianHead
from rljax.nn.mlp import Activation
from rljax.nn.policies import decide, mask_of
from rljax.nn.torsos import Torso
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, Discrete, EnvSpec, Metrics, Observation, Scalar

LOG_SCALE_RANGE = (-20.0, 2.0)  # of ln σ, as in the authors' code
_HEAD_GAIN = 0.01  # of the policy's last layer: the first policies are near N(0, 1), or uniform


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of SAC; each field is a flag `--config.<field>`."""

    total_steps: int = 1_000_000  # rows collected in all, over all environments
    num_envs: int = 4  # stepped side by side
    rollout_length: int = 1  # rows per environment between updates
    num_updates: int = 4  # after every rollout: num_envs × rollout_length rows
    learning_starts: int = 10_000  # rows of uniform actions before the first update
    replay_capacity: int = 1_000_000  # rows kept, over all environments; the oldest make room
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    learning_rate: float = 3e-4  # of Adam, for policy, critics and temperature
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    target_rate: float = 0.005  # τ: how far the targets move towards the critics at each update
    initial_temperature: float = 1.0  # α: what a nat of entropy is worth, in reward
    learn_temperature: bool = True  # towards the target entropy; else α stays as it is
    target_entropy: float | None = None  # in nats, of actions in [-1, 1]; None: -A; boxes only
    target_entropy_fraction: float = 0.5  # of ln(number of allowed actions); discrete actions only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy and critics each, which share no layer
    activation: Activation = Activation.RELU  # behind every hidden layer


class Policy(NamedTuple):
    """What acting needs; the critics only to say what a decision is worth."""

    actor: Any
    critic: Any
    temperature: Float[Array, ""]
    learning: Bool[Array, ""]  # before the first update, actions are drawn uniformly


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]
    target_rate: Float[Array, ""]


class Params(NamedTuple):
    """What is learned."""

    actor: Any
    critic: Any  # of E critics
    log_temperature: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Any  # parameters of the E target critics
    opt_state: optax.OptState
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters, and whether they have learned anything."""
        temperature = jnp.exp(self.params.log_temperature)
        return Policy(self.params.actor, self.params.critic, temperature, self.updates > 0)


def soft_value(
    q: Float[Array, " E *batch"], log_prob: Float[Array, "*batch"], temperature: Scalar
) -> Float[Array, "*batch"]:
    """V = min Q(s, a) - α log π(a|s), of an action drawn from the policy (1812.05905, eq. 3)."""
    return jnp.min(q, axis=0) - temperature * log_prob


def expected_soft_value(
    q: Float[Array, "E *batch A"], chosen_by: distributions.Categorical, temperature: Scalar
) -> Float[Array, "*batch"]:
    """V = Σ π(a|s) (min Q(s, a) - α log π(a|s)), over all actions (1910.07207, eq. 10)."""
    probabilities = jnp.exp(chosen_by.log_probs)
    return jnp.sum(probabilities * jnp.min(q, axis=0), -1) + temperature * chosen_by.entropy()


def critic_loss(
    q: Float[Array, "E B"],
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    next_value: Float[Array, " B"],
) -> Float[Array, " B"]:
    """½(Q - (R + discount · V'))², summed over the critics (1812.05905, eq. 5); gradient into Q."""
    target = reward + discount * next_value
    return jnp.sum(losses.squared_error(q, jnp.broadcast_to(target[None], q.shape)), axis=0)


def actor_loss(value: Float[Array, " B"]) -> Float[Array, " B"]:
    """-V (1812.05905, eq. 9); the caller keeps its gradient from critics and temperature."""
    return -value


def temperature_loss(
    log_temperature: Float[Array, ""], entropy: Float[Array, " B"], target: Scalar
) -> Float[Array, " B"]:
    """(H - H̄) log α (1812.05905, eq. 18, in log α): α grows while entropy is below its target."""
    return log_temperature * jax.lax.stop_gradient(entropy - target)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.replay(config)
    validation.positive(config, "learning_rate", "adam_epsilon", "initial_temperature")
    validation.positive(config, "target_rate")
    validation.fraction(config, "target_rate", "target_entropy_fraction")
    validation.sizes(config, "hidden_sizes")


def loop(config: Config) -> off_policy.Config:
    """How SAC is driven: a row or a few of every environment, then as many updates from replay."""
    replay = off_policy.Replay(
        config.replay_capacity, config.batch_size, config.discount, config.num_steps
    )
    return off_policy.Config(
        config.total_steps,
        config.num_envs,
        config.rollout_length,
        config.num_updates,
        config.learning_starts,
        replay,
    )


class Networks(NamedTuple):
    """What boxes and discrete actions differ in, made by `box` and `discrete`.

    Functions of parameters and observations; actions are as the environment takes them.
    """

    init: Callable[[PRNGKeyArray], tuple[Any, Any]]  # key -> actor, critic
    # actor, critic, observation, α, key -> V of the policy [B], and its entropy [B]
    value: Callable[[Any, Any, Observation, Scalar, PRNGKeyArray], tuple[Array, Array]]
    q: Callable[[Any, Observation, Array], Array]  # critic, observation, action -> Q [E, B]
    # policy, observation, key, greedy -> action and extras of `Agent.act`
    decide: Callable[[Policy, Observation, PRNGKeyArray, bool], tuple[Array, dict[str, Array]]]
    target_entropy: Callable[[Observation], Scalar]  # one for all, or [B]


def box(config: Config, spec: EnvSpec, action_spec: Box) -> Networks:
    """Networks for a box; ValueError where it has no bounds."""
    if not action_spec.bounded:
        raise ValueError(f"sac needs bounds, and {spec.name} has none: use --agent=ppo.")
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    size = len(action_spec.low)
    actor = nn.Sequential([torso, StateGaussianHead(size, _HEAD_GAIN)])
    critic = box_critics.make(spec, torso, config.hidden_sizes, config.activation)
    low, high = (np.array(x, np.float32) for x in (action_spec.low, action_spec.high))
    example = spec.example().features

    def init(key: PRNGKeyArray) -> tuple[Any, Any]:
        actor_key, critic_key = jax.random.split(key)
        critics = ensemble.init(critic, NUM_CRITICS, critic_key, example, jnp.zeros(size))
        return actor.init(actor_key, example), critics

    def within(params: Any, features: Any, low: Any, high: Any) -> distributions.TanhNormal:
        mean, log_scale = map(jnp.asarray, actor.apply(params, features))
        normal = distributions.Normal(mean, jnp.clip(log_scale, *LOG_SCALE_RANGE))
        low, high = (jnp.broadcast_to(jnp.float32(x), mean.shape) for x in (low, high))
        return distributions.TanhNormal(normal, low, high)

    def value(
        params: Any, critics: Any, observation: Observation, temperature: Scalar, key: PRNGKeyArray
    ) -> tuple[Array, Array]:
        chosen_by = within(params, observation.features, -1.0, 1.0)
        action, log_prob = chosen_by.from_noise(device_rows.normal(key, chosen_by.low.shape))
        q = ensemble.apply(critic, critics, observation.features, action)
        return soft_value(q, log_prob, temperature), -log_prob

    def q(critics: Any, observation: Observation, action: Array) -> Array:
        bottom, top = (jnp.broadcast_to(x, action.shape) for x in (low, high))
        unit = 2 * (action - bottom) / (top - bottom) - 1
        return ensemble.apply(critic, critics, observation.features, unit)

    def choose(
        policy: Policy, observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[Array, dict[str, Array]]:
        chosen_by = within(policy.actor, observation.features, low, high)
        action, extras = decide(chosen_by, key, greedy=greedy)
        if not greedy:
            anywhere = jax.random.uniform(key, action.shape)
            anywhere = chosen_by.low + (chosen_by.high - chosen_by.low) * anywhere
            action = jnp.where(policy.learning, action, anywhere)
            log_volume = np.sum(np.log(high - low))
            for name, number in (("log_prob", -log_volume), ("entropy", log_volume)):
                extras[name] = jnp.where(policy.learning, extras[name], number)
        return action, {**extras, "value": jnp.min(q(policy.critic, observation, action), axis=0)}

    target = -float(size) if config.target_entropy is None else config.target_entropy
    return Networks(init, value, q, choose, lambda observation: target)


def discrete(config: Config, spec: EnvSpec, action_spec: Discrete) -> Networks:
    """Networks for one of several actions; forbidden ones are neither taken nor valued."""
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    size = action_spec.num_actions
    actor = nn.Sequential([torso, LinearHead(size, _HEAD_GAIN)])
    critic = nn.Sequential([torso.copy(), LinearHead(size, 1.0)])
    example = spec.example().features

    def init(key: PRNGKeyArray) -> tuple[Any, Any]:
        actor_key, critic_key = jax.random.split(key)
        critics = ensemble.init(critic, NUM_CRITICS, critic_key, example)
        return actor.init(actor_key, example), critics

    def logits_of(params: Any, observation: Observation) -> Array:
        return jnp.asarray(actor.apply(params, observation.features))

    def value(
        params: Any, critics: Any, observation: Observation, temperature: Scalar, key: PRNGKeyArray
    ) -> tuple[Array, Array]:
        del key  # no draw: the expectation is exact
        logits = logits_of(params, observation)
        chosen_by = distributions.categorical(logits, mask_of(observation))
        q = ensemble.apply(critic, critics, observation.features)
        return expected_soft_value(q, chosen_by, temperature), chosen_by.entropy()

    def q(critics: Any, observation: Observation, action: Array) -> Array:
        # A one-hot sum, not a gather: its gradient is a product instead of a scatter, slow on CPU.
        chosen = jax.nn.one_hot(action, size)[None]
        return jnp.sum(chosen * ensemble.apply(critic, critics, observation.features), axis=-1)

    def choose(
        policy: Policy, observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[Array, dict[str, Array]]:
        logits = logits_of(policy.actor, observation)
        if not greedy:
            logits = jnp.where(policy.learning, logits, 0.0)
        chosen_by = distributions.categorical(logits, mask_of(observation))
        action, extras = decide(chosen_by, key, greedy=greedy)
        q = ensemble.apply(critic, policy.critic, observation.features)
        return action, {**extras, "value": expected_soft_value(q, chosen_by, policy.temperature)}

    def target_entropy(observation: Observation) -> Scalar:
        mask = mask_of(observation)
        allowed = float(size) if mask is None else jnp.maximum(jnp.sum(mask, axis=-1), 1)
        return config.target_entropy_fraction * jnp.log(allowed)

    return Networks(init, value, q, choose, target_entropy)


def terms(
    networks: Networks, params: Params, target: Any, batch: Sample, key: PRNGKeyArray
) -> dict[str, Float[Array, " B"]]:
    """The losses of each row, and what is logged of it; each loss teaches its own part of `params`.

    `target` are the parameters of the target critics. Within a map over the axis `AXIS`.
    """
    frozen = jax.lax.stop_gradient(params)
    temperature = jnp.exp(frozen.log_temperature)
    next_key, key = jax.random.split(key)
    next_value, _ = networks.value(
        frozen.actor, target, batch.next_observation, temperature, next_key
    )
    q = networks.q(params.critic, batch.observation, batch.action)
    value, entropy = networks.value(
        params.actor, frozen.critic, batch.observation, temperature, key
    )
    wanted = networks.target_entropy(batch.observation)
    return {
        "loss/critic": critic_loss(q, batch.reward, batch.discount, next_value),
        "loss/actor": actor_loss(value),
        "loss/temperature": temperature_loss(params.log_temperature, entropy, wanted),
        "policy/entropy": entropy,
        "value/mean": jnp.min(q, axis=0),
    }


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for a box without bounds, several actions at once, or a torso that cannot see.
    """
    match spec.action:
        case Box() as action_spec:
            networks = box(config, spec, action_spec)
        case Discrete() as action_spec:
            networks = discrete(config, spec, action_spec)
        case _:
            raise ValueError(
                f"sac takes a box of actions or one of several, and {spec.name} asks for several "
                "at once: use --agent=ppo."
            )
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        actor, critic = networks.init(key)
        params = Params(actor, critic, jnp.log(jnp.float32(config.initial_temperature)))
        return TrainState(
            params,
            jax.tree.map(jnp.copy, critic),  # `update`'s state is donated: no two share a buffer
            optimizer.init(params),
            Schedules(jnp.float32(config.learning_rate), jnp.float32(config.target_rate)),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        return carry, *networks.decide(policy, observation, key, greedy)

    def loss(
        params: Params, target: Any, batch: Sample, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """All losses over this device's rows; the mean over devices is that of all rows."""
        share = share_of_rows(batch.weight)
        rows = terms(networks, params, target, batch, key)
        means = {name: jnp.sum(share * row) for name, row in rows.items()}
        total = means["loss/critic"] + means["loss/actor"]
        if config.learn_temperature:
            total += means["loss/temperature"]
        return total, {**means, "policy/temperature": jnp.exp(params.log_temperature)}

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        rates = state.schedules
        (params, opt_state), metrics, _ = optim.gradient_step(
            lambda params: loss(params, state.target, batch, key),
            (state.params, state.opt_state),
            optimizer,
            rates.learning_rate,
        )
        target = optax.incremental_update(params.critic, state.target, rates.target_rate)
        return TrainState(params, target, opt_state, rates, state.updates + 1), metrics

    return Agent(spec, init, initial_carry, act, update)
