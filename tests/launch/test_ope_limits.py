"""What lies behind a time limit is the model's word, and the verdict knows."""

import numpy as np
import pytest

from launch import ope
from rljax.offline import dataset
from rljax.offline.dataset import Episode
from rljax.ope import trajectories
from rljax.types import Discrete, EnvSpec, Observation

SPEC = EnvSpec("limited", (1,), "float32", Discrete(2))


def log(last_value, *, terminated):
    """Four episodes of two steps that pay 1 each, and the model's value of where they end."""
    episode = Episode(
        Observation(np.zeros((3, 1), np.float32)),
        np.zeros(2, np.int32),
        np.ones(2, np.float32),
        terminated,
    )
    made = dataset.make(SPEC, [episode] * 4)
    last = None if last_value is None else np.full(4, last_value)
    rewards = [np.ones(2)] * 4
    return made, trajectories.from_episodes(rewards, [np.zeros(2)] * 4, 0.5, last_value=last)


@pytest.mark.parametrize(
    ("last_value", "told"),
    [
        (None, "episodes end at time limits, and no model says what would have followed"),
        # ¼ of 2 is ½, and the return is 1 + ½ + ½ = 2
        (2.0, "25 % of the returns is the model's word of what lies behind time limits"),
        (-2.0, "50 % of the returns"),  # ½ of 1
    ],
)
def test_what_lies_behind_a_limit_is_a_caveat(last_value, told):
    (caveat,) = ope._behind_limits(*log(last_value, terminated=False))
    assert caveat.startswith(told)


def test_little_of_it_and_terminations_are_none():
    assert ope._behind_limits(*log(0.2, terminated=False)) == []  # 0.05 of 1.55
    assert ope._behind_limits(*log(None, terminated=True)) == []
