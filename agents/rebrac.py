"""ReBRAC (Tarasov et al. 2023, arXiv:2305.09836): TD3+BC, with penalties in policy and critics.

Read `Config`, then the penalized losses, then `make`. `rljax.delayed_policy`, which TD3+BC shares,
says how the policy acts, how targets are smoothed and when the policy learns. What is its own: the
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

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from agents.sac import critic_loss
from agents.td3_bc import value_scale
from rljax import delayed_policy, validation
from rljax.agent import Agent
from rljax.delayed_policy import Losses, TrainState
from rljax.loops import offline
from rljax.nn import box_policies
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.offline.outlook import KNOWS_NEXT_ACTION, NEXT_ACTION
from rljax.replay.base import Sample
from rljax.types import EnvSpec, Scalar


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
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # of policy and critics each
    activation: Activation = Activation.RELU  # behind every hidden layer


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    actor_penalty: Float[Array, ""]
    critic_penalty: Float[Array, ""]


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
    offline.of(config).change.check()


def loop(config: Config) -> offline.Config:
    """How ReBRAC is driven: batches of the dataset, with the action behind each step's."""
    return offline.of(config)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for anything but a box with bounds, for a torso that cannot look at what the
    environment shows, and for the normalization of nothing but pixels.
    """
    nets = delayed_policy.networks("rebrac", config, spec, layer_norm=True)
    action_spec: Any = spec.action  # `networks` saw to it that it is a box

    def critic_terms(
        state: TrainState, batch: Sample, q: Array, next_unit: Array
    ) -> Float[Array, " B"]:
        ahead = penalized_value(
            nets.q(state.target.critic, batch.next_observation, next_unit),
            next_unit,
            box_policies.to_unit(batch.extras[NEXT_ACTION], action_spec),
            batch.extras[KNOWS_NEXT_ACTION],
            state.schedules.critic_penalty,
        )
        return critic_loss(q, batch.reward, batch.discount, ahead)

    def actor_terms(
        state: TrainState, batch: Sample, action: Array, share: Array, unit: Array
    ) -> dict[str, Float[Array, " B"]]:
        q = nets.q(state.params.critic, batch.observation, unit)
        scale = value_scale(jnp.min(q, axis=0), share, 1.0)
        return {
            "loss/actor": actor_loss(q, unit, action, scale, state.schedules.actor_penalty),
            "policy/distance": distance(unit, action),
        }

    losses = Losses(critic_terms, actor_terms, logged=("loss/actor", "policy/distance"))
    stores = (NEXT_ACTION, KNOWS_NEXT_ACTION)
    return delayed_policy.make(config, spec, nets, losses, Schedules, stores)
