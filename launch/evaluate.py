"""Score a trained policy on fresh environments: greedy and sampled, with intervals and a video.

    python -m launch.evaluate --workdir=runs/cartpole --episodes=100
    python -m launch.evaluate --workdir=runs/a,runs/b,runs/c      # three seeds of one experiment
    python -m launch.evaluate --workdir=runs/cartpole --dataset=data/mixed --ope      # by a log

The normalizers' statistics stay as training left them. Each workdir gets the numbers in its
result.json and, where the environment can be rendered, an episode in videos/. Several workdirs are
taken as seeds: their interquartile mean (IQM) comes with a bootstrap interval over them.
"""

import functools
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from launch import flags, process

if TYPE_CHECKING:
    from rich.console import Console

    from launch.trained import Trained

FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_list(
    "workdir", None, "Of launch.train; several, by commas, are seeds of one run.", flag_values=FLAGS
)
absl_flags.DEFINE_integer("episodes", 100, "Episodes per mode.", 1, flag_values=FLAGS)
absl_flags.DEFINE_string(
    "step", "latest", "A checkpoint's step, or latest, or best.", flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "run",
    None,
    "Which of several runs that were trained in one program, from 0; default: 0.",
    0,
    flag_values=FLAGS,
)
absl_flags.DEFINE_integer("seed", 0, "Of the environments and the actions.", 0, flag_values=FLAGS)
absl_flags.DEFINE_bool("video", True, "Keep a greedy episode as a GIF.", flag_values=FLAGS)
absl_flags.DEFINE_bool(
    "ope", False, "Evaluate by the log of another policy, --dataset, not by playing.", FLAGS
)
absl_flags.DEFINE_string("dataset", None, "The log, with --ope.", flag_values=FLAGS)
absl_flags.DEFINE_bool("greedy", False, "With --ope: the policy without its noise.", FLAGS)
absl_flags.DEFINE_integer(
    "ope_updates", 20_000, "With --ope: of the model of the policy's value.", 1, flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "ope_dice_updates",
    0,
    "With --ope: of a network of how often the policy is in which state, for dice; 0: no dice.",
    0,
    flag_values=FLAGS,
)
absl_flags.DEFINE_float(
    "ope_bandwidth",
    None,
    "With --ope --greedy and real actions: of the kernel, in deviations of the logged actions; "
    "chosen by SLOPE unless given.",
    flag_values=FLAGS,
)
absl_flags.DEFINE_integer("video_steps", 1000, "Longest video, in steps.", 1, flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Scores every workdir; prints a table."""
    del argv
    if not FLAGS.workdir:
        raise flags.UsageError("--workdir is missing: give that of launch.train.")
    if FLAGS.step not in ("latest", "best") and not FLAGS.step.isdecimal():
        raise flags.UsageError(f"--step={FLAGS.step} must be a number, latest or best.")

    if FLAGS.ope_bandwidth is not None and not 0 < FLAGS.ope_bandwidth < float("inf"):
        raise flags.UsageError(f"--ope_bandwidth={FLAGS.ope_bandwidth} must be above 0.")
    if FLAGS.ope_bandwidth is not None and not FLAGS.greedy:
        raise flags.UsageError("--ope_bandwidth is of greedy policies: add --ope --greedy.")
    if FLAGS.greedy and not FLAGS.ope:
        raise flags.UsageError("--greedy is for --ope; who plays is told in both modes.")
    if bool(FLAGS.dataset) != FLAGS.ope:
        raise flags.UsageError("--ope and --dataset go together: an evaluation by that log.")
    alone = ("ope_updates", "ope_dice_updates") if not FLAGS.ope else ("episodes", "video_steps")
    for name in alone:
        if FLAGS[name].present:
            other = "is for --ope" if not FLAGS.ope else "is for playing, without --ope"
            raise flags.UsageError(f"--{name} {other}.")
    if FLAGS.ope:
        return _by_logs()

    from rich.table import Table

    from launch import results, trained
    from rljax import evaluation

    table = Table("run", "step", "mode", "return", "± std", "min", "max", "length", box=None)
    means: dict[str, list[float]] = {"greedy": [], "sampled": []}
    for workdir in map(pathlib.Path, FLAGS.workdir):
        run = trained.load(workdir, FLAGS.step, FLAGS.run)
        numbers: dict[str, object] = {"eval/step": run.step, "eval/seed": FLAGS.seed}
        if FLAGS.run is not None:
            numbers["eval/run"] = FLAGS.run
        for mode, prefix in (("greedy", "eval"), ("sampled", "eval_sampled")):
            summary = _play(run, greedy=mode == "greedy").summary()
            numbers |= {f"{prefix}/{name}": number for name, number in summary.items()}
            means[mode].append(summary["return_mean"])
            shown = (summary[f"return_{name}"] for name in ("mean", "std", "min", "max"))
            table.add_row(
                str(workdir),
                f"{run.step:,}",
                mode,
                *(f"{number:,.1f}" for number in shown),
                f"{summary['length_mean']:,.0f}",
            )
        results.update(workdir, numbers)
        if FLAGS.video:
            print(_film(run, workdir / "videos" / f"step_{run.step}.gif"))
    for mode, scores in means.items():
        if len(scores) > 1:
            low, high = evaluation.bootstrap_interval(scores)
            table.add_row(
                f"IQM of {len(scores)} seeds",
                "",
                mode,
                f"{evaluation.iqm(scores):,.1f}",
                f"[{low:,.1f}, {high:,.1f}] 95 %",
            )
    _console().print(table)
    return 0


def _console() -> "Console":
    """As wide as the terminal; where there is none, so wide that no name is cut."""
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def _by_logs() -> int:
    """Evaluates every workdir by the episodes of --dataset; prints a table for each."""
    from rich.table import Table

    from launch import ope, trained

    console = _console()
    options = ope.Options(
        FLAGS.greedy, FLAGS.ope_updates, FLAGS.seed, FLAGS.ope_bandwidth, FLAGS.ope_dice_updates
    )
    for workdir in map(pathlib.Path, FLAGS.workdir):
        run = trained.load(workdir, FLAGS.step, FLAGS.run)
        with flags.usage_errors():
            found, told = ope.report(run, FLAGS.dataset, options)
        table = Table("estimator", "value", "95 % interval", box=None)
        for row in (found.logged, *found.estimates):
            interval = row.note if row.low is None else f"[{row.low:,.4g}, {row.high:,.4g}]"
            value = "-" if row.value is None else f"{row.value:,.4g}"
            table.add_row(row.name, value, interval)
        console.print(f"{workdir}, step {run.step:,}, by {FLAGS.dataset}:")
        console.print(table)
        reasons = "; ".join(reason.rstrip(".") for reason in found.verdict.reasons)
        console.print(f"trust: {found.verdict.trust}: {reasons}")
        for note in told["notes"]:
            console.print(f"note: {note}")
        if told["kernel"]:
            width = ", ".join(f"{x:.3g}" for x in told["kernel"]["bandwidth"])
            chosen_by = told["kernel"]["chosen_by"]
            console.print(f"kernel: Gaussian, bandwidth {width}, chosen by {chosen_by}")
        for name, apart in told["shift"].items():
            console.print(f"shift of {name}: MMD² {apart['mmd2']:.3g}, p {apart['p_value']:.2g}")
        if told["dice"]:
            console.print(f"dice: visits add up to {told['dice']['mass']:.3g} where 1 is due")
        if told["dynamics"]:
            console.print(ope.foretold(told["dynamics"]))
        ope.write(found, told, workdir)
    return 0


def _play(run: "Trained", *, greedy: bool):  # -> Score; its module imports JAX
    import jax

    from launch import trained
    from rljax import evaluation

    num_envs = min(FLAGS.episodes, trained.EVAL_ENVS)
    source = trained.fresh_source(run.experiment, num_envs, FLAGS.seed)
    play = evaluation.player(run.agent, source, num_envs, greedy=greedy)
    return play(run.policy, FLAGS.episodes, jax.random.key(FLAGS.seed))


def _film(run: "Trained", path: pathlib.Path) -> str:
    """Keeps a greedy episode at `path`; says so, or why there is none."""
    import jax
    import numpy as np
    from PIL import Image

    from rljax import files
    from rljax.envs import rendering
    from rljax.types import Observation

    carry = run.agent.initial_carry(1)
    decide = jax.jit(run.agent.act, static_argnums=4)

    def act(observation: Observation) -> np.ndarray:
        nonlocal carry
        carry, action, _ = decide(run.policy, carry, observation, jax.random.key(0), True)
        return np.asarray(action)

    source = run.experiment.source
    recording = rendering.render_episode(
        source.name, act, FLAGS.seed, FLAGS.video_steps, options=dict(source.options)
    )
    if recording.frames is None:
        return f"no video: {recording.reason}"
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in recording.frames[::2]]
    with files.replacing(path) as partial:
        first.save(partial, "GIF", save_all=True, append_images=others, duration=40, loop=0)
    return f"video: {path}"


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
