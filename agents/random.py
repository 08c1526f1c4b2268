"""The random agent: every allowed action is as likely as another. The floor of every comparison.

It learns nothing and is never greedy: evaluated, it acts as it does in a rollout. `log_prob` is
that of its draw, so that its rollouts are logs with known propensities. Components of a box that
have no bound on some side are drawn from a standard normal distribution.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from rljax import validation
from rljax.agent import Agent
from rljax.loops import on_policy
from rljax.nn import policies
from rljax.nn.policies import BoxPolicy
from rljax.types import Box, EnvSpec, Metrics, Observation, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """How long it plays; each field is a flag `--config.<field>`."""

    total_steps: int = 100_000  # rows collected in all, over all environments
    num_envs: int = 8  # B: stepped side by side; a multiple of the number of devices
    rollout_length: int = 128  # T: rows per environment between two lines of metrics


class TrainState(NamedTuple):
    """A counter."""

    updates: Int[Array, ""]

    @property
    def policy(self) -> tuple[()]:
        """Nothing is known, nothing is needed."""
        return ()


def draw_from_box(
    box: Box, batch: tuple[int, ...], key: PRNGKeyArray
) -> tuple[Float[Array, "*batch A"], dict[str, Array]]:
    """Actions `[*batch, A]`, and the extras of `Agent.act`: densities are of all components."""
    shape = (*batch, *box.shape)
    low, high = np.asarray(box.low, np.float32), np.asarray(box.high, np.float32)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, width = np.where(bounded, low, 0), np.where(bounded, high - low, 1)

    def rows(component: np.ndarray) -> Array:
        return jnp.broadcast_to(jnp.asarray(component, jnp.float32), shape)

    uniform_key, normal_key = jax.random.split(key)
    uniform = rows(low) + rows(width) * jax.random.uniform(uniform_key, shape)
    normal = jax.random.normal(normal_key, shape)
    action = jnp.where(rows(bounded) > 0, uniform, normal)
    density = jnp.where(
        rows(bounded) > 0, -jnp.log(rows(width)), jax.scipy.stats.norm.logpdf(action)
    )
    surprise = np.where(bounded, np.log(width), 0.5 * math.log(2 * math.pi * math.e))
    return action, {
        "log_prob": jnp.sum(density, axis=-1),
        "entropy": jnp.sum(rows(surprise), axis=-1),
        "mean": rows(low + 0.5 * width * bounded),
        "scale": rows(np.where(bounded, width / math.sqrt(12), 1)),
    }


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.positive(config, "num_envs", "rollout_length")
    validation.rollouts(config)


def loop(config: Config) -> on_policy.Config:
    """How it is driven: as learners are."""
    return on_policy.Config(config.total_steps, config.num_envs, config.rollout_length)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Draws actions for a spec; every function it returns is pure."""
    del config  # the loop's business

    def init(key: PRNGKeyArray) -> TrainState:
        del key
        return TrainState(jnp.int32(0))

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def act(
        policy: tuple[()],
        carry: tuple[()],
        observation: Observation,
        key: PRNGKeyArray,
        greedy: bool,
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        del policy, greedy  # no action is better than another
        batch = _batch(spec, observation)
        if isinstance(spec.action, Box):
            return carry, *draw_from_box(spec.action, batch, key)
        logits = jnp.zeros((*batch, *spec.action.mask_shape))
        mask = None if observation.mask is None else jnp.asarray(observation.mask)
        uniform = policies.distribution(spec.action, BoxPolicy.NORMAL, logits, mask)
        return carry, *policies.decide(uniform, key, greedy=False)

    def update(
        state: TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        del batch, key
        return TrainState(state.updates + 1), {}

    return Agent(spec, init, initial_carry, act, update, stores=("log_prob",))


def _batch(spec: EnvSpec, observation: Observation) -> tuple[int, ...]:
    """The axes of the observations that are not an observation's own."""
    features = observation.features
    part = spec.parts[0]
    x = features[part.name] if isinstance(features, dict) else features
    return x.shape[: x.ndim - len(part.shape)]
