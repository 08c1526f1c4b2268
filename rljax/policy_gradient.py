"""What agents share that learn policy and value by one gradient: their state, acting, a step.

Their losses and what they learn from a rollout are in their own files: agents/a2c.py and impala.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import normalizers, optim
from rljax.agent import AXIS
from rljax.distributions import Distribution
from rljax.nn import policies
from rljax.nn.actor_critic import ActorCritic
from rljax.nn.policies import BoxPolicy
from rljax.types import EnvSpec, Metrics, Observation, Scalar, Transition


class Policy(NamedTuple):
    """What acting needs: parameters, and the statistics that observations are normalized by."""

    params: dict[str, Any]  # of `rljax.nn.actor_critic`
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]
    entropy_cost: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: dict[str, Any]
    opt_state: optax.OptState
    observation: normalizers.Moments | None
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params, self.observation)


class Player(NamedTuple):
    """How a feed-forward policy sees and acts; pure functions."""

    normalized: Callable[[Policy, Observation], Observation]  # for the networks
    look: Callable[[Any, Observation], tuple[Distribution, Array]]  # params, normalized -> π, V
    act: Callable[..., tuple[tuple[()], Array, dict[str, Array]]]  # as `Agent.act`


def player(
    spec: EnvSpec, networks: ActorCritic, box_policy: BoxPolicy, observation_clip: Scalar
) -> Player:
    """Joins networks, action space and masks; `observation_clip` is in deviations."""

    def normalized(policy: Policy, observation: Observation) -> Observation:
        features = normalizers.normalize_observation(
            observation.features, policy.observation, observation_clip
        )
        return observation._replace(features=features)

    def look(params: Any, observation: Observation) -> tuple[Distribution, Array]:
        outputs, value = networks.apply(params, observation.features)
        mask = policies.mask_of(observation)
        return policies.distribution(spec.action, box_policy, outputs, mask), value

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        chosen_by, value = look(policy.params, normalized(policy, observation))
        action, extras = policies.decide(chosen_by, key, greedy=greedy)
        return carry, action, {**extras, "value": value}

    return Player(normalized, look, act)


def gradient_step(
    loss: Callable[[Any], tuple[Array, Metrics]],
    learner: tuple[Any, optax.OptState],
    optimizer: optax.GradientTransformation,
    learning_rate: Array,
) -> tuple[tuple[Any, optax.OptState], Metrics]:
    """That of `rljax.optim`, whose metrics gain the norm of the gradient."""
    learner, metrics, grads = optim.gradient_step(loss, learner, optimizer, learning_rate)
    return learner, {**metrics, "policy/grad_norm": optax.tree.norm(grads)}


def next_state(
    state: TrainState, learner: tuple[Any, optax.OptState], rows: Transition
) -> TrainState:
    """The state after an update from `rows` `[T, B]`, whose vectors join the statistics."""
    observation = state.observation
    if observation is not None:
        weight = rows.valid.astype(jnp.float32)
        observation = normalizers.update_observation(
            observation, rows.observation.features, weight, AXIS
        )
    return TrainState(*learner, observation, state.schedules, state.updates + 1)
