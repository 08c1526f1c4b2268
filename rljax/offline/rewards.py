"""Rewards as agents learn from them: multiplier × reward + bias, of each step.

What is told of episodes (returns, evaluations, off-policy estimates) stays in the units of the log.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from rljax.offline.dataset import Dataset
from rljax.replay.base import Buffer
from rljax.types import Transition


@dataclasses.dataclass(frozen=True)
class Change:
    """Multiplier × reward + bias: IQL takes 1 from AntMaze's (Kostrikov et al. 2021, app. B)."""

    multiplier: float = 1.0
    bias: float = 0.0

    def check(self) -> None:
        """Raises ValueError where nothing would be left of the rewards."""
        if not (math.isfinite(self.multiplier) and math.isfinite(self.bias) and self.multiplier):
            raise ValueError(
                "rewards are changed by a finite config.reward_bias and a config.reward_multiplier "
                f"that is finite and not 0, not by {self.bias} and {self.multiplier}."
            )

    def of_dataset(self, dataset: Dataset) -> Dataset:
        """The dataset with changed rewards; the same one where nothing changes."""
        if self == Change():
            return dataset
        rows = dataset.rows
        changed = np.multiply(rows.reward, np.float32(self.multiplier))
        changed += np.float32(self.bias)
        changed[~np.asarray(rows.valid)] = 0
        return dataclasses.replace(dataset, rows=rows._replace(reward=changed))

    def of_buffer(self, buffer: Buffer) -> Buffer:
        """The buffer, which changes the rewards of what is added to it."""

        def add(state: object, rows: Transition) -> object:
            changed = jnp.where(rows.valid, self.multiplier * rows.reward + self.bias, 0.0)
            return buffer.add(state, rows._replace(reward=changed))

        return buffer if self == Change() else buffer._replace(add=add)
