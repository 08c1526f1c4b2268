"""Gymnasium environments as a `HostEnv`, one after another in this process (its `SyncVectorEnv`).

Observations and actions are described in `rljax.envs.spaces`. A mask of allowed actions is taken
from the entry "action_mask" of a dict observation or of the infos.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rljax.envs.base import TimeStep, XlaEnv
from rljax.types import EnvSpec, Observation


def names() -> list[str]:
    """Every registered environment; none where Gymnasium is not installed."""
    try:
        import gymnasium
    except ImportError:
        return []
    return list(gymnasium.registry)


def make(
    name: str,
    num_envs: int,
    seed: int,
    *,
    num_threads: int = 0,
    options: Mapping[str, Any] | None = None,
) -> "GymnasiumEnv":
    """`num_envs` copies of an environment; an int seed gives copy i `seed + i`.

    `name` may carry the module that registers it, as in "ale_py:ALE/Pong-v5". `num_threads` is
    there for the likeness to EnvPool and not used. `options` are keyword arguments of
    `gymnasium.make`, such as `max_episode_steps`.

    Raises:
        ImportError: Gymnasium, or a package that the environment needs, is not installed.
        ValueError: the environment or an option is unknown, a number is out of range, or the
            observations or actions are not supported.
    """
    del num_threads
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("Gymnasium is not installed: pip install 'gymnasium>=1.2'.") from error
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}.")
    options = dict(options or {})
    try:
        envs = gymnasium.make_vec(name, num_envs, vectorization_mode="sync", **options)
    except gymnasium.error.UnregisteredEnv as error:
        close = ", ".join(difflib.get_close_matches(name, gymnasium.registry)) or "none"
        raise ValueError(f"Gymnasium has no environment {name!r}; near it: {close}.") from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{name} needs a package more. {error}") from error
    except (
        gymnasium.error.Error,
        AssertionError,
        TypeError,
        ValueError,
    ) as error:  # options end here too
        told = f" with {options}" if options else ""
        raise ValueError(f"Gymnasium refuses {name}{told}: {error}") from error
    return GymnasiumEnv(name, envs, seed)


class GymnasiumEnv:
    """A `HostEnv` around a Gymnasium vector environment that restarts on the next step."""

    def __init__(self, name: str, envs: Any, seed: int) -> None:
        from gymnasium.vector import AutoresetMode

        from rljax.envs import spaces

        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        _, info = envs.reset(seed=seed)
        try:
            layout = spaces.observation_layout(envs.single_observation_space)
            mask_shape = layout.mask_shape
            if mask_shape is None and spaces.MASK in info:
                mask_shape = info[spaces.MASK].shape[1:]
            space = envs.single_action_space
            actions = spaces.action_layout(space, space.dtype, mask_shape)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}.") from error

        def mask(observation: Any, info: dict[str, Any]) -> np.ndarray | None:
            if layout.mask_shape is not None:
                return spaces.flat_mask(observation[spaces.MASK])
            if mask_shape is None:
                return None
            given = spaces.flat_mask(info[spaces.MASK])
            given[~info[f"_{spaces.MASK}"]] = True  # who gave none forbids nothing
            return given

        self._features, self._mask, self._encode = layout.features, mask, actions.encode
        self._seed: int | None = seed
        self._envs = envs
        self.num_envs: int = envs.num_envs
        self.spec = EnvSpec(
            name=name,
            observation_shape=layout.shape,
            observation_dtype=layout.dtype,
            action=actions.spec,
            has_mask=mask_shape is not None,
            named_parts=layout.named_parts,
            max_episode_steps=envs.get_attr("spec")[0].max_episode_steps,
        )
        self._action_shape = (self.num_envs, *self.spec.action.shape)

    def reset(self) -> Observation:
        """Starts every environment anew; after the first time, its generator goes on."""
        observation, info = self._envs.reset(seed=self._seed)
        self._seed = None
        return self._observe(observation, info)

    def step(self, action: np.ndarray) -> TimeStep:
        """Steps all environments; real actions are clipped to their bounds here.

        Raises:
            ValueError: `action` is not of shape `[num_envs, *spec.action.shape]`.
        """
        if action.shape != self._action_shape:
            raise ValueError(f"actions must be {self._action_shape}, not {action.shape}.")
        observation, reward, terminated, truncated, info = self._envs.step(self._encode(action, np))
        return TimeStep(
            self._observe(observation, info), reward.astype(np.float32), terminated, truncated
        )

    def xla(self) -> XlaEnv | None:
        """None: Python cannot be stepped by XLA."""
        return None

    def render(self) -> np.ndarray:
        """The first environment as uint8 `[height, width, 3]`; needs render_mode="rgb_array"."""
        return self._envs.render()[0]

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _observe(self, observation: Any, info: dict[str, Any]) -> Observation:
        return Observation(self._features(observation, np), self._mask(observation, info))
