"""What TD3 and its heirs share: critics learn at every update, policy and targets at some of them.

Read `make`. Critics go towards what the target policy is worth, its actions smoothed by noise; the
policy, and with it all targets, follow at every `policy_period`-th update (Fujimoto et al. 2018,
arXiv:1802.09477). Which losses they go down is in agents/td3_bc.py and rebrac.py. Actions are
scaled to [-1, 1], whatever the bounds. Axes: B rows of a sample, A dimensions of an action, E
critics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import device_rows, distributions, normalizers, optim
from rljax.agent import Agent
from rljax.nn import box_critics, box_policies, ensemble, policies, torsos
from rljax.nn.ensemble import NUM_CRITICS
from rljax.nn.heads import LinearHead
from rljax.offline import rows
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, EnvSpec, Metrics, Observation, Scalar

_HEAD_GAIN = 0.01  # of the policy's last layer: its first actions are in the middle of the box


class Params(NamedTuple):
    """What is learned; the targets are another."""

    actor: Any
    critic: Any  # of E critics


class Policy(NamedTuple):
    """What acting needs; the critics only to say what a decision is worth."""

    params: Params
    observation: normalizers.Moments | None


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Params
    opt_state: Params  # the optimizer's states of both
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    schedules: Any  # the agent's own, with the learning rates of actor and critic
    measured: Metrics  # of the policy's last step: reported until its next
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params, self.observation)


class Networks(NamedTuple):
    """A policy that chooses one action, and its critics; made by `networks`.

    Functions of parameters and normalized observations; actions in [-1, 1].
    """

    init: Callable[[PRNGKeyArray], Params]
    choice: Callable[[Any, Observation], Array]  # actor -> [*batch, A]
    q: Callable[[Any, Observation, Array], Array]  # critics, and an action -> [E, *batch]
    act: Callable[..., tuple[tuple[()], Array, dict[str, Array]]]  # of `Agent`


class Losses(NamedTuple):
    """What agents differ in: losses of each row `[B]` of a normalized batch."""

    # state, batch, Q `[E, B]` of what was done, the smoothed action `[B, A]` of the target policy
    critic: Callable[[TrainState, Sample, Array, Array], Array]
    # state with the critics as they now are, batch, what was done `[B, A]`, shares of rows `[B]`,
    # the policy's choice `[B, A]` -> "loss/actor", and what else is `logged`
    actor: Callable[[TrainState, Sample, Array, Array, Array], dict[str, Array]]
    logged: tuple[str, ...]


def smoothed(
    action: Float[Array, "B A"], noise: Float[Array, "B A"], scale: Scalar, clip: Scalar
) -> Float[Array, "B A"]:
    """The action a + clip(σ ε, ±clip), kept within [-1, 1] (TD3, §5.3: target smoothing)."""
    return jnp.clip(action + jnp.clip(scale * noise, -clip, clip), -1.0, 1.0)


def networks(agent: str, config: Any, spec: EnvSpec, *, layer_norm: bool = False) -> Networks:
    """Networks as the config of `agent` has them; `layer_norm` is of the critics' hidden layers.

    Raises ValueError for anything but a box with bounds, and for a torso that cannot look at what
    the environment shows.
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
    critic = box_critics.make(
        spec, torso, config.hidden_sizes, config.activation, layer_norm=layer_norm
    )

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


def make(
    config: Any,
    spec: EnvSpec,
    nets: Networks,
    losses: Losses,
    schedules: Any,
    stores: tuple[str, ...] = (),
) -> Agent:
    """The agent of these networks and losses; every function it returns is pure.

    `schedules` is the class of the agent's own, whose fields are some of the config's. Raises
    ValueError for the normalization of nothing but pixels.
    """
    action_spec: Any = spec.action  # `networks` saw to it that it is a box
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        params = nets.init(key)
        varied = [jnp.float32(getattr(config, name)) for name in schedules._fields]
        return TrainState(
            params,
            jax.tree.map(jnp.copy, params),  # `update`'s state is donated: no two share a buffer
            Params(*map(optimizer.init, params)),
            unknown,
            schedules(*varied),
            {name: jnp.float32(0.0) for name in losses.logged},
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def learn_critics(
        state: TrainState, batch: Sample, action: Array, share: Array, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """The state after a step of the critics towards what the target policy is worth."""
        unit = nets.choice(state.target.actor, batch.next_observation)
        noise = device_rows.normal(key, unit.shape)
        unit = smoothed(unit, noise, config.target_noise, config.target_noise_clip)

        def loss(critics: Any) -> tuple[Array, Metrics]:
            q = nets.q(critics, batch.observation, action)
            error = jnp.sum(share * losses.critic(state, batch, q, unit))
            return error, {"loss/critic": error, "value/mean": jnp.sum(share * jnp.min(q, axis=0))}

        learner = state.params.critic, state.opt_state.critic
        rate = state.schedules.critic_learning_rate
        (critics, opt_state), metrics, _ = optim.gradient_step(loss, learner, optimizer, rate)
        state = state._replace(
            params=state.params._replace(critic=critics),
            opt_state=state.opt_state._replace(critic=opt_state),
        )
        return state, metrics

    def learn_actor(state: TrainState, batch: Sample, action: Array, share: Array) -> TrainState:
        """The state after a step of the policy, by the critics as they now are, and of targets."""

        def loss(actor: Any) -> tuple[Array, Metrics]:
            unit = nets.choice(actor, batch.observation)
            terms = losses.actor(state, batch, action, share, unit)
            means = {name: jnp.sum(share * term) for name, term in terms.items()}
            return means["loss/actor"], means

        learner = state.params.actor, state.opt_state.actor
        rate = state.schedules.actor_learning_rate
        (actor, opt_state), metrics, _ = optim.gradient_step(loss, learner, optimizer, rate)
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
        state, metrics = learn_critics(state, batch, action, share, key)
        state = state._replace(updates=state.updates + 1)
        state = jax.lax.cond(
            state.updates % config.policy_period == 0,
            lambda: learn_actor(state, batch, action, share),
            lambda: state,
        )
        return state, {**metrics, **state.measured}

    return Agent(spec, init, initial_carry, nets.act, update, stores)
