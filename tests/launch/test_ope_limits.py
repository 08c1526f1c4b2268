"""What lies behind a time limit is the model's word, and the verdict knows."""

import numpy as np
import pytest

from launch import ope, propensities
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


def test_propensities_do_not_depend_on_the_units_of_what_was_seen():
    """A feature of a million, as a time or an income, hides the one that decides from a clone."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(3000, 2)).astype(np.float32)
    chance = 1 / (1 + np.exp(-2 * seen[:, 0]))
    action = (rng.random(3000) < chance).astype(np.int32)
    seen[:, 1] = 1e6 + 1e5 * seen[:, 1]
    spec = EnvSpec("visitors", (2,), "float32", Discrete(2))
    episodes = [
        Episode(Observation(np.stack([x, x])), a[None], np.ones(1, np.float32), True)
        for x, a in zip(seen, action, strict=True)
    ]
    made = dataset.make(spec, episodes)
    found = np.exp(propensities._cloned_choices(made, 0)[made.rows.valid])
    expected = np.where(action == 1, chance, 1 - chance)
    assert np.abs(found - expected).mean() < 0.06
    assert (expected / found).mean() == pytest.approx(1, abs=0.1)


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
