"""EnvPool as a `HostEnv` (Weng et al. 2022, arXiv:2206.10558): C++ simulators in a thread pool.

Observations and actions are described in `rljax.envs.spaces`. Three habits of EnvPool to know: an
episode that terminates on the very step of its time limit is reported as truncated only; an int
seed gives environment i `seed + i`, so pools need seeds at least `num_envs` apart; and Atari's
`episodic_life` terminates at the loss of a life, its `reward_clip` gives signs for rewards, while
the infos tell of the game: scores are counted from those.
"""

import difflib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rljax.envs.base import TimeStep, XlaEnv
from rljax.types import EnvSpec, Observation

# What `make` sets itself, or what would change the meaning of a batch or of the task's name.
RESERVED = frozenset(
    "num_envs batch_size num_threads seed env_seed max_num_players gym_reset_return_info "
    "task base_path".split()
)
# Least values of whole numbers; below these EnvPool ends the process, or frames pass for boards.
LEAST = {
    "max_episode_steps": 1,
    "stack_num": 1,
    "frame_skip": 1,
    "noop_max": 1,
    "img_height": 32,
    "img_width": 32,
}
# Where a task keeps its mask of allowed actions, if outside of its observation.
INFO_MASKS = ("action_mask", "legal_action_mask")


def names() -> list[str]:
    """Every task that EnvPool has; none where it is not installed."""
    try:
        import envpool
    except ImportError:
        return []
    return envpool.list_all_envs()


def make(
    name: str,
    num_envs: int,
    seed: int,
    *,
    num_threads: int = 0,
    options: Mapping[str, Any] | None = None,
) -> "EnvPoolEnv":
    """`num_envs` copies of a task, stepped by `num_threads` threads (0: one per core, at most).

    `options` are the task's own settings, such as `max_episode_steps` or `frame_skip`.

    Raises:
        ImportError: EnvPool, or a system library that the task needs, is not installed.
        ValueError: the task or an option is unknown, a number is out of range, the task has several
            players, or its observations or actions are not supported.
    """
    try:
        import envpool
    except ImportError as error:
        raise ImportError("EnvPool is not installed: pip install 'envpool>=1.2.5'.") from error
    if name not in (known := envpool.list_all_envs()):
        close = ", ".join(difflib.get_close_matches(name, known)) or "see envpool.list_all_envs()"
        raise ValueError(f"EnvPool has no task {name!r}; near it: {close}.")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
    if num_threads < 0:
        raise ValueError(f"num_threads must be 0 (automatic) or more, not {num_threads}.")
    if not 0 <= seed <= 2**31 - num_envs:
        raise ValueError(f"seed must lie between 0 and {2**31 - num_envs}, not {seed}.")
    options = dict(options or {})
    with warnings.catch_warnings():  # EnvPool's own, of bounds that lose digits as float32
        warnings.simplefilter("ignore")
        _check_options(name, options, envpool.make_spec(name).config._fields)
        try:
            pool = envpool.make(
                name,
                env_type="gymnasium",
                num_envs=num_envs,
                num_threads=num_threads,
                seed=seed,
                **options,
            )
        except TypeError as error:  # C++ refuses a type, with a page of signatures
            raise ValueError(f"{name} takes no {options}: a value has the wrong type.") from error
        except RuntimeError as error:
            raise ValueError(f"{name} with {options}: {error}.") from error
        return EnvPoolEnv(name, pool)


def _check_options(name: str, options: dict[str, Any], fields: tuple[str, ...]) -> None:
    known = sorted({*fields, "render_mode"} - RESERVED)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(known)}.")
    for option, least in LEAST.items():
        value = options.get(option, least)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{option} must be a whole number from {least}, not {value!r}.")


