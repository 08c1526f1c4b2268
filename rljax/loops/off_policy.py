"""Collect a few rows, keep them in replay, learn from samples of it at a stated ratio."""

import dataclasses

from rljax import rollout, sharding


@dataclasses.dataclass(frozen=True)
class Replay:
    """What is kept, and how it is drawn."""

    capacity: int  # rows over all environments; the oldest make room
    batch_size: int  # rows of one sample
    discount: float  # γ
    num_steps: int = 1  # n of n-step returns
    prioritized: bool = False  # by |TD error| (Schaul et al. 2016, arXiv:1511.05952)
    priority_exponent: float = 0.6  # α of their eq. 1: 0 is uniform
    importance_exponent: float = 0.4  # β of their §3.4


@dataclasses.dataclass(frozen=True)
class Config:
    """How to collect, what to keep, where to learn; `total_steps` counts rows over all envs."""

    total_steps: int
    num_envs: int
    rollout_length: int  # rows per environment between updates
    num_updates: int  # of `batch_size` rows each, after every rollout
    learning_starts: int  # rows collected before the first update
    replay: Replay
    seed: int = 0
    collector: rollout.Kind = rollout.Kind.AUTO
    parallel: sharding.Parallel = sharding.Parallel.SHARD_MAP
    num_devices: int = 0  # 0: all of this process; each learns from its share of a sample

    @property
    def rows(self) -> int:
        """Rows between two updates."""
        return self.num_envs * self.rollout_length

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole rollout within `total_steps`."""
        return self.total_steps // self.rows * self.rows
