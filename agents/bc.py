"""Behavior cloning (Pomerleau 1989): the baseline that every offline agent must beat.

Read `Config`, then `likelihood` and `squared_error`, then `update` inside `make`. The policy is the
distribution that makes the dataset's actions most likely: categorical for choices, masks obeyed;
for boxes a Gaussian that is not squashed, of actions scaled to [-1, 1], its mean by tanh. Axes: B
rows of a sample, A actions or dimensions of one.

`top_fraction` is the loop's business: learning from the best episodes only is "10 % BC" (Chen et
al. 2021, arXiv:2106.01345). `support_threshold` cuts rare choices off when acting: a model of many
people's behavior has some of each person's mistakes.
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import distributions, normalizers, optim, validation
from rljax.agent import Agent
from rljax.distributions import Categorical, Distribution, Normal
from rljax.loops import offline
from rljax.nn import box_policies, policies, torsos
from rljax.nn.heads import LinearHead
from rljax.nn.mlp import Activation
from rljax.nn.policies import BoxPolicy
from rljax.nn.torsos import Torso
from rljax.offline import rows, support
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Box, Discrete, EnvSpec, Metrics, Observation

_HEAD_GAIN = 0.01  # of the policy's last layer: the first choices are near uniform


class Loss(enum.Enum):
    """What is least where policy and data agree."""

    LIKELIHOOD = "likelihood"  # -log π(a|s)
    SQUARED_ERROR = "squared_error"  # of the mean; boxes only, and σ stays as it is


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of behavior cloning; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    top_fraction: float = 1.0  # learn from this share of the episodes only, of the highest return
    learning_rate: float = 3e-4  # of Adam
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    loss: Loss = Loss.LIKELIHOOD
    state_dependent_std: bool = False  # boxes only: σ(s), else a number per dimension
    initial_log_std: float = 0.0  # boxes only: ln σ, of actions in [-1, 1]
    support_threshold: float = 0.0  # choices below this × the most likely's are never taken
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the MLP that looks at vectors
    activation: Activation = Activation.RELU  # behind its layers


class Policy(NamedTuple):
    """What acting needs."""

    params: Any
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Any
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and frozen statistics."""
        return Policy(self.params, self.observation)


def likelihood(chosen_by: Distribution, action: Array) -> Float[Array, " B"]:
    """-log π(a|s) of actions `[B]` or `[B, A]`."""
    return -chosen_by.log_prob(action)


def squared_error(mean: Float[Array, "B A"], action: Float[Array, "B A"]) -> Float[Array, " B"]:
    """(μ(s) - a)², a mean over the dimensions."""
    return jnp.mean((mean - action) ** 2, axis=-1)


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.positive(config, "total_updates", "batch_size", "learning_rate", "adam_epsilon")
    validation.positive(config, "top_fraction", "observation_clip")
    validation.fraction(config, "top_fraction", "support_threshold")
    validation.sizes(config, "hidden_sizes")
    if config.state_dependent_std and config.loss is Loss.SQUARED_ERROR:
        raise ValueError(
            "config.state_dependent_std is learned from the likelihood only: use "
            "config.loss=likelihood, or leave it off."
        )


def loop(config: Config) -> offline.Config:
    """How behavior cloning is driven: batches, of which the reward does not count."""
    return offline.Config(
        config.total_updates, config.batch_size, discount=1.0, top_fraction=config.top_fraction
    )


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds network and optimizer; every function it returns is pure.

    Raises ValueError for a loss that does not fit the actions, for a torso that cannot look at what
    the environment shows, and for the normalization of nothing but pixels.
    """
    _check(config, spec)
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    if isinstance(spec.action, Box):
        network: nn.Module = box_policies.GaussianActor(
            torso, spec.action, config.state_dependent_std, config.initial_log_std, _HEAD_GAIN
        )
    else:
        network = nn.Sequential([torso, LinearHead(spec.action.mask_shape[0], _HEAD_GAIN)])
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: PRNGKeyArray) -> TrainState:
        params = network.init(key, spec.example().features)
        schedules = Schedules(jnp.float32(config.learning_rate))
        return TrainState(params, optimizer.init(params), unknown, schedules, jnp.int32(0))

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def look(params: Any, observation: Observation) -> Distribution:
        """The policy at normalized observations; of a box's actions in [-1, 1]."""
        outputs: Any = network.apply(params, observation.features)
        mask = policies.mask_of(observation)
        if isinstance(spec.action, Box):
            return outputs
        return policies.distribution(spec.action, BoxPolicy.NORMAL, outputs, mask)

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = rows.normalized(observation, policy.observation, config.observation_clip)
        chosen_by = look(policy.params, observation)
        if isinstance(chosen_by, Normal) and isinstance(spec.action, Box):
            chosen_by = box_policies.stretched(chosen_by, spec.action)
        elif isinstance(chosen_by, Categorical) and config.support_threshold:
            mask = policies.mask_of(observation)
            common = support.supported(chosen_by, config.support_threshold, mask)
            chosen_by = distributions.categorical(chosen_by.log_probs, common)
        return carry, *policies.decide(chosen_by, key, greedy=greedy)

    def terms(params: Any, batch: Sample) -> dict[str, Float[Array, " B"]]:
        """The loss of each row, and what is logged of it."""
        chosen_by = look(params, batch.observation)
        entropy = chosen_by.entropy()
        if not (isinstance(chosen_by, Normal) and isinstance(spec.action, Box)):
            right = (chosen_by.mode() == batch.action).reshape(len(batch.reward), -1)
            return {
                "loss/policy": likelihood(chosen_by, batch.action),
                "policy/entropy": entropy,
                "policy/accuracy": jnp.all(right, axis=-1).astype(jnp.float32),
            }
        action = box_policies.to_unit(batch.action, spec.action)
        error = squared_error(chosen_by.mean, action)
        by_likelihood = config.loss is Loss.LIKELIHOOD
        return {
            "loss/policy": likelihood(chosen_by, action) if by_likelihood else error,
            "policy/entropy": entropy,
            "policy/squared_error": error,
        }

    def loss(params: Any, batch: Sample) -> tuple[Array, Metrics]:
        """Over this device's rows; the mean over devices is that of all rows."""
        share = share_of_rows(batch.weight)
        means = {name: jnp.sum(share * term) for name, term in terms(params, batch).items()}
        return means["loss/policy"], means

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        del key  # deterministic given the batch
        batch = rows.normalized_sample(batch, state.observation, config.observation_clip)
        (params, opt_state), metrics, _ = optim.gradient_step(
            lambda params: loss(params, batch),
            (state.params, state.opt_state),
            optimizer,
            state.schedules.learning_rate,
        )
        state = state._replace(params=params, opt_state=opt_state, updates=state.updates + 1)
        return state, metrics

    return Agent(spec, init, initial_carry, act, update)


def _check(config: Config, spec: EnvSpec) -> None:
    if config.loss is Loss.SQUARED_ERROR and not isinstance(spec.action, Box):
        raise ValueError(
            f"config.loss=squared_error is of real actions, and {spec.name} takes choices: "
            "use likelihood."
        )
    if config.support_threshold and not isinstance(spec.action, Discrete):
        raise ValueError(
            "config.support_threshold is of one choice among several, which "
            f"{spec.name} does not take: leave it at 0."
        )