class EnvPoolEnv:
    """A `HostEnv` around a pool of `envpool.make(..., env_type="gymnasium")`."""

    def __init__(self, name: str, pool: Any) -> None:
        from rljax.envs import spaces  # needs gymnasium, which comes with envpool

        config = pool.config
        if config["max_num_players"] > 1:
            raise ValueError(
                f"{name} is a game of {config['max_num_players']} players; one is supported."
            )
        arrays = pool.spec.state_array_spec
        info_mask = next((key for key in INFO_MASKS if f"info:{key}" in arrays), None)
        try:
            layout = spaces.observation_layout(pool.observation_space)
            mask_shape = layout.mask_shape
            if mask_shape is None and info_mask is not None:
                mask_shape = tuple(arrays[f"info:{info_mask}"].shape)
            # the first two entries of the action spec are the ids of environments and players
            action_dtype = [spec.dtype for spec in pool.spec.action_array_spec.values()][-1]
            actions = spaces.action_layout(pool.action_space, np.dtype(action_dtype), mask_shape)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}.") from error

        def mask(observation: Any, info: dict[str, Any]) -> Any:
            if layout.mask_shape is not None:
                return spaces.flat_mask(observation[spaces.MASK])
            return None if info_mask is None else spaces.flat_mask(info[info_mask])

        self._features, self._mask, self._encode = layout.features, mask, actions.encode
        self._keeps_score = {"info:reward", "info:terminated"} <= arrays.keys()
        self._pool: Any = pool
        self._xla: XlaEnv | None = None
        limit = config["max_episode_steps"]
        self.num_envs: int = config["num_envs"]
        self.spec = EnvSpec(
            name=name,
            observation_shape=layout.shape,
            observation_dtype=layout.dtype,
            action=actions.spec,
            has_mask=mask_shape is not None,
            named_parts=layout.named_parts,
            max_episode_steps=limit if limit < np.iinfo(np.int32).max else None,
        )
        self._action_shape = (self.num_envs, *self.spec.action.shape)

    def reset(self) -> Observation:
        """Starts every environment anew; its generator goes on where it was."""
        observation, info = self._pool.reset()
        return self._observe(observation, info, np)

    def step(self, action: np.ndarray) -> TimeStep:
        """Steps all environments; real actions are clipped to their bounds here.

        Raises:
            ValueError: `action` is not of shape `[num_envs, *spec.action.shape]`.
        """
        if action.shape != self._action_shape:
            raise ValueError(f"actions must be {self._action_shape}, not {action.shape}.")
        # every call returns new arrays: nothing below needs a copy
        return self._timestep(np, *self._pool.step(self._encode(action, np)))

    def xla(self) -> XlaEnv | None:
        """The pool's step as an XLA call; None unless on Linux with JAX's CPU backend.

        It is the same pool: steps from Python and from XLA advance the same episodes. Wait for the
        last step of XLA (`block_until_ready`) before calling `reset` or `step`, and keep this
        object as long as a compiled step is in use.
        """
        if self._xla is None and sys.platform == "linux" and jax.default_backend() == "cpu":
            self._xla = self._make_xla()
        return self._xla

    def render(self) -> np.ndarray:
        """The first environment as uint8 `[height, width, 3]`; needs render_mode="rgb_array"."""
        return self._pool.render()[0]

    def close(self) -> None:
        """Frees threads and memory, once nothing compiled by `xla` holds the pool."""
        self._pool = self._xla = None

    def _make_xla(self) -> XlaEnv:
        # MuJoCo's pools speak float64, which JAX knows only under enable_x64: the pool is declared
        # and traced there, and everything is float32 again on the way out.
        pool, encode = self._pool, self._encode
        with jax.enable_x64(True):
            handle, _, _, pool_step = pool.xla()
            handle = jnp.asarray(handle)

        def step(handle: Array, action: Array) -> tuple[Array, TimeStep]:
            with jax.enable_x64(True):
                handle, step = pool_step(handle, encode(action, jnp))
                return handle, self._timestep(jnp, *step)

        return XlaEnv(handle, step)

    def _timestep(
        self, xp: Any, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> TimeStep:
        step = TimeStep(self._observe(observation, info, xp), reward, terminated, truncated)
        if not self._keeps_score:
            return step
        return step._replace(
            score=info["reward"], game_over=info["terminated"].astype(bool) | truncated
        )

    def _observe(self, observation: Any, info: dict[str, Any], xp: Any) -> Observation:
        return Observation(self._features(observation, xp), self._mask(observation, info))
