"""What the fields of an agent's config may be: one sentence for each that cannot work."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

_LARGEST = 2**31 - 1  # of the whole numbers that compiled programs count with
_MAY_BE_LARGER = ("total_steps", "replay_capacity")  # counted on the host; says what it takes
_LIMITS = {  # where an infinity is no limit
    *("c_bound", "clip_ratio", "clip_value", "gap_max", "gap_min", "huber_threshold"),
    *("max_grad_norm", "max_weight", "observation_clip", "policy_rho_bound", "reward_clip"),
    *("rho_bound", "target_kl", "target_noise_clip"),
}


def numbers(config: Any) -> None:
    """Raises ValueError for a field that no number can be: nan, too large, infinite but no limit.

    For any config, whatever its fields; what else they may be their agent says.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            if math.isnan(value) or field.name not in _LIMITS:
                raise ValueError(f"config.{field.name} must be a finite number, not {value}.")
        several = value if isinstance(value, tuple) else (value,)
        large = any(type(x) is int and abs(x) > _LARGEST for x in several)
        if large and field.name not in _MAY_BE_LARGER:
            raise ValueError(f"config.{field.name} must be at most {_LARGEST:,}, not {value}.")


def positive(config: Any, *names: str) -> None:
    """Raises ValueError unless each field is greater than 0; None is, where a field allows it."""
    _require(config, names, lambda x: x > 0, "be positive")


def not_negative(config: Any, *names: str) -> None:
    """Raises ValueError unless each field is at least 0."""
    _require(config, names, lambda x: x >= 0, "not be negative")


def fraction(config: Any, *names: str) -> None:
    """Raises ValueError unless each field lies in [0, 1]."""
    _require(config, names, lambda x: 0 <= x <= 1, "lie in [0, 1]")


def sizes(config: Any, *names: str) -> None:
    """Raises ValueError unless every number of each tuple is positive."""
    for name in names:
        if any(size < 1 for size in getattr(config, name)):
            raise ValueError(f"config.{name} must all be positive, not {getattr(config, name)}.")


def rollouts(config: Any) -> None:
    """Raises ValueError where `total_steps` is less than one rollout, or minibatches do not fit."""
    rows = config.num_envs * config.rollout_length
    minibatches = getattr(config, "num_minibatches", 1)
    if rows % minibatches:
        raise ValueError(
            f"config.num_minibatches={minibatches} does not divide the {rows} rows of a "
            f"rollout (num_envs={config.num_envs} x rollout_length={config.rollout_length})."
        )
    if config.total_steps < rows:
        raise ValueError(
            f"config.total_steps={config.total_steps} is less than one rollout of {rows} rows."
        )


def replay(config: Any) -> None:
    """Raises ValueError where off-policy learning could never start or fill a batch."""
    counts = ("total_steps", "num_envs", "rollout_length", "num_updates", "replay_capacity")
    positive(config, *counts, "batch_size", "num_steps")
    not_negative(config, "learning_starts")
    fraction(config, "discount")
    rollouts(config)
    if config.learning_starts >= config.total_steps:
        raise ValueError(
            f"config.learning_starts={config.learning_starts} must be less than "
            f"config.total_steps={config.total_steps}, or nothing is learned."
        )
    if config.batch_size > config.replay_capacity:
        raise ValueError(
            f"config.batch_size={config.batch_size} is more than the "
            f"config.replay_capacity={config.replay_capacity} rows that are kept."
        )


def _require(config: Any, names: tuple[str, ...], holds: Callable[[Any], bool], what: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ValueError(f"config.{name} must {what}, not {value}.")
