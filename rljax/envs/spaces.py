"""Gymnasium's spaces in our terms: what the host adapters share, for EnvPool uses them too.

Observations become one float32 vector per environment: entries of a dict in the order of their
names, each flattened; a `Discrete` one as a one-hot vector. Frames (uint8, rank 3) stay uint8, with
their channels last: stacks come channels first from EnvPool. A dict or tuple that holds frames
becomes named parts: each frame by its path, "left_camera", and the rest as one vector, "vector", in
which bytes (such as MiniGrid's mission, which is text) are divided by 255, as frames are. All
functions here take batches `[B, ...]`; `xp` is `numpy`, or `jax.numpy` under a trace.
"""

import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from rljax.types import ActionSpec, Box, Discrete, MultiDiscrete, Part

MASK = "action_mask"  # the entry of a dict observation, or of the infos, that is no feature
VECTOR = "vector"  # the part of what is no frame
ONE_HOT_LIMIT = 64  # a larger number inside a dict is a counter: one-hot it would drown the rest


_SMALLEST_FRAME = 32  # pixels a side; what is smaller is a board


class ObservationLayout(NamedTuple):
    """How a batch of one environment's observations becomes `Observation.features`."""

    shape: tuple[int, ...]  # () where there are named parts
    dtype: str
    mask_shape: tuple[int, ...] | None  # of the mask inside the observation, if it has one
    features: Callable[[Any, ModuleType], Any]  # observation, xp -> [B, *shape], or a dict of such
    named_parts: tuple[Part, ...] = ()


class ActionLayout(NamedTuple):
    """How a batch of actions `[B, *spec.shape]` becomes what the environment takes."""

    spec: ActionSpec
    encode: Callable[[Any, ModuleType], Any]  # action, xp -> [B, ...] of the environment's dtype


def observation_layout(space: spaces.Space) -> ObservationLayout:
    """The layout of an observation space.

    Raises:
        ValueError: the space holds something that is no array of fixed size, such as text.
    """
    if _is_frame(space):
        shape, frame = _frame(_shape(space))
        return ObservationLayout(shape, "uint8", None, frame)
    mask_shape = None
    if isinstance(space, spaces.Dict) and MASK in space.spaces:
        mask_shape = _shape(space[MASK])
    leaves = [(path, leaf) for path, leaf in _leaves(space) if path != (MASK,)]
    frames = {path: _frame(_shape(leaf)) for path, leaf in leaves if _is_frame(leaf)}
    rest = [(path, leaf) for path, leaf in leaves if path not in frames]
    encoders = [(path, *_encoder(leaf, path, bytes_too=bool(frames))) for path, leaf in rest]
    width = sum(width for _, width, _ in encoders)

    def vector(observation: Any, xp: ModuleType) -> Any:
        parts = [encode(_at(observation, path)) for path, _, encode in encoders]
        return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)

    if not frames:
        return ObservationLayout((width,), "float32", mask_shape, vector)
    names = {path: _name(path) for path in frames}
    parts = [Part(name, frames[path][0], "uint8") for path, name in names.items()]
    if encoders:
        parts.append(Part(VECTOR, (width,), "float32"))
    if len({part.name for part in parts}) < len(parts):
        raise ValueError(f"two parts of its observations have one name: {sorted(names.values())}")

    def features(observation: Any, xp: ModuleType) -> dict[str, Any]:
        seen = {name: frames[path][1](_at(observation, path), xp) for path, name in names.items()}
        return seen | ({VECTOR: vector(observation, xp)} if encoders else {})

    return ObservationLayout((), "", mask_shape, features, tuple(sorted(parts)))


