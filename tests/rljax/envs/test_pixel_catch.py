import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import sources
from rljax.envs import catch, pixel_catch


def play(env, key: jax.Array, actions: list[int]) -> list:
    """What is shown at first and after every action, with the rewards and ends."""
    state, observation = env.reset(key)
    seen = [(observation.features, 0.0, False)]
    for action in actions:
        state, step = env.step(state, jnp.int32(action), key)
        seen.append((step.observation.features, float(step.reward), bool(step.terminated)))
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_it_is_catch_drawn_a_cell_a_pixel(seed):
    key, actions = jax.random.key(seed), [0, 1, 2, 2, 2, 1, 0, 0, 1]
    for (frame, *ours), (board, *theirs) in zip(
        play(pixel_catch.make(scale=1), key, actions),
        play(catch.make(), key, actions),
        strict=True,
    ):
        assert frame.shape == (10, 5, 1)
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame[..., 0], 255 * np.reshape(board, (10, 5)))
        assert ours == theirs


def test_a_cell_is_a_square_of_pixels(key):
    state, observation = pixel_catch.make(scale=3).reset(key)
    frame = np.asarray(observation.features)[..., 0]
    assert frame.shape == (30, 15)
    ball, middle = int(state.ball_column), 2
    expected = np.zeros((30, 15))
    expected[0:3, 3 * ball : 3 * ball + 3] = 255
    expected[27:30, 3 * middle : 3 * middle + 3] = 255  # where the paddle starts
    np.testing.assert_array_equal(frame, expected)


def test_stacked_frames_are_the_last_ones(key):
    actions = [0, 2, 2, 1, 0, 1, 1, 1, 1]
    single = [frame for frame, *_ in play(pixel_catch.make(scale=1), key, actions)]
    stacked = [frame for frame, *_ in play(pixel_catch.make(scale=1, stack=3), key, actions)]
    for t, frames in enumerate(stacked):
        assert frames.shape == (10, 5, 3)
        for back in range(3):  # the newest last; an episode starts with its first in every place
            np.testing.assert_array_equal(frames[..., 2 - back], single[max(t - back, 0)][..., 0])


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (80, 40, 1)), ({"scale": 1}, (10, 5, 1)), ({"scale": 4, "stack": 4}, (40, 20, 4))],
)
def test_the_spec_says_what_is_shown(options, shape, key):
    source = sources.EnvSource("rljax:pixel_catch", 1, options=tuple(options.items()))
    env = sources.open(source)
    assert env.spec.name == "rljax:pixel_catch"
    assert (env.spec.observation_shape, env.spec.observation_dtype) == (shape, "uint8")
    assert env.reset(key)[1].features.shape == shape
    assert env.spec.max_episode_steps == 9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": 0}, "rljax:pixel_catch: scale must be at least 1, not 0"),
        ({"scale": 2.0}, "rljax:pixel_catch: scale should be an int, got 2.0"),
        ({"scale": "8"}, 'scale should be an int, got "8"'),
        ({"stack": 0}, "rljax:pixel_catch: stack must be at least 1, not 0"),
        ({"stack": -4}, "stack must be at least 1, not -4"),
        ({"stack": None}, "stack should be an int, got null"),
        ({"stack": True}, "stack should be an int, got true"),
        ({"stak": 4}, "rljax:pixel_catch has no option 'stak'; its options: scale, stack"),
    ],
)
def test_wrong_options_get_one_sentence(options, sentence):
    source = sources.EnvSource("rljax:pixel_catch", 1, options=tuple(options.items()))
    with pytest.raises(ValueError, match=sentence) as caught:
        sources.open(source)
    assert "\n" not in str(caught.value)
