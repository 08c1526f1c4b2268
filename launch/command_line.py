"""What every script does at its border: parse absl flags, print help, fail in one sentence.

    if __name__ == "__main__":
        flags.run(main)

Bad input, raised as UsageError, and a disk that is full or not ours to write, end in one sentence
on stderr and exit code 2; Ctrl-C in 130, SIGTERM in 143. `--debug` shows the trace instead.
"""

import contextlib
import enum
import errno
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

from absl import app
from absl import flags as absl_flags

from rljax.config import UsageError, nearest

FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_bool("debug", False, "Show the trace of an error instead of one sentence.")

_HELP = {"--help", "-help", "-h", "-?", "--helpshort", "-helpshort"}
_FULL_HELP = {"--helpfull", "-helpfull"}
_DEBUG = {"--debug", "-debug", "--debug=true", "--debug=True", "--debug=1"}
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)


def run(
    main: Callable[[list[str]], Any],
    *,
    flags_parser: Callable[[list[str]], list[str]] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Runs `main` as `absl.app.run` does and exits with its code; see the module for errors.

    Args:
        main: gets what `flags_parser` returns.
        flags_parser: default: `parse_script`.
        argv: default: `sys.argv`.
    """
    argv = sys.argv if argv is None else argv
    try:
        with _ending_in_order():
            app.run(main, argv, flags_parser=flags_parser or parse_script)
    except (UsageError, OSError, KeyboardInterrupt) as error:
        if _DEBUG & set(argv):
            raise
        if isinstance(error, _Terminated):
            _fail("terminated", 128 + signal.SIGTERM)
        if isinstance(error, KeyboardInterrupt):
            _fail("interrupted", 130)
        if isinstance(error, UsageError):
            _fail(f"error: {error}", 2)
        if error.errno in _NOT_WRITABLE:
            where = f"cannot use {error.filename}" if error.filename else "cannot write"
            _fail(f"error: {where}: {error.strerror}.", 2)
        raise


def parse_script(argv: list[str], flag_values: absl_flags.FlagValues = FLAGS) -> list[str]:
    """Parses the flags of a script and answers its --help and --helpfull.

    Args:
        argv: with the program's name.
        flag_values: the script's flags. With a `FlagValues` of its own, a script can be imported
            beside others that use the same names.

    Returns:
        `[program]`.

    Raises:
        UsageError: unknown flag, wrong value, or an argument that is no flag.
    """
    if wants_help(argv) or wants_full_help(argv):
        print_help(defined(flag_values), absl_too=wants_full_help(argv))
        sys.exit(0)
    if flag_values is FLAGS:
        return parse(FLAGS, argv, suggested=[flag.name for flag in defined(FLAGS)])
    parse(merged(flag_values), argv, suggested=list(flag_values))
    flag_values.mark_as_parsed()
    return argv[:1]


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors from within about what the user asked for into UsageErrors.

    A ValueError: it cannot be; an ImportError: it needs a package that is not installed.
    """
    try:
        yield
    except UsageError:
        raise
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error


def wants_help(argv: list[str]) -> bool:
    """Whether --help, in any of its spellings, is asked for."""
    return bool(_HELP & set(argv))


def wants_full_help(argv: list[str]) -> bool:
    """Whether --helpfull is asked for."""
    return bool(_FULL_HELP & set(argv))


def merged(flag_values: absl_flags.FlagValues) -> absl_flags.FlagValues:
    """The flags of a script, back at their defaults, with absl's and --debug.

    The flags themselves are shared, not copied: `flag_values` holds what is parsed here.
    """
    values = absl_flags.FlagValues()
    for flag in _of_absl():
        values[flag.name] = flag
    values["debug"] = FLAGS["debug"]
    for flag in defined(flag_values):
        flag.unparse()
    values.append_flag_values(flag_values)
    return values


def parse_known(values: absl_flags.FlagValues, argv: list[str]) -> None:
    """Parses the flags that are known, and leaves the others for later."""
    with _absl_errors():
        values.set_gnu_getopt(True)
        values(argv, known_only=True)
    _keep_libraries_quiet()


def parse(values: absl_flags.FlagValues, argv: list[str], suggested: Collection[str]) -> list[str]:
    """Parses all of `argv`; raises UsageError, naming the nearest of `suggested`."""
    with _absl_errors():
        values.set_gnu_getopt(True)
        try:
            rest = values(argv)
        except absl_flags.UnrecognizedFlagError as error:
            raise UsageError(_unknown(error.flagname, suggested)) from None
    if rest[1:]:
        raise UsageError(
            f"unexpected argument {rest[1]!r}: every argument is a flag, --name=value."
        )
    FLAGS.mark_as_parsed()
    _keep_libraries_quiet()
    return rest


def print_help(
    flags: Iterable[absl_flags.Flag],
    note: str = "",
    more: Iterable[absl_flags.Flag] = (),
    *,
    absl_too: bool = False,
) -> None:
    """Prints the script's docstring, its flags, `note`, `more` flags, and those of absl."""
    print((sys.modules["__main__"].__doc__ or "").strip())
    print("\nFlags:\n")
    for flag in [*flags, FLAGS["debug"]]:
        print(_describe(flag))
    if note:
        print(f"\n{note}")
    for index, flag in enumerate(more):
        print(("" if index else "\n") + _describe(flag))
    if absl_too:
        print("\nFlags of absl:\n")
        for flag in sorted(_of_absl(), key=lambda flag: flag.name):
            print(_describe(flag))
    else:
        print("\n--helpfull tells all, absl's own flags included.")


def defined(flag_values: absl_flags.FlagValues) -> list[absl_flags.Flag]:
    """A script's own flags as they were defined, without absl's and --debug."""
    if flag_values is not FLAGS:
        return [flag_values[name] for name in flag_values]
    by_module = FLAGS.flags_by_module_dict().items()
    foreign = {id(flag) for module, flags in by_module if _is_absl(module) for flag in flags}
    own = (FLAGS[name] for name in FLAGS if name != "debug")
    return [flag for flag in own if id(flag) not in foreign]


def _is_absl(module: str) -> bool:
    return module.partition(".")[0] == "absl"


def _of_absl() -> list[absl_flags.Flag]:
    by_module = FLAGS.flags_by_module_dict().items()
    return [flag for module, flags in by_module if _is_absl(module) for flag in flags]


def _describe(flag: absl_flags.Flag) -> str:
    """A flag as help shows it: name, default and type, and the text below."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    kind = f"  ({flag.parser.syntactic_help})" if flag.parser.syntactic_help else ""
    unset = flag.default is None and "None" not in kind
    default = "" if unset else f"={_show(flag.default)}"
    text = textwrap.fill(flag.help or "", 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {name}{default}{kind}" + (f"\n{text}" if text.strip() else "")


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_show, value))
    return str(value.value if isinstance(value, enum.Enum) else value)


@contextlib.contextmanager
def _absl_errors() -> Iterator[None]:
    """Turns what absl raises at a wrong command line into UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (absl_flags.Error, ValueError) as error:
        raise UsageError(str(error).removeprefix("flag ")) from error


def _unknown(name: str, suggested: Collection[str]) -> str:
    """The sentence about a flag that does not exist; `suggested` holds "config.<field>" too."""
    fields = {flag.removeprefix("config.") for flag in suggested if flag.startswith("config.")}
    _, dot, field = name.partition("config.")
    if dot:
        return f"unknown field --{name}; {nearest(field, fields, '--config.')}"
    if name in fields:
        return f"unknown flag --{name}; did you mean --config.{name}?"
    flags = [flag for flag in suggested if flag.partition(".")[0] != "config"]
    return f"unknown flag --{name}; {nearest(name, flags, '--')}"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that nothing half-written and no child stays behind.

    A second one acts as always.
    """

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        signal.signal(signal.SIGTERM, before)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, handle) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keep_libraries_quiet() -> None:
    """Warnings only, unless --verbosity says otherwise; app.run would let INFO lines through."""
    if FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = -1


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
