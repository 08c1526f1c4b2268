"""Models of dynamics: a system that is linear, one that is chance, and what must not be seen."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rljax.offline import dataset
from rljax.ope import dynamics
from rljax.types import Box, Discrete, EnvSpec, Observation

SPEC = EnvSpec("system", (2,), "float32", Box((-1.0,), (1.0,)))
CHOICES = EnvSpec("system", (2,), "float32", Discrete(2))
MATRIX = np.array([[0.95, 0.2], [-0.2, 0.95]])
CONFIG = dynamics.Config(
    num_members=2, hidden_sizes=(32,), total_updates=2_000, batch_size=64, horizon=8
)


def system(spec=SPEC, count=40, noise=None, seed=0):
    """s' = M s + (a, 0), paid 3 s₀ + a; or nothing but noise. Lengths from 1 to 30 steps."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        steps = int(rng.integers(1, 31))
        seen = [rng.normal(size=2)]
        choice = rng.integers(2, size=steps)
        action = rng.uniform(-1, 1, steps) if isinstance(spec.action, Box) else choice - 0.5
        for force in action:
            after = MATRIX @ seen[-1] + np.array([force, 0.0])
            seen.append(after if noise is None else rng.normal(size=2))
        states = np.array(seen)
        paid = 3 * states[:-1, 0] + action if noise is None else rng.normal(size=steps)
        taken = action[:, None].astype(np.float32) if isinstance(spec.action, Box) else choice
        made.append(
            dataset.Episode(
                Observation(states.astype(np.float32)), taken, paid.astype(np.float32), False
            )
        )
    return dataset.make(spec, made)


@pytest.mark.parametrize("spec", [SPEC, CHOICES], ids=["box", "choices"])
def test_a_linear_system_is_learned_and_foretold(spec):
    found = dynamics.check(system(spec), CONFIG)
    assert len(found.observation) == 8
    assert found.observation[0] < 0.05
    assert found.observation[-1] < 0.25
    assert found.unchanged[0] > 0.2  # what such a small error is beside
    assert found.unchanged[-1] > 0.8
    assert found.reward[0] < 0.05
    assert found.num_episodes == 8
    assert list(found.num_segments) == sorted(found.num_segments, reverse=True)
    json.dumps(dynamics.to_json(found), allow_nan=False)


def test_chance_is_not():
    found = dynamics.check(system(noise=1.0), CONFIG)
    for error, unchanged in zip(found.observation, found.unchanged, strict=True):
        assert 0.8 < error < 1.6
        assert unchanged == pytest.approx(np.sqrt(2), abs=0.35)
    assert found.reward[0] > 0.8


def test_the_error_of_predicting_no_change_is_that_of_a_loop():
    data, config = system(), dataclasses.replace(CONFIG, total_updates=1, num_segments=10_000)
    trained, held_out = dynamics.split(data, config)
    model = dynamics.learn(trained, config)
    found = dynamics.errors(model, held_out, config)
    seen = np.concatenate([episode.observation.features[:-1] for episode in trained.episodes()])
    deviation = seen.astype(np.float64).std(axis=0)
    for ahead in (1, 5):
        squares = []
        for episode in held_out.episodes():
            states = episode.observation.features.astype(np.float64)
            for first in range(len(states) - ahead):
                squares.append((((states[first + ahead] - states[first]) / deviation) ** 2).mean())
        assert found.unchanged[ahead - 1] == pytest.approx(np.sqrt(np.mean(squares)))
        assert found.num_segments[ahead - 1] == len(squares)


def test_held_out_episodes_are_never_learned_from():
    data, config = system(), dataclasses.replace(CONFIG, total_updates=50)
    order = np.random.default_rng(config.seed).permutation(40)
    spoiled = list(data.episodes())
    for number in order[:8]:
        episode = spoiled[number]
        seen = Observation(episode.observation.features * 0 + 7)
        spoiled[number] = episode._replace(observation=seen, reward=episode.reward + 100)
    other = dataset.make(SPEC, spoiled)
    first, second = (dynamics.learn(dynamics.split(x, config)[0], config) for x in (data, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    held_out = dynamics.split(other, config)[1]
    assert held_out.num_episodes == 8
    assert (held_out.rows.observation.features == 7).all()


def test_what_it_cannot_do_is_said():
    pixels = EnvSpec("frames", (2, 2, 1), "uint8", Discrete(2))
    seen = Observation(np.zeros((2, 2, 2, 1), np.uint8))
    one = dataset.Episode(seen, np.zeros(1, np.int32), np.ones(1, np.float32), True)
    with pytest.raises(ValueError, match="of plain vectors"):
        dynamics.check(dataset.make(pixels, [one, one]), CONFIG)
    with pytest.raises(ValueError, match="need two episodes"):
        dynamics.check(system(count=1), CONFIG)
