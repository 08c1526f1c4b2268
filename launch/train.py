"""Train one agent in one environment.

    python -m launch.train --agent=ppo --env=CartPole-v1 --workdir=runs/cartpole
    python -m launch.train --env=HalfCheetah-v4 --workdir=runs/cheetah --config.learning_rate=3e-4

Everything lands in --workdir; the same command again resumes from the last checkpoint there.
Ctrl-C and SIGTERM end it with a checkpoint. --helpfull lists every flag of the agent.
"""

import sys

from launch import flags, process


def main(argv: list[str]) -> int:
    """Trains to the end, or to a signal; returns the exit code."""
    experiment = flags.experiment(argv)

    import jax  # here and below: --help answers without JAX

    from launch import results, trained
    from launch.experiment import open_workdir
    from rljax import checkpoint, config, evaluation
    from rljax.loops import LOOPS
    from rljax.metrics import jsonl, plots, throughput, writers

    with flags.usage_errors():
        agent, source, loop_config = trained.build(experiment)
        workdir = open_workdir(experiment)
        loop = LOOPS[type(loop_config)]
        checkpoints = checkpoint.Manager(workdir / "checkpoints")
        first_step, state = checkpoints.restore_or(lambda: loop.init(agent, source, loop_config))
        run = loop.run(agent, source, state, loop_config, first_step)
        others = trained.fresh_source(experiment)
    evaluate = evaluation.player(agent, others, trained.EVAL_ENVS, greedy=True)
    speed = throughput.Throughput(window=20)
    due = _Due(first_step, loop_config.last_step)
    with (
        checkpoints,
        writers.writers(
            experiment.logging, workdir, total_steps=loop_config.last_step, resume_step=first_step
        ) as log,
        process.stop_on_signals() as stop,
    ):
        log.config(config.to_json(experiment))
        for step, state, measured in run:
            measured |= speed.update(step)
            score = None
            if experiment.eval_episodes and due.now("eval", step, experiment.eval_every):
                key = jax.random.fold_in(jax.random.key(experiment.seed), step)
                policy = jax.device_get(state.train.policy)
                score = evaluate(policy, experiment.eval_episodes, key).summary()
                measured |= {f"eval/{name}": number for name, number in score.items()}
            if score or due.now("log", step, experiment.log_every * loop_config.rows):
                log.write(step, measured)
            if stop.signal or due.now("checkpoint", step, experiment.checkpoint_every):
                checkpoints.save(step, state, score["return_mean"] if score else None)
            if stop.signal:
                print(f"stopped at step {step:,}; the same command resumes", file=sys.stderr)
                return stop.exit_code
    curve = workdir / "metrics.jsonl"
    last = {name: number for line in jsonl.read(curve) for name, number in line.items()}
    numbers = {name: last[name] for name in last if name.startswith(("step", "eval/", "episode/"))}
    numbers["time/wall_clock_seconds"] = last["time"]
    if speed.total:  # else there was nothing left to do
        numbers["time/steps_per_second"] = speed.total
    results.update(workdir, numbers)
    plots.learning_curve({experiment.source.name: [curve]}, workdir / "plots/learning_curve.png")
    return 0


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
