import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from rljax.envs import spaces
from rljax.types import Box, Discrete, MultiDiscrete, Part

FLATTENED = [
    gym_spaces.Box(-1, 1, (3,), np.float64),
    gym_spaces.Box(-1, 1, (), np.float32),
    gym_spaces.Box(0, 9, (2, 3), np.int32),
    gym_spaces.Discrete(100, start=-3),
    gym_spaces.MultiDiscrete([2, 3], start=[0, 5]),
    gym_spaces.MultiBinary((2, 2)),
    gym_spaces.Tuple((gym_spaces.Discrete(3), gym_spaces.Box(0, 1, (2,)))),
    gym_spaces.Dict(
        {
            "z": gym_spaces.Box(0, 1, (2,)),
            "a": gym_spaces.Discrete(4),
            "m": gym_spaces.Dict({"inner": gym_spaces.Box(0, 1, (2, 2))}),
        }
    ),
]


@pytest.mark.parametrize("space", FLATTENED, ids=str)
def test_features_are_gymnasiums_flattened_observations(space):
    space.seed(0)
    layout = spaces.observation_layout(space)
    samples = [space.sample() for _ in range(5)]
    batch = _stack(samples)
    features = layout.features(batch, np)
    assert features.dtype == np.float32
    assert features.shape == (5, *layout.shape)
    expected = np.stack([gym_spaces.flatten(space, sample) for sample in samples])
    np.testing.assert_array_equal(features, expected.astype(np.float32))
    np.testing.assert_array_equal(layout.features(_stack(samples, jnp.asarray), jnp), features)


def _stack(samples: list, wrap=np.asarray):
    if isinstance(samples[0], dict):
        return {key: _stack([sample[key] for sample in samples], wrap) for key in samples[0]}
    if isinstance(samples[0], tuple):
        return tuple(_stack(list(part), wrap) for part in zip(*samples, strict=True))
    return wrap(np.stack(samples))


def test_pixels_stay_as_they_are():
    layout = spaces.observation_layout(gym_spaces.Box(0, 255, (4, 8, 8), np.uint8))
    pixels = np.full((2, 4, 8, 8), 7, np.uint8)
    assert (layout.shape, layout.dtype) == ((4, 8, 8), "uint8")
    assert layout.features(pixels, np) is pixels


def test_the_mask_is_no_feature_and_long_counters_are_numbers():
    space = gym_spaces.Dict(
        {
            "action_mask": gym_spaces.MultiBinary(3),
            "place": gym_spaces.Discrete(2),
            "step": gym_spaces.Discrete(1000),
        }
    )
    layout = spaces.observation_layout(space)
    batch = {
        "action_mask": np.ones((1, 3), np.int8),
        "place": np.array([1]),
        "step": np.array([500]),
    }
    assert layout.mask_shape == (3,)
    assert layout.features(batch, np).tolist() == [[0, 1, 500]]


def test_text_is_refused_with_its_place():
    space = gym_spaces.Dict({"mission": gym_spaces.Text(10)})
    with pytest.raises(ValueError, match=r"Text.* at mission; supported are Box"):
        spaces.observation_layout(space)


@pytest.mark.parametrize(
    ("space", "mask_shape", "expected"),
    [
        (gym_spaces.Discrete(4), None, Discrete(4)),
        (gym_spaces.Discrete(4), (4,), Discrete(4)),
        (gym_spaces.MultiDiscrete([2, 3]), (5,), MultiDiscrete((2, 3))),
        (gym_spaces.Box(0, np.array([2, 0]), (2,), np.int32), None, MultiDiscrete((3, 1))),
        (gym_spaces.Box(0, 3, (5,), np.int32), (5, 4), MultiDiscrete((4,) * 5)),  # a mask each
        (gym_spaces.Box(0, np.array([2, 3]), (2,), np.int32), (3, 4), Discrete(12)),  # of pairs
        (gym_spaces.Box(-2, 3, (1,), np.float64), None, Box((-2.0,), (3.0,))),
        (gym_spaces.Box(-np.inf, 1, (1,), np.float32), None, Box((-np.inf,), (1.0,))),
    ],
    ids=str,
)
def test_action_specs(space, mask_shape, expected):
    assert spaces.action_layout(space, space.dtype, mask_shape).spec == expected


def test_a_choice_of_combination_is_taken_apart():
    space = gym_spaces.Box(0, np.array([2, 3]), (2,), np.int16)
    encode = spaces.action_layout(space, space.dtype, (3, 4)).encode
    chosen = encode(np.array([0, 5, 11]), np)  # rows of the mask have 4 entries: 5 = 1 · 4 + 1
    assert chosen.tolist() == [[0, 0], [1, 1], [2, 3]]
    assert chosen.dtype == np.int16
    np.testing.assert_array_equal(encode(jnp.array([0, 5, 11]), jnp), chosen)


def test_real_actions_are_clipped_cast_and_shaped():
    space = gym_spaces.Box(-1, 2, (2, 1), np.float64)
    encode = spaces.action_layout(space, space.dtype, None).encode
    action = encode(np.array([[-3, 0.5], [1, 9]], np.float32), np)
    assert action.dtype == np.float64
    assert action.tolist() == [[[-1], [0.5]], [[1], [2]]]


