"""Means over the episodes that ended lately."""

import numpy as np
import pytest

from rljax.loops.episodes import Window
from rljax.types import Episodes


def test_returns_are_means_over_the_last_hundred_episodes():
    window = Window(num_episodes=100)
    assert window.add(Episodes(np.int32(0), np.float32(0), np.int32(0))) == {}
    window.add(Episodes(np.int32(60), np.float32(60.0), np.int32(600)))
    both = window.add(Episodes(np.int32(60), np.float32(180.0), np.int32(60)))
    # without the first rollout only 60 episodes would be left: both count, (60 + 180) / 120
    assert both == {
        "episode/return_mean": 2.0,
        "episode/length_mean": 5.5,
        "episode/count": 120,
    }
    # now the last two hold 110: the first one leaves, (180 + 50) / 110
    third = window.add(Episodes(np.int32(50), np.float32(50.0), np.int32(50)))
    assert third["episode/return_mean"] == pytest.approx(230 / 110)
    assert third["episode/count"] == 170
