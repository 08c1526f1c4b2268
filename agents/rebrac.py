"""ReBRAC (Tarasov et al. 2023, arXiv:2305.09836): TD3+BC, with penalties in policy and critics.

Read `Config`, then the penalized losses, then `update` inside `make`. TD3+BC (`agents.td3_bc`) says
how the policy acts, how targets are smoothed and when the policy learns. What is its own: the
squared distance from what was done lessens what the next state is worth (β2), apart from that which
holds the policy back (β1); the lesser of both critics judges the policy; the critics' hidden layers
are normalized; three of them; large batches. Axes: B rows of a sample, A dimensions of an action, E
critics.

The last step of an episode that a time limit cut off is learned from, but nobody knows what would
have been done next, so nothing is subtracted there; the authors' code drops that step. Departs from
that code further: orthogonal initial weights; ½ in the critics' loss, which Adam cancels; the
policy's target moves towards what this update made of it, not towards what it was before.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from agents.sac import critic_loss
from agents.td3_bc import Params, Policy, networks, smoothed, value_scale
from rljax import device_rows, normalizers, validation
from rljax.agent import AXIS, Agent
from rljax.loops import offline
from rljax.nn import box_policies
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.offline import rows
from rljax.offline.outlook import KNOWS_NEXT_ACTION, NEXT_ACTION
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import EnvSpec, Metrics, Scalar


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of ReBRAC; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 1024  # B: rows of one update; a multiple of the number of devices
    discount: float = 0.99  # γ, in [0, 1]
    actor_penalty: float = 0.01  # β1: of the policy's distance from the data, beside Q / mean |Q|
    critic_penalty: float = 0.01  # β2: of the next action's distance, in units of reward
    policy_period: int = 2  # updates of the critics to one of policy and targets
    target_noise: float = 0.2  # σ of the targets' actions, in half-widths of the box
    target_noise_clip: float = 0.5  # the most that the noise adds, likewise
    exploration_noise: float = 0.1  # σ of draws that are not greedy, likewise
    actor_learning_rate: float = 1e-3  # of Adam
    critic_learning_rate: float = 1e-3
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    target_rate: float = 0.005  # τ: how far targets move, each time that the policy learns
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of policy and critics each
    activation: Activation = Activation.RELU  # behind every hidden layer


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    actor_penalty: Float[Array, ""]
    critic_penalty: Float[Array, ""]


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


def distance(unit: Float[Array, "B A"], action: Float[Array, "B A"]) -> Float[Array, " B"]:
    """(π(s) - a)², a sum over dimensions, of actions in [-1, 1]."""
    return jnp.sum((unit - action) ** 2, axis=-1)


def penalized_value(
    q: Float[Array, "E B"],
    unit: Float[Array, "B A"],
    next_action: Float[Array, "B A"],
    known: Float[Array, " B"],
    penalty: Scalar,
) -> Float[Array, " B"]:
    """Of the next state: min Q(s', a') - β2 (a' - â')², a' of the policy and â' of the data.

    `q` is of a', or `unit`; where `known` is 0 there is no â', and nothing is subtracted.
    """
    return jnp.min(q, axis=0) - penalty * known * distance(unit, next_action)


def actor_loss(
    q: Float[Array, "E B"],
    unit: Float[Array, "B A"],
    action: Float[Array, "B A"],
    scale: Scalar,
    penalty: Scalar,
) -> Float[Array, " B"]:
    """-λ min Q(s, π(s)) + β1 (π(s) - a)²."""
    return -scale * jnp.min(q, axis=0) + penalty * distance(unit, action)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    rates = ("actor_learning_rate", "critic_learning_rate", "adam_epsilon", "target_rate")
    validation.positive(config, "total_updates", "batch_size", *rates)
    validation.positive(config, "policy_period", "exploration_noise", "observation_clip")
    validation.not_negative(config, "actor_penalty", "critic_penalty")
    validation.not_negative(config, "target_noise", "target_noise_clip")
    validation.fraction(config, "discount", "target_rate")
    validation.sizes(config, "hidden_sizes")


def loop(config: Config) -> offline.Config:
    """How ReBRAC is driven: batches of the dataset, with the action behind each step's."""
    return offline.Config(config.total_updates, config.batch_size, config.discount)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for anything but a box with bounds, for a torso that cannot look at what the
    environment shows, and for the normalization of nothing but pixels.
    """
    nets = networks("rebrac", config, spec, layer_norm=True)
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
            {name: jnp.float32(0.0) for name in ("loss/actor", "policy/distance")},
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def learn_critics(
        state: TrainState, batch: Sample, action: Array, share: Array, key: PRNGKeyArray
    ) -> tuple[Any, optax.OptState, Metrics]:
        """Critics after a step towards what the smoothed target policy is worth, penalized."""
        unit = nets.choice(state.target.actor, batch.next_observation)
        noise = device_rows.normal(key, unit.shape)
        unit = smoothed(unit, noise, config.target_noise, config.target_noise_clip)
        ahead = penalized_value(
            nets.q(state.target.critic, batch.next_observation, unit),
            unit,
            box_policies.to_unit(batch.extras[NEXT_ACTION], action_spec),
            batch.extras[KNOWS_NEXT_ACTION],
            state.schedules.critic_penalty,
        )

        def loss(critics: Any) -> tuple[Array, Metrics]:
            q = nets.q(critics, batch.observation, action)
            error = jnp.sum(share * critic_loss(q, batch.reward, batch.discount, ahead))
            return error, {"loss/critic": error, "value/mean": jnp.sum(share * jnp.min(q, axis=0))}

        found = jax.grad(loss, has_aux=True)(state.params.critic)
        grads, metrics = jax.lax.pmean(found, AXIS)
        steps, opt_state = optimizer.update(grads, state.opt_state.critic)
        rate = state.schedules.critic_learning_rate
        critics = jax.tree.map(lambda p, u: p - rate * u, state.params.critic, steps)
        return critics, opt_state, metrics

    def learn_actor(state: TrainState, batch: Sample, action: Array, share: Array) -> TrainState:
        """The state after a step of the policy, by the critics as they now are, and of targets."""

        def loss(actor: Any) -> tuple[Array, Metrics]:
            unit = nets.choice(actor, batch.observation)
            q = nets.q(state.params.critic, batch.observation, unit)
            scale = value_scale(jnp.min(q, axis=0), share, 1.0)
            rows = actor_loss(q, unit, action, scale, state.schedules.actor_penalty)
            error = jnp.sum(share * rows)
            apart = jnp.sum(share * distance(unit, action))
            return error, {"loss/actor": error, "policy/distance": apart}

        found = jax.grad(loss, has_aux=True)(state.params.actor)
        grads, metrics = jax.lax.pmean(found, AXIS)
        steps, opt_state = optimizer.update(grads, state.opt_state.actor)
        rate = state.schedules.actor_learning_rate
        actor = jax.tree.map(lambda p, u: p - rate * u, state.params.actor, steps)
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

    stores = (NEXT_ACTION, KNOWS_NEXT_ACTION)
    return Agent(spec, init, initial_carry, nets.act, update, stores)