def test_bounds_that_envpool_leaves_open_are_endless():
    limits = np.finfo(np.float64)
    space = gym_spaces.Box(limits.tiny, limits.max, (1,), np.float64)
    layout = spaces.action_layout(space, space.dtype, None)
    assert layout.spec == Box((-np.inf,), (np.inf,))
    assert layout.encode(np.array([[-5.0]], np.float32), np).tolist() == [[-5.0]]


@pytest.mark.parametrize(
    ("space", "mask_shape", "sentence"),
    [
        (gym_spaces.Discrete(3, start=1), None, "supported are Discrete"),
        (gym_spaces.MultiBinary(3), None, "supported are Discrete"),
        (gym_spaces.Box(1, 3, (2,), np.int32), None, "supported are Discrete"),
        (gym_spaces.Dict({"a": gym_spaces.Discrete(2)}), None, "supported are Discrete"),
        (gym_spaces.Discrete(3), (4,), "does not fit"),
        (gym_spaces.Box(0, 1, (2,)), (2,), "which are no choices"),
    ],
    ids=str,
)
def test_unfit_actions_are_refused(space, mask_shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        spaces.action_layout(space, np.dtype(np.float32), mask_shape)


def frame(*shape: int) -> gym_spaces.Box:
    return gym_spaces.Box(0, 255, shape, np.uint8)


WITH_FRAMES = gym_spaces.Dict(
    {
        "action_mask": gym_spaces.MultiBinary(3),
        "board": frame(7, 5, 3),
        "camera": gym_spaces.Dict({"left eye": frame(2, 40, 48)}),
        "goal": gym_spaces.Discrete(2),
        "mission": gym_spaces.Box(0, 255, (2,), np.uint8),
        "speed": gym_spaces.Box(-1, 1, (1,), np.float64),
    }
)


@pytest.mark.parametrize(("xp", "wrap"), [(np, np.asarray), (jnp, jnp.asarray)])
def test_frames_in_a_dict_are_parts_by_name_and_the_rest_is_one_vector(xp, wrap):
    layout = spaces.observation_layout(WITH_FRAMES)
    assert (layout.shape, layout.dtype, layout.mask_shape) == ((), "", (3,))
    assert layout.named_parts == (
        Part("board", (7, 5, 3), "uint8"),
        Part("camera_left_eye", (40, 48, 2), "uint8"),  # channels came first
        Part("vector", (5,), "float32"),
    )
    WITH_FRAMES.seed(0)
    batch = _stack([WITH_FRAMES.sample() for _ in range(2)], wrap)
    batch |= {
        "goal": wrap([0, 1]),
        "mission": wrap(np.array([[0, 51], [255, 0]], np.uint8)),
        "speed": wrap([[0.5], [-0.5]]),
    }
    features = layout.features(batch, xp)
    assert {part.name for part in layout.named_parts} == set(features)
    for name, shape, dtype in layout.named_parts:
        assert features[name].shape == (2, *shape)
        assert features[name].dtype == dtype
    np.testing.assert_array_equal(features["board"], batch["board"])
    left = np.asarray(batch["camera"]["left eye"])
    np.testing.assert_array_equal(features["camera_left_eye"], left.transpose(0, 2, 3, 1))
    expected = [[1, 0, 0, 0.2, 0.5], [0, 1, 1, 0, -0.5]]  # goal; bytes over 255; speed
    np.testing.assert_allclose(features["vector"], expected, rtol=1e-6)


def test_a_dict_of_one_frame_has_no_vector():
    layout = spaces.observation_layout(gym_spaces.Dict({"image": frame(7, 7, 3)}))
    assert layout.named_parts == (Part("image", (7, 7, 3), "uint8"),)
    assert layout.features({"image": np.ones((1, 7, 7, 3), np.uint8)}, np).keys() == {"image"}


def test_frames_of_a_tuple_are_numbered():
    layout = spaces.observation_layout(gym_spaces.Tuple((frame(7, 7, 1), gym_spaces.Discrete(2))))
    assert [part.name for part in layout.named_parts] == ["part_0", "vector"]


@pytest.mark.parametrize(
    "space",
    [
        gym_spaces.Dict({"a b": frame(7, 7, 1), "a_b": frame(7, 7, 1)}),
        gym_spaces.Dict({"vector": frame(7, 7, 1), "speed": gym_spaces.Discrete(2)}),
    ],
    ids=["two frames", "a frame called vector"],
)
def test_two_parts_of_one_name_are_refused(space):
    with pytest.raises(ValueError, match="two parts of its observations have one name"):
        spaces.observation_layout(space)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((4, 84, 84), (84, 84, 4)),  # a stack of EnvPool's
        ((84, 84, 3), (84, 84, 3)),
        ((210, 160, 3), (210, 160, 3)),
        ((7, 9, 9), (7, 9, 9)),  # a board of few cells, not seven channels
        ((31, 32, 32), (32, 32, 31)),
        ((32, 32, 32), (32, 32, 32)),
    ],
)
def test_channels_come_last(shape, seen):
    layout = spaces.observation_layout(frame(*shape))
    assert layout.shape == seen
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    expected = pixels if shape == seen else np.moveaxis(pixels, 1, -1)
    np.testing.assert_array_equal(layout.features(pixels, np), expected)
