"""Flat arrays as D4RL has them, in .npz or HDF5; and rollouts with one observation more.

    flat       observations, actions, rewards `[N, ...]`; next_observations, terminals, timeouts
               `[N]` or episode_lengths `[E]` where there are
    rollouts   obs `[N + E, ...]`, acts and rews `[N]`, indices `[E - 1]` where acts are to be
               split, terminal `[E]`: whether the episode was over, be it by a time limit

A terminal is no time-out. What a step led to is the next row of its own episode or, at the end of
one, its next_observations; never the state that the next episode starts from.
"""

import os
from typing import Any

import numpy as np

from rljax.offline import event_log, tables
from rljax.offline.schema import Columns, Reading, Rules, Table
from rljax.types import Box, EnvSpec

_RULES, _COLUMNS = Rules(), Columns()
_FLAT = ("observations", "actions", "rewards")
_BESIDE = ("next_observations", "terminals", "timeouts")
_ROLLOUTS = ("obs", "acts", "rews", "terminal")


def read(
    path: str | os.PathLike[str],
    spec: EnvSpec | None = None,
    rules: Rules = _RULES,
    *,
    time_limit: int | None = None,
    clip_actions: bool = False,
) -> Reading:
    """The dataset of one file.

    Args:
        path: .npz, or HDF5 under any other name.
        spec: of what acted; see `event_log.from_table` for what is taken without it.
        rules: what happens to rows that cannot be right, and to episodes without an end.
        time_limit: steps after which the task stops an episode, where arrays do not tell time-outs.
        clip_actions: puts actions into the spec's bounds, as most tasks do before they act.

    Raises:
        ImportError: the file is HDF5, and h5py is not installed.
        ValueError: arrays are absent or of unequal lengths, the ends of episodes cannot be told, or
            a row cannot be right; rows count from 1.
    """
    arrays = tables.arrays(path)
    for name, x in arrays.items():
        if not x.ndim and name in (*_FLAT, *_BESIDE, *_ROLLOUTS[:3]):
            raise ValueError(f"{path} has {name} as a single number: it must have a row a step.")
    if set(_FLAT) <= arrays.keys():
        columns = _flat(str(path), arrays, time_limit)
    elif set(_ROLLOUTS) <= arrays.keys():
        columns = _rollouts(str(path), arrays, time_limit)
    else:
        raise ValueError(
            f"{path} has the arrays {', '.join(arrays) or 'of nothing'}; there must be "
            f"{', '.join(_FLAT)}, or {', '.join(_ROLLOUTS)}."
        )
    counts = {}
    columns["action"], clipped = _clipped(columns["action"], spec, clip_actions)
    if clipped:
        counts["actions_clipped"] = clipped
    rows = np.arange(1, len(columns["reward"]) + 1)
    return event_log.from_table(
        Table(str(path), columns, rows, "row"), _COLUMNS, rules, spec, counts
    )


def _flat(path: str, arrays: dict[str, np.ndarray], time_limit: int | None) -> dict[str, Any]:
    steps = len(arrays["rewards"])
    if not steps:
        raise ValueError(f"{path} has no rewards: there is nothing in it.")
    for name in (*_FLAT, *_BESIDE):
        if name in arrays and len(arrays[name]) != steps:
            raise ValueError(f"{path} has {len(arrays[name])} {name} and {steps} rewards.")
    columns: dict[str, Any] = {
        "state": _as_vectors(arrays["observations"]),
        "action": _as_actions(arrays["actions"]),
        "reward": _as_column(arrays["rewards"]),
    }
    if "next_observations" in arrays:
        columns["next_state"] = _as_vectors(arrays["next_observations"])
    if "terminals" in arrays:
        columns["terminated"] = _as_flags(path, "terminals", arrays["terminals"])
    told = [name for name in ("timeouts", "episode_lengths") if name in arrays]
    if told and time_limit is not None:
        raise ValueError(f"{path} has {told[0]}, which tell where episodes end: say no time_limit.")
    if "timeouts" in arrays:
        columns["truncated"] = _as_flags(path, "timeouts", arrays["timeouts"])
    if "episode_lengths" in arrays:
        lengths = _whole(path, "episode_lengths", arrays["episode_lengths"])
        fits = (lengths > 0) & (lengths <= steps)  # sums of others may be too large for a number
        if not fits.all() or lengths.sum() != steps:
            raise ValueError(
                f"{path}: its episode_lengths must be positive and add to its {steps} rows; they "
                f"add to {sum(lengths.tolist())}, and the least is {lengths.min(initial=steps)}."
            )
        columns["episode_id"] = np.repeat(np.arange(len(lengths)), lengths)
    elif "timeouts" not in arrays:
        columns["truncated"] = _untold_ends(path, columns, time_limit)
    return columns


