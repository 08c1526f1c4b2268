"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860): TD3 whose policy stays near the data.

Read `Config`, then the losses, then `update` inside `make`. Critics learn at every update from
smoothed targets (Fujimoto et al. 2018, arXiv:1802.09477); the policy, and with it all targets, at
every `policy_period`-th. Actions are scaled to [-1, 1], whatever the bounds: the noise, its limit
and the cloning term are in half-widths of the box. Axes: B rows of a sample, A dimensions of an
action, E critics.

Departs from the authors' code: ½ in the critics' loss, which Adam cancels; draws that are not
greedy, of which offline learning has no use, are Gaussian, so that their density is known.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from agents.sac import NUM_CRITICS, BoxCritic, critic_loss
from rljax import device_rows, distributions, normalizers, validation
from rljax.agent import AXIS, Agent
from rljax.loops import offline
from rljax.nn import box_policies, ensemble, policies, torsos
from rljax.nn.heads import LinearHead
from rljax.nn.mlp import MLP, Activation
from rljax.nn.torsos import Torso
from rljax.offline import rows
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, EnvSpec, Metrics, Observation, Scalar

_HEAD_GAIN = 0.01  # of the policy's last layer: its first actions are in the middle of the box


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of TD3+BC; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    value_weight: float = 2.5  # α of λ = α / mean |Q₁|: the policy's share in Q; 0: cloning alone
    policy_period: int = 2  # updates of the critics to one of policy and targets
    target_noise: float = 0.2  # σ of the targets' actions, in half-widths of the box
    target_noise_clip: float = 0.5  # the most that the noise adds, likewise
    exploration_noise: float = 0.1  # σ of draws that are not greedy, likewise
    actor_learning_rate: float = 3e-4  # of Adam
    critic_learning_rate: float = 3e-4
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    target_rate: float = 0.005  # τ: how far targets move, each time that the policy learns
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy and critics each, which share no layer
    activation: Activation = Activation.RELU  # behind every hidden layer


class Params(NamedTuple):
    """What is learned; the targets are another."""

    actor: Any
    critic: Any  # of E critics


class Policy(NamedTuple):
    """What acting needs; the critics only to say what a decision is worth."""

    params: Params
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    value_weight: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Params
    opt_state: Params  # the optimizer's states of both
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    schedules: Schedules
    measured: Metrics  # of the policy's last step: reported until its next
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params, self.observation)


def smoothed(
    action: Float[Array, "B A"], noise: Float[Array, "B A"], scale: float, clip: float
) -> Float[Array, "B A"]:
    """The action a + clip(σ ε, ±clip), kept within [-1, 1] (TD3, §5.3: target smoothing)."""
    return jnp.clip(action + jnp.clip(scale * noise, -clip, clip), -1.0, 1.0)


def value_scale(
    q: Float[Array, " B"], share: Float[Array, " B"], value_weight: Scalar
) -> Float[Array, ""]:
    """λ = α / mean |Q| over the rows of all devices (eq. 5 of TD3+BC); no gradient.

    `share` are the rows' weights, whose sums meant over the devices are means.
    """
    size = jax.lax.pmean(jnp.sum(share * jnp.abs(q)), AXIS)
    return jax.lax.stop_gradient(value_weight / jnp.maximum(size, 1e-8))


def actor_loss(
    q: Float[Array, " B"],
    unit: Float[Array, "B A"],
    action: Float[Array, "B A"],
    scale: Scalar,
) -> Float[Array, " B"]:
    """-λ Q₁(s, π(s)) + (π(s) - a)², the latter a mean over dimensions (eq. 3 of TD3+BC)."""
    return -scale * q + jnp.mean((unit - action) ** 2, axis=-1)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    rates = ("actor_learning_rate", "critic_learning_rate", "adam_epsilon", "target_rate")
    validation.positive(config, "total_updates", "batch_size", "num_steps", *rates)
    validation.positive(config, "policy_period", "exploration_noise", "observation_clip")
    validation.not_negative(config, "value_weight", "target_noise", "target_noise_clip")
    validation.fraction(config, "discount", "target_rate")
    validation.sizes(config, "hidden_sizes")


def loop(config: Config) -> offline.Config:
    """How TD3+BC is driven: batches of the dataset."""
    return offline.Config(
        config.total_updates, config.batch_size, config.discount, config.num_steps
    )


class Networks(NamedTuple):
    """A policy that chooses one action, and its critics; made by `networks`.

    Functions of parameters and normalized observations; actions in [-1, 1].
    """

    init: Callable[[PRNGKeyArray], Params]
    choice: Callable[[Any, Observation], Array]  # actor -> [*batch, A]
    q: Callable[[Any, Observation, Array], Array]  # critics, and an action -> [E, *batch]
    act: Callable[..., tuple[tuple[()], Array, dict[str, Array]]]  # of `Agent`


