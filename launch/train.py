"""Train one agent in one environment.

    python -m launch.train --agent=ppo --env=CartPole-v1 --workdir=runs/cartpole
    python -m launch.train --env=HalfCheetah-v4 --workdir=runs/cheetah --config.learning_rate=3e-4
    python -m launch.train --init_from=runs/iql --env=HalfCheetah-v4 --workdir=runs/online
    srun python -m launch.train --env=Pong-v5 --workdir=runs/pong --distributed

Everything lands in --workdir; the same command again resumes from the last checkpoint there.
Ctrl-C and SIGTERM end it with a checkpoint; so does a broken --return_floor, with exit code 3.
--helpfull lists every flag of the agent. With --distributed every process runs the same command;
process 0 evaluates and writes.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from launch import flags, process
from launch.experiment import Experiment

if TYPE_CHECKING:
    from launch import trained
    from rljax import checkpoint
    from rljax.agent import Agent
    from rljax.types import Metrics

    Run = Iterator[tuple[int, Any, Metrics]]


def main(argv: list[str]) -> int:
    """Trains to the end, or to a signal; returns the exit code."""
    experiment, cluster = flags.experiment(argv), flags.cluster(argv)

    from rljax import distributed  # here and below: --help answers without JAX

    with distributed.session(cluster):
        return train(experiment)


def train(experiment: Experiment) -> int:
    """`main`, on this process's devices or on those of all that have joined."""
    from launch import fine_tuning, trained
    from launch.experiment import alone_in, identity, open_workdir
    from rljax import distributed

    distributed.check_same(identity(experiment))
    with flags.usage_errors():
        experiment = trained.pinned(fine_tuning.resolved(experiment))
        parts = trained.build(experiment)
    if not distributed.is_chief():
        return _run(experiment, parts)
    with alone_in(open_workdir(experiment)):
        return _run(experiment, parts)


def _run(experiment: Experiment, parts: "trained.Run") -> int:
    """Trains in a workdir that is this run's alone."""
    from launch import data, fine_tuning, graph
    from rljax import checkpoint, config, distributed, faults
    from rljax.loops import LOOPS
    from rljax.metrics import throughput, writers

    agent, source, loop_config = parts
    workdir = pathlib.Path(experiment.workdir).absolute()
    with flags.usage_errors():
        if distributed.is_chief():
            data.describe(source, workdir, experiment.dataset)
        loop = LOOPS[type(loop_config)]
        checkpoints = checkpoint.Manager(workdir / "checkpoints", experiment.keep_checkpoints)
        first_step, state = checkpoints.restore_or(lambda: loop.init(agent, source, loop_config))
        if experiment.online.init_from and not first_step:
            state = fine_tuning.take_over(experiment, state)
        run = loop.run(agent, source, state, loop_config, first_step)
        evaluate = _evaluator(experiment, agent, loop_config) if experiment.eval_episodes else None
    speed, score = throughput.Throughput(window=20), None
    step, stopped = first_step, fine_tuning.has_stopped(loop_config, state)
    due = _Due(first_step, loop_config.last_step)
    log_rows = graph.log_rows(experiment, loop_config)
    with (
        checkpoints,
        writers.writers(
            experiment.logging, workdir, total_steps=loop_config.last_step, resume_step=first_step
        ) as log,
        process.stop_on_signals() as stop,
        contextlib.closing(cast(Any, run)),  # ends its actors, if it has some
    ):
        log.config(config.to_json(experiment))
        for step, state, measured in _saving_at_faults(run, checkpoints):
            faults.check_metrics(step, measured)
            measured |= speed.update(step)
            score = None
            if evaluate and due.now("eval", step, experiment.eval_every):
                score = evaluate(state.train.policy, step)
                measured |= {f"eval/{name}": number for name, number in score.items()}
            # A signal may come at any time: what comes from here on is agreed on at the next step.
            signal = distributed.agree(step, stop.signal)
            stopped = fine_tuning.has_stopped(loop_config, state)
            if due.now("log", step, log_rows) or score or signal or stopped:
                log.write(step, measured)
            if signal or stopped or due.now("checkpoint", step, experiment.checkpoint_every):
                checkpoints.save(step, state, score["return_mean"] if score else None)
            if signal and distributed.is_chief():
                print(f"stopped at step {step:,}; the same command resumes", file=sys.stderr)
            if signal:
                return 128 + signal  # as shells count
    if distributed.is_chief():
        _conclude(experiment, workdir, speed.total)
        _tell_runs(loop_config, score)
    if stopped:
        print(fine_tuning.sentence(experiment, state, step), file=sys.stderr)
    return fine_tuning.EXIT_CODE if stopped else 0