def _untold_ends(path: str, columns: dict[str, Any], time_limit: int | None) -> np.ndarray:
    """Where episodes were cut though no array says so: by the limit, or where states jump."""
    steps = len(columns["reward"])
    terminated = columns.get("terminated", np.zeros(steps, bool))
    ends = np.zeros(steps, bool)
    if time_limit is not None:
        first = 0
        for end in [*(np.flatnonzero(terminated) + 1).tolist(), steps]:
            ends[first + time_limit - 1 : end : time_limit] = True
            first = end
        return ends & ~terminated
    if "next_state" not in columns:
        raise ValueError(
            f"{path} tells no time-outs from the middle of episodes: it needs timeouts, "
            "episode_lengths or next_observations; or say time_limit, the steps of the longest "
            "episode that the task allows, in a YAML file beside the data."
        )
    led_to, state = columns["next_state"][:-1], columns["state"][1:]
    ends[:-1] = ~np.isclose(led_to, state, rtol=1e-4, atol=1e-6).all(axis=1)
    return ends & ~terminated


def _rollouts(path: str, arrays: dict[str, np.ndarray], time_limit: int | None) -> dict[str, Any]:
    obs, acts, rews = (arrays[name] for name in _ROLLOUTS[:3])
    over = _as_flags(path, "terminal", np.atleast_1d(arrays["terminal"]))
    splits = _whole(path, "indices", arrays.get("indices", np.zeros(0, np.int64)))
    lengths = np.diff(np.concatenate([[0], splits, [len(acts)]]))
    if (lengths < 1).any() or len(lengths) != len(over):
        raise ValueError(
            f"{path}: its indices split {len(acts)} acts into {len(lengths)} episodes, none of "
            f"which may be empty, and terminal speaks of {len(over)}."
        )
    if len(rews) != len(acts) or len(obs) != len(acts) + len(lengths):
        raise ValueError(
            f"{path} has {len(acts)} acts, {len(rews)} rews and {len(obs)} obs; {len(lengths)} "
            "episodes need as many rews, and one observation more in each of them."
        )
    ends = np.cumsum(lengths + 1) - 1  # rows of final observations
    final = np.zeros(len(obs), bool)
    final[ends] = True
    rows = np.flatnonzero(~final)
    action = np.zeros((len(obs), *acts.shape[1:]), acts.dtype)
    reward = np.zeros(len(obs), np.float64)
    terminated, truncated = np.zeros((2, len(obs)), bool)
    action[rows], reward[rows] = acts, rews
    limited = np.zeros_like(over) if time_limit is None else lengths >= time_limit
    terminated[ends - 1] = over & ~limited
    truncated[ends - 1] = ~(over & ~limited)
    return {
        "state": _as_vectors(obs),
        "action": _as_actions(action),
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "final": final,
    }


def _as_vectors(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _as_column(x: np.ndarray) -> np.ndarray:
    return x[:, 0] if x.ndim == 2 and x.shape[1] == 1 else x


def _as_actions(x: np.ndarray) -> np.ndarray:
    """Choices `[N]`, though an axis of one may be behind; reals as they are."""
    return _as_column(x) if x.dtype.kind in "iu" else x


def _as_flags(path: str, name: str, x: np.ndarray) -> np.ndarray:
    x = _as_column(x)
    if x.ndim != 1:
        raise ValueError(f"{path}: its {name} must be booleans, one a row.")
    bad = ~np.isin(x, (0, 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{path}, row {row + 1}: its {name} is {x[row]}, neither true nor false.")
    return x.astype(bool)


def _whole(path: str, name: str, x: np.ndarray) -> np.ndarray:
    x = _as_column(np.asarray(x))
    if x.ndim != 1 or x.dtype.kind not in "iuf" or not (x == np.floor(x)).all():
        raise ValueError(f"{path}: its {name} must be a row of whole numbers.")
    return x.astype(np.int64)


def _clipped(action: np.ndarray, spec: EnvSpec | None, wanted: bool) -> tuple[np.ndarray, int]:
    """Actions within the spec's bounds, and how many were not."""
    if not wanted:
        return action, 0
    if spec is None or not isinstance(spec.action, Box):
        raise ValueError("clip_actions needs a spec whose actions are a box.")
    low, high = np.array(spec.action.low)[None], np.array(spec.action.high)[None]
    rows = action.reshape(len(action), -1)
    if rows.shape[1] != low.shape[1]:
        return action, 0  # which is told when actions are read
    # NaN stays what it is, and is found then
    clipped = np.clip(rows, low, high)
    beyond = int(((rows < low) | (rows > high)).any(axis=1).sum())
    return clipped, beyond