def networks(agent: str, config: Any, spec: EnvSpec, *, layer_norm: bool = False) -> Networks:
    """Networks as the config of `agent` has them; `layer_norm` is of the critics' hidden layers.

    Raises what `make` raises.
    """
    action_spec = spec.action
    if not isinstance(action_spec, Box) or not action_spec.bounded:
        raise ValueError(
            f"{agent} takes a box of actions with bounds, which {spec.name} does not have: "
            "use --agent=iql or --agent=bc."
        )
    size = len(action_spec.low)
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    network = nn.Sequential([torso, LinearHead(size, _HEAD_GAIN)])
    vector = not (spec.named_parts or torsos.has_pixels(spec))
    hidden = MLP(config.hidden_sizes, config.activation, layer_norm)
    critic = BoxCritic(None if vector else torso.copy(), hidden)

    def init(key: PRNGKeyArray) -> Params:
        actor_key, critic_key = jax.random.split(key)
        example = spec.example().features
        critics = ensemble.init(critic, NUM_CRITICS, critic_key, example, jnp.zeros(size))
        return Params(network.init(actor_key, example), critics)

    def choice(params: Any, observation: Observation) -> Float[Array, "*batch A"]:
        return jnp.tanh(jnp.asarray(network.apply(params, observation.features)))

    def q(critics: Any, observation: Observation, unit: Array) -> Array:
        return ensemble.apply(critic, critics, observation.features, unit)

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = rows.normalized(observation, policy.observation, config.observation_clip)
        mean = choice(policy.params.actor, observation)
        log_std = jnp.full(mean.shape, jnp.log(config.exploration_noise))
        chosen_by = box_policies.stretched(distributions.Normal(mean, log_std), action_spec)
        action, extras = policies.decide(chosen_by, key, greedy=greedy)
        unit = jnp.clip(box_policies.to_unit(action, action_spec), -1.0, 1.0)
        worth = jnp.min(q(policy.params.critic, observation, unit), axis=0)
        return carry, action, {**extras, "value": worth}

    return Networks(init, choice, q, act)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for anything but a box with bounds, for a torso that cannot look at what the
    environment shows, and for the normalization of nothing but pixels.
    """
    nets = networks("td3_bc", config, spec)
    action_spec: Any = spec.action  # `networks` saw to it that it is a box
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        params = nets.init(key)
        schedules = [getattr(config, name) for name in Schedules._fields]
        return TrainState(
            params,
            jax.tree.map(jnp.copy, params),  # `update`'s state is donated: no two share a buffer
            Params(*map(optimizer.init, params)),
            unknown,
            Schedules(*map(jnp.float32, schedules)),
            {name: jnp.float32(0.0) for name in ("loss/actor", "policy/squared_error")},
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def learn_critics(
        state: TrainState, batch: Sample, action: Array, share: Array, key: PRNGKeyArray
    ) -> tuple[Any, optax.OptState, Metrics]:
        """Critics after a step towards what the smoothed target policy is worth."""
        unit = nets.choice(state.target.actor, batch.next_observation)
        noise = device_rows.normal(key, unit.shape)
        unit = smoothed(unit, noise, config.target_noise, config.target_noise_clip)
        ahead = jnp.min(nets.q(state.target.critic, batch.next_observation, unit), axis=0)

        def loss(critics: Any) -> tuple[Array, Metrics]:
            q = nets.q(critics, batch.observation, action)
            error = jnp.sum(share * critic_loss(q, batch.reward, batch.discount, ahead))
            return error, {"loss/critic": error, "value/mean": jnp.sum(share * jnp.min(q, axis=0))}

        found = jax.grad(loss, has_aux=True)(state.params.critic)
        grads, metrics = jax.lax.pmean(found, AXIS)
        steps, opt_state = optimizer.update(grads, state.opt_state.critic)
        rate = state.schedules.critic_learning_rate
        return _descended(state.params.critic, steps, rate), opt_state, metrics

    def learn_actor(state: TrainState, batch: Sample, action: Array, share: Array) -> TrainState:
        """The state after a step of the policy, by the critics as they now are, and of targets."""
        first = jax.tree.map(lambda x: x[:1], state.params.critic)

        def loss(actor: Any) -> tuple[Array, Metrics]:
            unit = nets.choice(actor, batch.observation)
            q = nets.q(first, batch.observation, unit)[0]
            scale = value_scale(q, share, state.schedules.value_weight)
            error = jnp.sum(share * actor_loss(q, unit, action, scale))
            cloned = jnp.sum(share * jnp.mean((unit - action) ** 2, axis=-1))
            return error, {"loss/actor": error, "policy/squared_error": cloned}

        found = jax.grad(loss, has_aux=True)(state.params.actor)
        grads, metrics = jax.lax.pmean(found, AXIS)
        steps, opt_state = optimizer.update(grads, state.opt_state.actor)
        actor = _descended(state.params.actor, steps, state.schedules.actor_learning_rate)
        params = state.params._replace(actor=actor)
        return state._replace(
            params=params,
            target=optax.incremental_update(params, state.target, config.target_rate),
            opt_state=state.opt_state._replace(actor=opt_state),
            measured=metrics,
        )

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        batch = rows.normalized_sample(batch, state.observation, config.observation_clip)
        action, share = box_policies.to_unit(batch.action, action_spec), share_of_rows(batch.weight)
        critics, opt_state, metrics = learn_critics(state, batch, action, share, key)
        state = state._replace(
            params=state.params._replace(critic=critics),
            opt_state=state.opt_state._replace(critic=opt_state),
            updates=state.updates + 1,
        )

        state = jax.lax.cond(
            state.updates % config.policy_period == 0,
            lambda: learn_actor(state, batch, action, share),
            lambda: state,
        )
        return state, {**metrics, **state.measured}

    return Agent(spec, init, initial_carry, nets.act, update)


def _descended(params: Any, steps: Any, rate: Array) -> Any:
    return jax.tree.map(lambda p, u: p - rate * u, params, steps)
