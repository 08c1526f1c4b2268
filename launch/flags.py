"""The flags of `launch.train`, from absl flags to a frozen Experiment.

    --env=... --seed=...           the run: `_RUN`, below
    --config.<field>=value         the agent: one flag a field of its Config, typed as the field is,
                                   starting from the preset; made by ml_collections once the agent
                                   and the preset are known

What all scripts share is in `launch.command_line`. No JAX is imported before an agent's config is
needed, so `--help` answers at once.
"""

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from absl import flags as absl_flags
from ml_collections import config_flags

from launch import actors, command_line, fine_tuning, graph, presets
from launch.command_line import parse_script, run, usage_errors
from launch.experiment import Collector, Experiment, Parallel
from rljax import config as configs
from rljax import registry, validation
from rljax.config import UsageError, nearest
from rljax.metrics.progress import Progress
from rljax.metrics.writers import Logging, Sink

if TYPE_CHECKING:
    from rljax.distributed import Cluster

__all__ = ["UsageError", "cluster", "experiment", "parse", "parse_script", "run", "usage_errors"]

NO_PRESET = "none"
_ENV_SEEDS = 2**30  # environments take seeds of 32 bits; half are left to evaluation


class _Parser(absl_flags.ArgumentParser):
    """Reads one value of a field's type, as `rljax.config.from_text` does."""

    def __init__(self, hint: Any, minimum: int | None = None) -> None:
        self.hint = hint
        self.minimum = minimum
        self.syntactic_help = configs.describe(hint)

    def parse(self, argument: Any) -> Any:
        """The value of a text; values (absl passes defaults through here) stay as they are."""
        if not isinstance(argument, str):
            return argument
        value = configs.from_text(self.hint, argument)
        if None not in (value, self.minimum) and value < self.minimum:
            raise UsageError(f"should be at least {self.minimum}.")
        return value


_RUN = absl_flags.FlagValues()  # not absl's own: the other scripts import this module too


def _define(name: str, hint: Any, default: Any, comment: str, minimum: int | None = None) -> None:
    absl_flags.DEFINE(_Parser(hint, minimum), name, default, comment, _RUN)


_define("agent", str, "ppo", "The algorithm; its fields are the flags --config.<field>.")
_define("env", str, None, "CartPole-v1, envpool:Pong-v5, gymnasium:Ant-v5, rljax:cartpole, ...")
_define("dataset", str, None, "What bc, iql, cql, ... learn from; --env is then evaluated in.")
_define("expert", str, None, "Workdir of the policy that dagger asks what it would have done.")
_define("env_options", str, None, 'As JSON: {"max_episode_steps": 200}; default: of the preset.')
_define("preset", str, None, "Tuned config to start from; default: that of --env; none: no preset.")
_define("seed", int, 0, "Of parameters, environments and actions.", 0)
_define("num_seeds", int, 1, "Runs side by side in one program, with seeds from --seed on.", 1)
_define(
    "vary",
    str,
    "",
    "Runs with every combination: 'learning_rate:1e-3,3e-4;entropy_cost:0,0.01'.",
)
_define("workdir", str, None, "Where everything lands, and from where the same command resumes.")
_define("parallel", Parallel, Parallel.SHARD_MAP, "How an update is spread over devices.")
_define("num_devices", int, 0, "Devices that learn; 0: all of this process.", 0)
_define("collector", Collector, Collector.AUTO, "Who steps the environments; auto: the fastest.")
_define("num_threads", int, 0, "EnvPool's threads; 0: one per core.", 0)
_define("checkpoint_every", int | None, None, "Rows; 0: at the end only; default: a tenth.", 0)
_define("keep_checkpoints", int, 2, "How many of the last are kept, besides the best.", 1)
_define("eval_every", int | None, None, "Rows; 0: at the end only; default: a tenth.", 0)
_define("eval_episodes", int, 10, "Episodes per evaluation; 0: none.", 0)
_define(
    "log_every",
    int | None,
    None,
    "Updates between two lines of metrics; default: 1; in the graph a hundredth of the run.",
    1,
)
_define("writers", tuple[Sink, ...], (Sink.JSONL,), "Where metrics go, besides metrics.jsonl.")
_define("wandb_project", str, "rljax", "The project in Weights & Biases, with --writers=wandb.")
absl_flags.DEFINE_bool(
    "distributed", False, "Join the other processes of this run; each is started alike.", _RUN
)
_define("coordinator_address", str, None, "host:port of process 0, where no cluster tells it.")
_define("num_processes", int, None, "Of the run, likewise.", 1)
_define("process_id", int, None, "Which one this is, from 0, likewise.", 0)
_define("join_timeout", int, 300, "Seconds for all processes to have joined.", 1)
_define("peer_timeout", int, 60, "Seconds of silence after which a process counts as lost.", 1)
_define("progress", Progress, Progress.AUTO, "auto: a bar on a terminal, lines elsewhere.")

