import dataclasses
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from agents import ppo
from launch import command_line, flags
from rljax import config as configs
from rljax.config import UsageError

ARGUMENTS = ["--env=Acrobot-v1", "--workdir=runs/x"]


def _script(code, *arguments, **kwargs):
    """Runs a script of the given code, whose `main` and parser go through `flags.run`."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


TRAIN = '''"""Trains an agent."""
import sys
from launch import flags
def main(argv):
    experiment = flags.experiment(argv)
    print(experiment.config.learning_rate)
sys.argv[0] = "train"
flags.run(main, flags_parser=flags.parse)
'''


def test_run_ends_in_one_sentence_and_exit_code_2():
    answer = _script(TRAIN, *ARGUMENTS, "--config.lerning_rate=1")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: unknown field --config.lerning_rate; did you mean")
    assert answer.stderr.count("\n") == 1


def test_run_shows_the_trace_with_debug():
    answer = _script(TRAIN, *ARGUMENTS, "--debug", "--seed=x")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "UsageError: --seed=x: should be an int" in answer.stderr


def test_run_runs_main():
    answer = _script(TRAIN, *ARGUMENTS, "--config.learning_rate", "0.5", "--verbosity=0")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "0.5\n", "")


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        ("UsageError('No.')", 2, "error: No.\n"),
        ("OSError(28, 'No space left on device', 'x/y')", 2, "x/y: No space left on device.\n"),
        ("OSError(20, 'Not a directory', 'x/y')", 2, "cannot use x/y: Not a directory.\n"),
        ("PermissionError(13, 'Permission denied')", 2, "error: cannot write: Permission denied."),
        ("PermissionError(13, 'Permission denied', 'x/y')", 2, "error: cannot use x/y"),
        ("KeyboardInterrupt()", 130, "interrupted\n"),
    ],
)
def test_run_answers_what_is_not_a_defect_without_a_trace(raised, code, text):
    script = f"""
from launch import flags
from rljax import config as configs
from rljax.config import UsageError
def main(argv):
    raise {raised}
flags.run(main)
"""
    answer = _script(script)
    assert answer.returncode == code
    assert text in answer.stderr
    assert "Traceback" not in answer.stderr


def test_sigterm_ends_a_script_in_order():
    script = """
import os, signal
from launch import flags
def main(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("put in order")
flags.run(main)
"""
    answer = _script(script)
    assert (answer.returncode, answer.stdout, answer.stderr) == (
        143,
        "put in order\n",
        "terminated\n",
    )


@pytest.mark.parametrize("raised", ["ValueError('a defect')", "FileNotFoundError(2, 'gone')"])
def test_run_lets_defects_through(raised):
    script = f"from launch import flags\ndef main(argv): raise {raised}\nflags.run(main)"
    answer = _script(script)
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr


def test_help_is_short_and_imports_neither_jax_nor_agents():
    check = TRAIN.replace(
        "flags.run(",
        "import atexit\n"
        "atexit.register(lambda: print(sorted({'jax', 'agents'} & set(sys.modules))))\n"
        "flags.run(",
    )
    answer = _script(check, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("Trains an agent.\n")
    assert "--collector=auto  (one of auto, host, envpool_xla, in_graph)" in answer.stdout
    assert "--config.learning_rate" not in answer.stdout
    assert answer.stdout.endswith("[]\n")


def test_helpfull_documents_every_flag_and_every_field():
    answer = _script(TRAIN, "--helpfull", "--env=CartPole-v1")
    assert (answer.returncode, answer.stderr) == (0, "")
    for field in dataclasses.fields(ppo.Config):
        assert configs.comments(ppo.Config)[field.name]
        assert f"config.{field.name}=" in answer.stdout
    for name in flags._RUN:
        assert f"--{name}" in answer.stdout or f"--[no]{name}" in answer.stdout
    assert "--config.gae_lambda=0.8  (a float)\n      λ of GAE, " in answer.stdout  # the preset's
    assert "--config.clip_value=None  (a float or None)" in answer.stdout
    assert "--[no]config.anneal_learning_rate=True  (true or false)" in answer.stdout
    assert "--verbosity" in answer.stdout


SCRIPT = '''"""Plays."""
import functools
from absl import flags as absl_flags
from launch import flags
OWN = absl_flags.FlagValues()
absl_flags.DEFINE_integer("episodes", 3, "How many.", flag_values={values})
def main(argv):
    print(argv[1:], {values}.episodes)
flags.run(main{parser})
'''
GLOBAL = SCRIPT.format(values="absl_flags.FLAGS", parser="")
PRIVATE = SCRIPT.format(
    values="OWN",
    parser=", flags_parser=functools.partial(flags.parse_script, flag_values=OWN)",
)


@pytest.mark.parametrize("script", [GLOBAL, PRIVATE])
def test_other_scripts_get_the_same_quality(script):
    assert _script(script, "--episodes", "5").stdout == "[] 5\n"
    wrong = _script(script, "--episods=5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown flag --episods; did you mean --episodes?")
    assert wrong.stderr.count("\n") == 1
    assert _script(script, "--agent=ppo").returncode == 2  # not a flag of theirs
    typed = _script(script, "--episodes=x")
    assert typed.returncode == 2
    assert typed.stderr.startswith("error: --episodes=x: ")
    helped = _script(script, "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("Plays.\n\nFlags:\n\n  --episodes=3")
    assert "--agent" not in helped.stdout
    assert "--verbosity" not in helped.stdout


def test_parse_script_may_be_called_again():
    own = absl_flags.FlagValues()
    absl_flags.DEFINE_integer("workdir", 3, "", flag_values=own)
    assert command_line.parse_script(["x", "--workdir=4"], own) == ["x"]
    assert own.workdir == 4
    command_line.parse_script(["x"], own)
    assert own.workdir == 3


def test_usage_errors_turns_value_errors_only():
    with pytest.raises(UsageError, match=r"^no such env$"), flags.usage_errors():
        raise ValueError("no such env")
    with pytest.raises(KeyError), flags.usage_errors():
        raise KeyError("x")
