"""From an agent's name to its module, imported only when asked for.

The table is `agents.AGENTS`. It is looked up by name at run time, because this package imports none
of those above it.
"""

import importlib
from types import ModuleType

from rljax.config import UsageError, nearest


def agent_names() -> tuple[str, ...]:
    """The names that `--agent` takes; imports no agent."""
    return tuple(importlib.import_module("agents").AGENTS)


def agent_module(name: str) -> ModuleType:
    """The module of one agent, with its `Config`, `validate`, `loop` and `make`; imports no other.

    Raises:
        UsageError: no agent has this name; lists those that there are.
    """
    table = importlib.import_module("agents").AGENTS
    if name not in table:
        raise UsageError(f"unknown agent {name!r}; {nearest(name, table)}")
    return importlib.import_module(table[name])
