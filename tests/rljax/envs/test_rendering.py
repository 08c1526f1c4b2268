import re

import numpy as np
import pytest

from rljax.envs import rendering


def always(action):
    return lambda observation: np.array([action])


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1", "rljax:cartpole"])
def test_an_episode_until_it_ends(name):
    frames, reason = rendering.render_episode(name, always(1), seed=0, max_steps=50)
    assert reason == ""
    assert 8 <= len(frames) <= 12  # the reset, and the nine or so steps until the pole falls
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.shape == (400, 600, 3)
    assert (frames[0] != frames[-1]).any()


def test_options_are_the_tasks_and_the_seed_decides():
    def record(seed):
        return rendering.render_episode(
            "Pendulum-v1", always([0.0]), seed, max_steps=9, options={"max_episode_steps": 2}
        ).frames

    one, other = record(0), record(1)
    assert len(one) == 3
    assert (one[0] != other[0]).any()


def test_the_policy_sees_a_batch_of_one_with_its_mask():
    seen = []

    def act(observation):
        seen.append(observation)
        return observation.mask.argmax(axis=1)

    frames, _ = rendering.render_episode("Snake-v1", act, seed=0, max_steps=2)
    assert len(frames) == 3
    assert seen[1].features.shape == (1, 721)
    assert seen[1].mask.shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rljax:catch", "rljax:catch has no picture"),
        ("Catch-v0", "envpool:Catch-v0: .*render not implemented"),
    ],
)
def test_what_cannot_be_rendered_says_why(name, reason):
    frames, told = rendering.render_episode(name, always(0), seed=0, max_steps=3)
    assert frames is None
    assert re.search(reason, told)


def test_a_simulator_that_ends_its_process_does_not_end_ours(monkeypatch):
    # what MuJoCo does where there is no OpenGL
    monkeypatch.setattr(
        rendering, "_candidates", lambda prefix, task: [("envpool", "NoSuchTask-v0")]
    )
    frames, told = rendering.render_episode("CartPole-v1", always(0), seed=0, max_steps=3)
    assert frames is None
    assert "NoSuchTask-v0" in told
