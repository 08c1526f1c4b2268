"""What must stop a run: numbers that are none, and masks that leave nothing to choose.

A single NaN reward would turn every parameter into NaN with the next update, and a mask that
forbids everything has no action to take. Loops look at what they collected before they learn from
it (`find`, inside what is jitted; `check`, outside), and at what learning measured
(`check_metrics`), so that the state of before is still the last good one.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rljax.config import UsageError
from rljax.types import Transition

_KINDS = (  # in the order of their numbers in `Fault.kind`, from 1
    "gave a reward that is not finite",
    "showed an observation that is not finite",
    "forbade every action by its mask",
)


class RunFault(UsageError):
    """Training cannot go on; nothing of the step that it names was learned or saved."""


class Fault(NamedTuple):
    """The first bad row of a rollout; int32 scalars, so that a scan can carry them out."""

    kind: Array  # 0: none; else one of `_KINDS`, counted from 1
    row: Array  # T axis
    env: Array  # B axis


@jax.jit
def find(rows: Transition) -> Fault:
    """The first row `[T, B]` that must not be learned from; a jitted pass over the rollout.

    Masks of rows that are not valid say nothing: their action is ignored.
    """
    bad_reward = ~jnp.isfinite(rows.reward)
    bad_observation = jnp.zeros_like(bad_reward)
    for leaf in jax.tree.leaves(rows.observation.features):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            axes = tuple(range(2, leaf.ndim))
            bad_observation |= ~jnp.all(jnp.isfinite(leaf), axis=axes)
    mask = rows.observation.mask
    nothing = jnp.zeros_like(bad_reward) if mask is None else ~jnp.any(mask, -1) & rows.valid
    kinds = jnp.stack([bad_observation, nothing, bad_reward])  # in the order of time within a row
    first = jnp.argmax(jnp.any(kinds, 0).reshape(-1))
    row, env = jnp.divmod(first, rows.reward.shape[1])
    here = kinds[:, row, env]
    numbers = jnp.array([2, 3, 1])
    kind = jnp.where(jnp.any(here), numbers[jnp.argmax(here)], 0)
    return Fault(kind.astype(jnp.int32), row.astype(jnp.int32), env.astype(jnp.int32))


def check(fault: Fault, env_name: str, first_step: int, num_envs: int) -> None:
    """Raises RunFault where `find` found something; `first_step` is that of the rollout's row 0."""
    kind, row, env = (int(np.asarray(x)) for x in fault)
    if kind:
        step = first_step + row * num_envs + env
        raise RunFault(
            f"{env_name} {_KINDS[kind - 1]}, at step {step:,} in environment {env}: training "
            "stops, and the last checkpoint of the workdir stays as it was."
        )


def check_metrics(step: int, metrics: Mapping[str, Any]) -> None:
    """Raises RunFault where a loss, a gradient or another measure of learning is not finite."""
    for name, value in metrics.items():
        if name.startswith(("loss/", "policy/")) and not math.isfinite(float(value)):
            raise RunFault(
                f"{name} is {float(value)} after the update that ends at step {step:,}: training "
                "stops, and the last checkpoint of the workdir stays as it was; a smaller learning "
                "rate may help."
            )
