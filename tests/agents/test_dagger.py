"""DAgger's schedules by hand, its config, and that its learner is behavior cloning's."""

import dataclasses

import jax
import numpy as np
import pytest

from agents import bc, dagger
from agents.dagger import Beta, Config
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import SPECS
from tests.agents.samples import learn, sample
from tests.agents.updates import differs, same

CONFIG = Config(num_rounds=4, hidden_sizes=(8,), learning_rate=1e-2, batch_size=8)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Beta.FIRST_ROUND, (1, 0, 0, 0)),
        (Beta.GEOMETRIC, (1, 0.8, 0.64, 0.512)),
        (Beta.LINEAR, (1, 2 / 3, 1 / 3, 0)),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = dataclasses.replace(CONFIG, beta_schedule=schedule, beta=0.8)
    np.testing.assert_allclose(dagger.betas(config), expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", Beta)
def test_a_single_round_is_the_experts(schedule):
    config = dataclasses.replace(CONFIG, beta_schedule=schedule, num_rounds=1)
    assert dagger.betas(config) == (1.0,)


def test_the_clone_gets_every_field_that_it_shares_with_behavior_cloning():
    changed = dataclasses.replace(
        CONFIG,
        batch_size=3,
        learning_rate=0.5,
        adam_epsilon=0.25,
        loss=bc.Loss.SQUARED_ERROR,
        state_dependent_std=True,
        initial_log_std=-1.0,
        torso=Torso.MLP,
        hidden_sizes=(7,),
        activation=Activation.TANH,
    )
    names = {field.name for field in dataclasses.fields(Config)}
    clone, plain = dagger.cloning(changed), bc.Config()
    taken = {name for name in vars(plain) if getattr(clone, name) != getattr(plain, name)}
    rounds = {"num_rounds", "num_envs", "rollout_length", "num_updates", "beta_schedule", "beta"}
    assert taken == names - rounds
    assert all(getattr(clone, name) == getattr(changed, name) for name in taken)


def test_the_loop_gets_its_fields():
    config = dataclasses.replace(CONFIG, num_envs=2, rollout_length=5, num_updates=6)
    loop = dagger.loop(config)
    assert loop.betas == (1, 0, 0, 0)
    assert (loop.num_envs, loop.rollout_length, loop.num_updates, loop.batch_size) == (2, 5, 6, 8)
    assert loop.last_step == config.total_steps == 40


@pytest.mark.parametrize("spec", [SPECS["box"], SPECS["masked"]], ids=["box", "masked"])
def test_it_learns_as_behavior_cloning_does(spec, key):
    agent, clone = dagger.make(CONFIG, spec), bc.make(dagger.cloning(CONFIG), spec)
    state, batch = agent.init(key), checks.batch_of(spec, key)
    one, two = learn(agent, state, batch, key), learn(clone, clone.init(key), batch, key)
    same(one, two, rtol=0)
    assert differs(one[0].params, state.params)


def test_a_label_moves_the_clone_towards_it(key):
    spec = SPECS["discrete"]
    agent, batch = dagger.make(CONFIG, spec), sample(spec, key)
    batch = batch._replace(action=jax.numpy.full(8, 2), weight=jax.numpy.ones(8))
    state = agent.init(key)
    for _ in range(60):
        state, _, _ = learn(agent, state, batch, key)
    _, action, _ = agent.act(state.policy, (), batch.observation, key, True)
    assert (action == 2).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"rollout_length": 0}, "rollout_length"),
        ({"num_updates": 0}, "num_updates"),
        ({"num_envs": 0}, "num_envs"),
        ({"beta": 1.5}, r"config\.beta must lie in \[0, 1\]"),
        ({"batch_size": 0}, "batch_size"),
        ({"state_dependent_std": True, "loss": bc.Loss.SQUARED_ERROR}, "state_dependent_std"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        dagger.validate(dataclasses.replace(Config(), **changes))


def test_a_bundle_answers_as_the_agent_does(key):
    outputs = {"action", "log_prob", "entropy", "probabilities"}
    checks.a_bundle_answers("dagger", dagger.make(CONFIG, SPECS["discrete"]), CONFIG, key, outputs)
