"""Actor threads at fault: each failure is one sentence, and no thread or pool is left behind."""

import dataclasses
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from agents import ppo
from rljax import rollout, sources
from rljax.actors import threads
from rljax.actors.base import ActorError
from rljax.actors.threads import Threads
from rljax.actors.watched import Stopped, Watched
from rljax.loops import actor_learner

AGENT = ppo.Config(
    total_steps=4 * 8 * 50,
    num_envs=4,
    rollout_length=8,
    num_minibatches=1,
    num_epochs=1,
    hidden_sizes=(4,),
)
INNER = dataclasses.replace(ppo.loop(AGENT), num_devices=1, collector=rollout.Kind.HOST)
LOOP = actor_learner.Config(INNER, Threads(), num_actors=2, staleness=1, timeout_seconds=60.0)


class Troubled:
    """A pool whose n-th step, or whose reset, does something else first."""

    def __init__(self, env, trouble=lambda: None, at_step=None, at_reset=False):
        self._env, self._trouble, self._at_reset = env, trouble, at_reset
        self._left = at_step
        self.spec, self.num_envs, self.xla = env.spec, env.num_envs, env.xla
        self.closed = False

    def reset(self):
        if self._at_reset:
            self._trouble()
        return self._env.reset()

    def step(self, action):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._trouble()
        return self._env.step(action)

    def close(self):
        self.closed = True


POOL = sources.open(sources.EnvSource("CartPole-v1", 1))
PPO = ppo.make(AGENT, POOL.spec)  # one, so that what it compiles is compiled once


def parts(loop=LOOP, **second):
    """The loop's parts, with trouble in the second pool."""
    opened = sources.open_pools(sources.EnvSource("CartPole-v1", AGENT.num_envs), loop.num_actors)
    envs = [Troubled(env) for env in opened.envs]
    envs[-1] = Troubled(opened.envs[-1], **second)
    opened = opened._replace(envs=tuple(envs))
    state = actor_learner.init(PPO, opened, loop)
    return opened, actor_learner.run(PPO, opened, state, loop, 0)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("actor-")]


def fail():
    raise FloatingPointError("the simulator fell apart")


def test_an_environment_that_raises_ends_the_run_with_its_own_words():
    opened, run = parts(trouble=fail, at_step=2 * 8 + 3)  # the third row of rollout 2
    yielded = []
    sentence = (
        r"^actor 1 failed while collecting rollout 2, in env\.step of CartPole-v1: "
        r"FloatingPointError: the simulator fell apart$"
    )
    with pytest.raises(ActorError, match=sentence) as error:
        yielded.extend((step, state) for step, state, _ in run)
    assert isinstance(error.value.__cause__, FloatingPointError)
    # rollouts 0 and 1 were learned from, and the last state is whole: nothing has donated it
    assert [step for step, _ in yielded] == [32, 64]
    assert yielded[-1][1].train.updates == 2
    assert np.isfinite(jax.tree.leaves(jax.device_get(yielded[-1][1]))[0]).all()
    assert [env.closed for env in opened.envs] == [True, True]


def test_an_environment_that_cannot_start_is_told():
    _, run = parts(trouble=fail, at_reset=True)
    with pytest.raises(ActorError, match=r"actor 1 failed while starting, in env\.reset of Cart"):
        next(run)


def test_a_policy_that_raises_is_told_without_an_environment():
    loop = dataclasses.replace(LOOP, num_actors=1)
    opened = sources.open_pools(sources.EnvSource("CartPole-v1", AGENT.num_envs), 1)
    state = actor_learner.init(PPO, opened, loop)
    broken = PPO._replace(act=lambda *arguments: fail())
    with pytest.raises(ActorError, match="actor 0 failed while collecting rollout 0: Floating"):
        next(actor_learner.run(broken, opened, state, loop, 0))


@pytest.mark.parametrize(
    ("when", "stage"),
    [
        ({"at_step": 8 + 1}, r"collecting rollout 1, in env\.step of CartPole-v1"),
        ({"at_reset": True}, r"starting, in env\.reset of CartPole-v1"),
    ],
)
def test_an_environment_that_hangs_is_told_with_its_stage(when, stage):
    go_on = threading.Event()
    list(itertools.islice(parts()[1], 1))  # compiles, so that the clock measures nothing else
    loop = dataclasses.replace(LOOP, timeout_seconds=4.0)
    opened, run = parts(loop, trouble=go_on.wait, **when)
    sentence = rf"actor 1 gave no rollout within 4 seconds: it was {stage}\. A longer --actor"
    start = time.monotonic()
    with pytest.raises(ActorError, match=sentence):
        list(run)
    assert time.monotonic() - start < 30  # a thread that hangs is not waited for again
    assert [env.closed for env in opened.envs] == [True, False]  # its pool is in use
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "actor-1":
            thread.join(10)


@pytest.mark.parametrize("staleness", [0, 2])
def test_closing_a_run_ends_threads_in_the_middle_of_a_rollout(staleness):
    in_step = threading.Event()

    def slow():
        in_step.set()
        time.sleep(0.2)

    loop = dataclasses.replace(LOOP, staleness=staleness)
    opened, run = parts(loop, trouble=slow, at_step=8 + 2)
    next(run)
    assert in_step.wait(30)  # rollout 1 is begun before anybody asks for it
    run.close()
    assert [env.closed for env in opened.envs] == [True, True]
    run.close()


def test_an_exception_of_the_learner_ends_the_threads():
    opened, run = parts()
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    assert [env.closed for env in opened.envs] == [True, True]


def test_a_run_that_ends_leaves_nothing():
    opened, run = parts()
    assert len(list(run)) == 50
    assert [env.closed for env in opened.envs] == [True, True]


def test_nothing_starts_before_the_first_update_is_asked_for():
    before = threading.active_count()
    _, run = parts()
    assert threading.active_count() == before
    run.close()


def test_a_watched_pool_tells_its_time_and_stops():
    pool = Watched(sources.open(sources.EnvSource("CartPole-v1", 2)))
    pool.reset()
    pool.step(np.zeros(2, np.int32))
    split = pool.split(collected=5.0)
    assert 0 < split["time/actor_env_seconds"] < 5
    assert sum(split.values()) == pytest.approx(5.0)
    assert pool.split(collected=5.0) == {}  # nothing since
    pool.stopped.set()
    with pytest.raises(Stopped):
        pool.step(np.zeros(2, np.int32))


def test_devices_are_chosen_by_index():
    assert threads.chosen_devices((1, 0), "x") == jax.local_devices()[::-1]
    assert threads.chosen_devices((), "x") == []