for _name, (_hint, _help, _minimum) in (actors.FLAGS | fine_tuning.FLAGS).items():
    _define(_name, _hint, None, _help, _minimum)

_CLUSTER = ("coordinator_address", "num_processes", "process_id", "join_timeout", "peer_timeout")


def parse(argv: list[str]) -> list[str]:
    """For `run(main, flags_parser=parse)`: answers --help and absl's own flags.

    Returns `argv` as it is, for `experiment`.
    """
    own = command_line.defined(_RUN)
    if command_line.wants_help(argv):
        command_line.print_help(own, "And --config.<field>=value for every field of the agent.")
        sys.exit(0)
    if command_line.wants_full_help(argv):
        values = command_line.merged(_RUN)
        command_line.parse_known(values, [arg for arg in argv if "-helpfull" not in arg])
        config, preset = _starting_config(values)
        note = f"Fields of --agent={values.agent}, with the values of --preset={preset}:"
        fields = [flag for flag in command_line.defined(_define_config(config)) if "." in flag.name]
        command_line.print_help(own, note, fields, absl_too=True)
        sys.exit(0)
    command_line.parse_known(absl_flags.FLAGS, argv)
    return argv


def experiment(argv: list[str]) -> Experiment:
    """The run that a whole command line, `argv[0]` included, asks for; may be called again.

    Raises:
        UsageError: an unknown flag, agent, preset or field, or a value that cannot be; one sentence
            that names what would be right.
    """
    values = command_line.merged(_RUN)
    command_line.parse_known(values, argv)
    preset_config, preset = _starting_config(values)
    fields = _define_config(preset_config)
    values.append_flag_values(fields)
    command_line.parse(values, argv, suggested=[*_RUN, *fields])
    _check_source(values, preset_config)
    if not values.workdir:
        raise UsageError("--workdir is missing: where the run is kept, e.g. --workdir=runs/first.")
    if values.seed >= 2**31:
        raise UsageError(f"--seed must be less than {2**31}, not {values.seed}.")
    config = _frozen(preset_config, values["config"].value)
    with usage_errors():
        validation.numbers(config)
        registry.agent_module(values.agent).validate(config)
        graph.check_values(values.agent, config, graph.vary(values.vary))
    return _experiment(values, config, preset)


def cluster(argv: list[str]) -> "Cluster | None":
    """The processes that `argv` asks to be one of; None without --distributed.

    Where a run goes on is no part of what it is: none of this is kept with the experiment.

    Raises:
        UsageError: they are not given together, or cannot be.
    """
    from rljax.distributed import Cluster  # imports JAX

    values = command_line.merged(_RUN)
    command_line.parse_known(values, argv)
    if not values.distributed:
        for name in _CLUSTER:
            if values[name].present:
                raise UsageError(f"--{name} is of runs with several processes: add --distributed.")
        return None
    with usage_errors():
        return Cluster(
            values.coordinator_address,
            values.num_processes,
            values.process_id,
            join_timeout_seconds=values.join_timeout,
            peer_timeout_seconds=float(values.peer_timeout),
        )


def _experiment(values: Any, config: Any, preset: str) -> Experiment:
    from rljax.sources import EnvSource  # imports JAX

    online = fine_tuning.read(values)
    if online.init_from:
        length, num_envs = online.steps, online.envs
    elif values.dataset:
        length, num_envs = config.total_updates, 1
    else:
        length, num_envs = config.total_steps, config.num_envs
    tenth = length // 10
    return Experiment(
        source=EnvSource(
            name=values.env or "",
            num_envs=num_envs,
            # environment i gets seed + i: strides keep the runs of other seeds from sharing any
            seed=values.seed * num_envs % _ENV_SEEDS,
            num_threads=values.num_threads,
            options=_options(values, preset),
        ),
        agent=values.agent,
        config=config,
        preset=preset,
        seed=values.seed,
        workdir=os.path.expanduser(values.workdir),
        parallel=values.parallel,
        num_devices=values.num_devices,
        collector=values.collector,
        checkpoint_every=tenth if values.checkpoint_every is None else values.checkpoint_every,
        eval_every=tenth if values.eval_every is None else values.eval_every,
        eval_episodes=values.eval_episodes if values.env else 0,
        log_every=values.log_every,
        # metrics.jsonl always: results and learning curves are read from it
        logging=Logging(
            tuple(dict.fromkeys((Sink.JSONL, *values.writers))),
            values.wandb_project,
            values.progress,
        ),
        actors=actors.read(values),
        num_seeds=values.num_seeds,
        vary=graph.vary(values.vary),
        keep_checkpoints=values.keep_checkpoints,
        dataset=os.path.expanduser(values.dataset or ""),
        expert=os.path.expanduser(values.expert or ""),
        online=online,
    )


