"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860): TD3 whose policy stays near the data.

Read `Config`, then the losses, then `make`; TD3's own order of an update is in
`rljax.delayed_policy`. Critics learn at every update from smoothed targets (Fujimoto et al. 2018,
arXiv:1802.09477); the policy, and with it all targets, at every `policy_period`-th. Actions are
scaled to [-1, 1], whatever the bounds: the noise, its limit and the cloning term are in half-widths
of the box. Axes: B rows of a sample, A dimensions of an action, E critics.

Departs from the authors' code: ½ in the critics' loss, which Adam cancels; draws that are not
greedy, of which offline learning has no use, are Gaussian, so that their density is known.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from agents.sac import critic_loss
from rljax import delayed_policy, validation
from rljax.agent import AXIS, Agent
from rljax.delayed_policy import Losses, TrainState
from rljax.loops import offline
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.replay.base import Sample
from rljax.types import EnvSpec, Scalar


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
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of policy and critics each, which share no layer
    activation: Activation = Activation.RELU  # behind every hidden layer


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    actor_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    value_weight: Float[Array, ""]


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
    offline.of(config).change.check()


def loop(config: Config) -> offline.Config:
    """How TD3+BC is driven: batches of the dataset."""
    return offline.of(config)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for anything but a box with bounds, for a torso that cannot look at what the
    environment shows, and for the normalization of nothing but pixels.
    """
    nets = delayed_policy.networks("td3_bc", config, spec)

    def critic_terms(
        state: TrainState, batch: Sample, q: Array, next_unit: Array
    ) -> Float[Array, " B"]:
        ahead = jnp.min(nets.q(state.target.critic, batch.next_observation, next_unit), axis=0)
        return critic_loss(q, batch.reward, batch.discount, ahead)

    def actor_terms(
        state: TrainState, batch: Sample, action: Array, share: Array, unit: Array
    ) -> dict[str, Float[Array, " B"]]:
        first = jax.tree.map(lambda x: x[:1], state.params.critic)
        q = nets.q(first, batch.observation, unit)[0]
        scale = value_scale(q, share, state.schedules.value_weight)
        return {
            "loss/actor": actor_loss(q, unit, action, scale),
            "policy/squared_error": jnp.mean((unit - action) ** 2, axis=-1),
        }

    losses = Losses(critic_terms, actor_terms, logged=("loss/actor", "policy/squared_error"))
    return delayed_policy.make(config, spec, nets, losses, Schedules)
