r"""Write a dataset of episodes by trained or random policies, with the propensity of each action.

    python -m launch.collect --workdir=runs/cartpole --episodes=500 --policy=mixed \
        --out=data/cartpole_medium
    python -m launch.collect --env=CartPole-v1 --policy=random --episodes=100 --out=data/random

    random          every action alike
    expert          the kept checkpoint that earns most in 24 episodes
    medium          the kept checkpoint whose return is nearest to half of the way from random to
                    expert; train with --keep_checkpoints=20, so that there are some
    mixed           a third each of random, medium and expert
    medium-replay   equal parts of random and of every checkpoint up to the first that is as good as
                    medium, or half of the way
    medium-expert   half of each

The folder gets Minari's layout (data/main_data.hdf5), the same rows as an event log (rows.parquet),
and collection.json, which says what acted, and how well. Actions are sampled, not greedy.
"""

import functools
import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags as absl_flags

from launch import flags, process

if TYPE_CHECKING:
    from rljax.agent import Agent
    from rljax.envs.base import HostEnv, JaxEnv
    from rljax.offline.dataset import Episode

FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_string("workdir", None, "Of launch.train.", flag_values=FLAGS)
absl_flags.DEFINE_string("env", None, "In place of --workdir, for random.", flag_values=FLAGS)
absl_flags.DEFINE_integer("episodes", 100, "In all.", 1, flag_values=FLAGS)
absl_flags.DEFINE_enum(
    "policy",
    "expert",
    ["random", "expert", "medium", "mixed", "medium-replay", "medium-expert"],
    "Who acts.",
    flag_values=FLAGS,
)
absl_flags.DEFINE_string("out", None, "The folder to write; must be new.", flag_values=FLAGS)
absl_flags.DEFINE_integer("seed", 0, "Of environments and actions.", 0, flag_values=FLAGS)

_ENVS = 8
_TRIALS = 24  # episodes that tell how good a checkpoint is
_MEDIUM = 0.5  # of the way from random to expert


class Actor(NamedTuple):
    """A policy, and what to call it."""

    name: str  # "random", or "step <number>"
    agent: "Agent"
    policy: Any
    return_mean: float


def main(argv: list[str]) -> int:
    """Collects, then writes everything or nothing."""
    del argv
    _check_flags()

    import jax

    from rljax import files
    from rljax.offline import collection, dataset, tables, writers

    with flags.usage_errors():
        tables.optional("pyarrow")  # before anything is played
        tables.optional("h5py")
        out = pathlib.Path(FLAGS.out)
        with files.new_folder(out) as partial:  # before anything is played: is it ours to write?
            cast = _cast()
            parts: list[Episode] = []
            told = []
            if FLAGS.episodes < len(cast):
                raise flags.UsageError(
                    f"--episodes={FLAGS.episodes} must be at least {len(cast)}: --policy="
                    f"{FLAGS.policy} is of as many policies here."
                )
            counts = collection.shares(FLAGS.episodes, len(cast))
            for number, (actor, count) in enumerate(zip(cast, counts, strict=True)):
                collect = collection.collector(actor.agent, _env(number + 1), min(count, _ENVS))
                key = jax.random.fold_in(jax.random.key(FLAGS.seed), number)
                episodes = collect(actor.policy, count, key)
                parts += episodes
                returns = [float(episode.reward.sum()) for episode in episodes]
                told.append(
                    {"policy": actor.name, "episodes": count, "return_mean": sum(returns) / count}
                )
            made = dataset.make(cast[0].agent.spec, parts, str(out))
            writers.write_minari(made, partial, dataset_id=f"{out.name}-v0")
            writers.write_parquet(made, partial / "rows.parquet")
            summary = {
                "env": made.spec.name,
                "policy": FLAGS.policy,
                "seed": FLAGS.seed,
                "episodes": made.num_episodes,
                "steps": made.num_steps,
                "return_mean": float(made.returns().mean()),
                "parts": told,
            }
            (partial / "collection.json").write_text(json.dumps(summary, indent=2) + "\n")
    for part in told:
        print(f"{part['policy']}: {part['episodes']} episodes, return {part['return_mean']:,.1f}")
    print(f"{out}: {made.num_episodes:,} episodes, {made.num_steps:,} steps")
    return 0


def _check_flags() -> None:
    if bool(FLAGS.workdir) == bool(FLAGS.env):
        raise flags.UsageError("give --workdir, that of launch.train, or --env for random actions.")
    if FLAGS.env and FLAGS.policy != "random":
        raise flags.UsageError(f"--policy={FLAGS.policy} needs a --workdir with a trained policy.")
    if not FLAGS.out:
        raise flags.UsageError("--out is missing: the folder to write, e.g. --out=data/cartpole.")
    if pathlib.Path(FLAGS.out).exists():
        raise flags.UsageError(f"--out={FLAGS.out} exists already: give another folder.")


def _cast() -> list[Actor]:
    """Who plays, each an equal part."""
    from rljax.offline import collection

    if FLAGS.policy == "random":
        return [_random()]
    kept = _checkpoints()
    expert = max(kept, key=lambda actor: actor.return_mean)
    if FLAGS.policy == "expert":
        return [expert]
    random = _random()
    wanted = random.return_mean + _MEDIUM * (expert.return_mean - random.return_mean)
    returns = [actor.return_mean for actor in kept]
    medium = kept[collection.nearest(returns, wanted)]
    if medium is expert:
        reached = ", ".join(f"{actor.name}: {actor.return_mean:,.1f}" for actor in kept)
        raise flags.UsageError(
            f"{FLAGS.workdir} keeps no checkpoint near a return of {wanted:,.1f} ({reached}): "
            "train with --keep_checkpoints=20 and a smaller --checkpoint_every."
        )
    return {
        "medium": [medium],
        "mixed": [random, medium, expert],
        "medium-replay": [random, *kept[: collection.until_reached(returns, wanted)]],
        "medium-expert": [medium, expert],
    }[FLAGS.policy]


def _random() -> Actor:
    from agents import random

    env = _env(0)
    agent = random.make(random.Config(), env.spec)
    return _judged("random", agent, ())


def _trained(step: int | str) -> Actor:
    from launch import trained

    run = trained.load(FLAGS.workdir, step)
    return _judged(f"step {run.step}", run.agent, run.policy)


def _checkpoints() -> list[Actor]:
    """All that the workdir keeps, oldest first. Raises UsageError where that is nothing."""
    from launch import experiment
    from rljax import checkpoint

    experiment.load(FLAGS.workdir)
    with checkpoint.Manager(pathlib.Path(FLAGS.workdir) / "checkpoints") as checkpoints:
        steps = checkpoints.steps
    if not steps:
        raise flags.UsageError(f"{FLAGS.workdir} holds no whole checkpoint of launch.train.")
    return [_trained(step) for step in steps]


def _judged(name: str, agent: "Agent", policy: Any) -> Actor:
    """The actor, with what its sampled actions bring in a few episodes."""
    import jax

    from rljax import evaluation

    play = evaluation.player(agent, _env(0), _ENVS, greedy=False)
    score = play(policy, _TRIALS, jax.random.key(FLAGS.seed))
    return Actor(name, agent, policy, float(score.returns.mean()))


def _env(part: int) -> "HostEnv | JaxEnv":
    """Fresh environments, other ones for every part."""
    from launch import experiment, trained
    from rljax import sources

    seed = 1000 * FLAGS.seed + 10 * part
    if FLAGS.env:
        return sources.open(sources.EnvSource(FLAGS.env, _ENVS, seed))
    return trained.fresh_source(experiment.load(FLAGS.workdir), _ENVS, seed)


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