def _check_source(values: Any, config: Any) -> None:
    """Raises UsageError unless the run has what its agent learns from: a task, or a dataset."""
    _check_expert(values, config)
    learns_offline = hasattr(config, "total_updates")
    if learns_offline and not values.dataset:
        raise UsageError(
            f"--dataset is missing: {values.agent} learns from what was logged or collected; "
            "--env is only where it is evaluated."
        )
    if values.dataset and not learns_offline:
        raise UsageError(
            f"--agent={values.agent} learns by acting, not from a --dataset: give an --env, or "
            "another --agent, such as iql or cql."
        )
    plays = values["eval_episodes"].present and values.eval_episodes
    if values.dataset and not values.env and plays:
        raise UsageError("--eval_episodes needs an --env to play them in.")
    if not values.dataset and not values.env:
        known = ", ".join(presets.load(values.agent))
        raise UsageError(f"--env is missing; there are presets for {known}, but any task will do.")


def _check_expert(values: Any, config: Any) -> None:
    """Raises UsageError unless there is an expert where, and only where, the agent asks one."""
    asks = hasattr(config, "beta_schedule")
    if asks and not values.expert:
        raise UsageError(
            f"--expert is missing: {values.agent} asks a trained policy what it would have done; "
            "give the workdir that it was trained in."
        )
    if values.expert and not asks:
        raise UsageError(f"--agent={values.agent} asks no --expert: leave it out, or use dagger.")


def _starting_config(values: Any) -> tuple[Any, str]:
    """The config that --config.<field> changes, and the name of its preset."""
    if values.init_from:
        return fine_tuning.starting_config(values), NO_PRESET
    module = registry.agent_module(values.agent)
    known = presets.load(values.agent)
    env = values.env or ""
    if values.preset is None:  # envpool:CartPole-v1 is the same task as CartPole-v1
        name = next((name for name in (env, env.partition(":")[2]) if name in known), NO_PRESET)
    else:
        name = values.preset
    if name == NO_PRESET:
        return module.Config(), name
    if name not in known:
        raise UsageError(f"unknown preset {name!r}; {nearest(name, [*known, NO_PRESET])}")
    return known[name].config, name


def _define_config(config: Any) -> absl_flags.FlagValues:
    """Flags "config.<field>" for every field, nested ones included, and "config" for the whole."""
    paths = _paths(config)
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_dataclass(
        "config",
        _twin(config),
        flag_values=values,
        sys_argv=[f"--config.{path}" for path in paths],  # it makes flags for the fields it sees
        parse_fn=_refuse_whole,
    )
    for path, comment in paths.items():
        flag = values[f"config.{path}"]
        flag.help = comment
        if flag.boolean:
            flag.parser = _Parser(bool)
    return values


def _paths(config: Any, prefix: str = "") -> dict[str, str]:
    """Path of each field, "optimizer.learning_rate" -> its comment."""
    paths: dict[str, str] = {}
    for name, comment in configs.comments(type(config)).items():
        value = getattr(config, name)
        nested = dataclasses.is_dataclass(value)
        paths |= _paths(value, f"{prefix}{name}.") if nested else {prefix + name: comment}
    return paths


def _twin(config: Any) -> Any:
    """A mutable copy whose annotations are parsers, as ml_collections assigns to its fields.

    Its own parsers know neither None nor the types of a tuple's items. A bool it must see as such,
    or there would be no --noconfig.x.
    """
    fields = []
    for name, hint in configs.type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = _twin(value)
            hint = type(value)
        elif hint is not bool:
            parser = _Parser(hint)
            hint = config_flags.register_flag_parser_for_type(cast(Any, parser), parser)
        fields.append((name, hint, dataclasses.field(default_factory=lambda value=value: value)))
    return dataclasses.make_dataclass(type(config).__name__, fields)()


def _refuse_whole(text: str) -> Any:
    raise UsageError("only its fields can be set, --config.<field>=value.")


def _frozen(config: Any, twin: Any) -> Any:
    """The config with the values of its twin."""
    changed = {}
    for field in dataclasses.fields(config):
        old, new = getattr(config, field.name), getattr(twin, field.name)
        changed[field.name] = _frozen(old, new) if dataclasses.is_dataclass(old) else new
    return dataclasses.replace(config, **changed)


def _options(values: Any, preset: str) -> tuple[tuple[str, object], ...]:
    """--env_options or else the preset's, in the hashable form of `EnvSource.options`."""
    text = values.env_options
    if text is None:
        return () if preset == NO_PRESET else presets.load(values.agent)[preset].env_options
    try:
        options = json.loads(text)
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        raise UsageError(
            '--env_options should be a JSON object such as {"max_episode_steps": 200}, '
            f"got {text!r}."
        )
    return configs.from_json(_Options, {"options": sorted(map(list, options.items()))}).options


@dataclasses.dataclass(frozen=True)
class _Options:
    options: tuple[tuple[str, object], ...]