def _saving_at_faults(run: "Run", checkpoints: "checkpoint.Manager") -> "Run":
    """Hands on what a loop yields; where an actor fails, saves the last state before it raises."""
    import jax

    from rljax.actors.base import ActorError
    from rljax.types import Metrics

    last: tuple[int, Any, Metrics] | None = None
    try:
        for last in run:
            yield last
    except ActorError:
        if last is not None and jax.process_count() == 1:  # others would have to save too
            checkpoints.save(*last[:2])
        raise


def _evaluator(
    experiment: Experiment, agent: "Agent", loop_config: Any
) -> Callable[[Any, int], dict[str, float]]:
    """Scores a policy at a step: process 0 does, and the others wait for it.

    Of several runs it scores each, under the same draws: the numbers are means over the runs, and
    `run_<number>_return` are their own.
    """
    import jax

    from launch import trained
    from rljax import distributed, evaluation
    from rljax.loops import in_graph

    if not distributed.is_chief():

        def wait(policy: Any, step: int) -> dict[str, float]:
            with distributed.chief_works():
                return {}

        return wait
    play = evaluation.player(
        agent, trained.fresh_source(experiment), trained.EVAL_ENVS, greedy=True
    )

    def evaluate(policy: Any, step: int) -> dict[str, float]:
        with distributed.chief_works():
            key = jax.random.fold_in(jax.random.key(experiment.seed), step)
            policy = jax.device_get(policy)
            if not isinstance(loop_config, in_graph.Config):
                return play(policy, experiment.eval_episodes, key).summary()
            policies = in_graph.each(policy, loop_config)
            return in_graph.summary(
                [play(each, experiment.eval_episodes, key).summary() for each in policies]
            )

    return evaluate


def _conclude(experiment: Experiment, workdir: pathlib.Path, speed: float | None) -> None:
    """Leaves the last numbers and the learning curve."""
    from launch import results
    from rljax.metrics import jsonl, plots

    curve = workdir / "metrics.jsonl"
    last = {name: number for line in jsonl.read(curve) for name, number in line.items()}
    numbers = {name: last[name] for name in last if name.startswith(_KEPT)}
    numbers["time/wall_clock_seconds"] = last["time"]
    if speed:  # else there was nothing left to do
        numbers["time/steps_per_second"] = speed
    results.update(workdir, numbers)
    if "episode/return_mean" in last:  # else no episode has ended yet
        path = workdir / "plots/learning_curve.png"
        plots.learning_curve({experiment.source.name: [curve]}, path)


def _tell_runs(loop_config: Any, score: "dict[str, float] | None") -> None:
    """Says what each of several runs came to, where the last thing that was done scored them."""
    from rljax.loops import in_graph

    if not score or not isinstance(loop_config, in_graph.Config):
        return
    runs = in_graph.members(loop_config)
    if len(runs) == 1:
        return
    for number, run in enumerate(runs):
        settings = "".join(f", {name} {value:g}" for name, value in run.settings.items())
        reached = score[f"run_{number}_return"]
        print(f"run {number}: seed {run.seed}{settings}: return {reached:,.1f}", file=sys.stderr)


_KEPT = ("step", "eval/", "episode/", "seed/", "guard/")  # of the metrics, in result.json


class _Due:
    """Which of the things that are done every so many steps is due; at the last step, all are."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self._done: dict[str, int] = {}
        self._first, self._last = first_step, last_step

    def now(self, what: str, step: int, every: int) -> bool:
        """Whether a multiple of `every` has been passed since `what` was due (0: at the end)."""
        before = self._done.get(what, self._first)
        if step < self._last and (not every or step // every == before // every):
            return False
        self._done[what] = step
        return True


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=flags.parse)
