"""Loops know only the Agent contract; they yield `(step, state, metrics)` and never write.

`LOOPS` finds the loop of a config, so that `launch.train` has one `for` for all of them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rljax.loops import (
    actor_learner,
    dagger,
    fine_tuning,
    in_graph,
    off_policy,
    offline,
    on_policy,
)
from rljax.types import Metrics


class Loop(NamedTuple):
    """Functions over a state of the loop's own, a pytree: what a checkpoint holds."""

    check: Callable[[Any, Any], None]  # source, config: ValueError where they do not fit
    init: Callable[[Any, Any, Any], Any]  # agent, source, config -> the state before the first step
    # agent, source, state, config, first step -> what happens from there on
    run: Callable[[Any, Any, Any, Any, int], Iterator[tuple[int, Any, Metrics]]]


LOOPS = {
    on_policy.Config: Loop(on_policy.check, on_policy.init, on_policy.run),
    off_policy.Config: Loop(off_policy.check, off_policy.init, off_policy.run),
    in_graph.Config: Loop(in_graph.check, in_graph.init, in_graph.run),
    fine_tuning.Config: Loop(fine_tuning.check, fine_tuning.init, fine_tuning.run),
    offline.Config: Loop(offline.check, offline.init, offline.run),
    dagger.Config: Loop(dagger.check, dagger.init, dagger.run),
    actor_learner.Config: Loop(actor_learner.check, actor_learner.init, actor_learner.run),
}