def action_layout(
    space: spaces.Space, dtype: np.dtype | None, mask_shape: tuple[int, ...] | None
) -> ActionLayout:
    """The layout of an action space whose arrays have `dtype`, given the shape of its masks.

    A mask with an entry for every *combination* of a multi-discrete action's components says more
    than one mask per component can: such an action becomes a single `Discrete` over combinations.

    Raises:
        ValueError: the space is none of Discrete from 0, MultiDiscrete from 0 and Box, or the mask
            does not fit it.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if mask_shape is not None:
            raise ValueError(f"it masks its actions {space}, which are no choices")
        return _box(space, dtype)
    nvec = _nvec(space)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        spec = Discrete(int(space.n))
    elif nvec is not None and mask_shape == nvec != (len(nvec), nvec[0]):
        return ActionLayout(
            Discrete(math.prod(nvec)),
            lambda a, xp: xp.stack(xp.unravel_index(a, nvec), axis=1).astype(dtype),
        )
    elif nvec is not None:
        spec = MultiDiscrete(nvec)
    else:
        raise ValueError(
            f"its actions are {space}; supported are Discrete and MultiDiscrete from 0, and Box"
        )
    if mask_shape is not None and math.prod(mask_shape) != spec.mask_shape[0]:
        raise ValueError(f"its action mask of shape {mask_shape} does not fit its actions {space}")
    return ActionLayout(spec, lambda a, xp: a.reshape(-1, *_shape(space)).astype(dtype, copy=False))


def flat_mask(mask: Any) -> Any:
    """A mask `[B, ...]` as bool `[B, n]`, the components of an action one after another."""
    return mask.reshape(mask.shape[0], -1).astype(bool)


def _is_frame(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _name(path: tuple) -> str:
    """Of a frame, fit to be the name of a parameter: "left_camera", "part_0"."""
    steps = (name if isinstance(name, str) else f"part_{name}" for name in path)
    return re.sub(r"\W", "_", "_".join(steps))


def _frame(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Callable[[Any, ModuleType], Any]]:
    """Height, width, channels of frames, and the function that brings a batch to that order.

    Channels come first where the first axis is the least, of frames too large to be boards.
    """
    if not shape[0] < _SMALLEST_FRAME <= min(shape[1:]):
        return shape, lambda pixels, xp: pixels

    def channels_last(pixels: Any, xp: ModuleType) -> Any:
        # `stack` of numpy is several times as fast as a copy of transposed bytes
        return xp.stack([pixels[:, i] for i in range(shape[0])], axis=-1)

    return (*shape[1:], shape[0]), channels_last


def _leaves(space: spaces.Space, path: tuple = ()) -> Iterator[tuple[tuple, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        for name in sorted(space.spaces):
            yield from _leaves(space[name], (*path, name))
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, i))
    else:
        yield path, space


def _at(observation: Any, path: tuple) -> Any:
    for name in path:
        observation = observation[name]
    return observation


def _encoder(
    space: spaces.Space, path: tuple, *, bytes_too: bool
) -> tuple[int, Callable[[Any], Any]]:
    """Width of one leaf, and the function from its batch to float32 `[B, width]`.

    `bytes_too`: beside frames, bytes are scaled as frames are.
    """
    if isinstance(space, spaces.Discrete) and (not path or space.n <= ONE_HOT_LIMIT):
        values = np.arange(space.start, space.start + space.n)[None]
        return int(space.n), lambda x: (x[:, None] == values).astype(np.float32)
    if isinstance(space, spaces.MultiDiscrete):
        # every component against its own values, all in one comparison
        owner = np.repeat(np.arange(space.nvec.size), space.nvec.ravel())
        values = np.concatenate([np.arange(n) for n in space.nvec.ravel()])
        values = (values + space.start.ravel()[owner])[None]
        return values.size, lambda x: (x.reshape(x.shape[0], -1)[:, owner] == values).astype(
            np.float32
        )
    if isinstance(space, spaces.Box | spaces.MultiBinary | spaces.Discrete):
        width = math.prod(_shape(space))
        if bytes_too and isinstance(space, spaces.Box) and space.dtype == np.uint8:
            return width, lambda x: x.reshape(x.shape[0], width).astype(np.float32) / 255
        return width, lambda x: x.reshape(x.shape[0], width).astype(np.float32, copy=False)
    where = f" at {'/'.join(map(str, path))}" if path else ""
    raise ValueError(
        f"its observations hold {space}{where}; supported are Box, Discrete, MultiDiscrete and "
        "MultiBinary, and Dict and Tuple of these"
    )


def _shape(space: spaces.Space) -> tuple[int, ...]:
    return tuple(space.shape or ())


def _nvec(space: spaces.Space) -> tuple[int, ...] | None:
    """Numbers of choices, if the space is a vector of choices from 0; EnvPool says Box for it."""
    if isinstance(space, spaces.MultiDiscrete) and not space.start.any():
        return tuple(int(n) for n in space.nvec.ravel())
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        return None if space.low.any() else tuple(int(n) + 1 for n in space.high.ravel())
    return None


def _box(space: spaces.Box, dtype: np.dtype | None) -> ActionLayout:
    limits = np.finfo(str(space.dtype))
    low, high = space.low.ravel(), space.high.ravel()
    # EnvPool fills bounds that a task leaves open with C++'s numeric_limits: max, and for `low`
    # min, which is the least *positive* number
    open_above = high >= limits.max
    open_below = (low <= limits.min) | (open_above & (low == limits.tiny))
    low, high = np.where(open_below, -np.inf, low), np.where(open_above, np.inf, high)
    spec = Box(tuple(low.tolist()), tuple(high.tolist()))
    low, high = low.astype(dtype)[None], high.astype(dtype)[None]

    def encode(action: Any, xp: ModuleType) -> Any:
        # `clip` of numpy costs three times as much on arrays as small as these
        clipped = xp.minimum(xp.maximum(action, low), high)
        return clipped.reshape(-1, *space.shape).astype(dtype, copy=False)

    return ActionLayout(spec, encode)
