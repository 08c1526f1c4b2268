import subprocess
import sys

import pytest

import agents
from rljax import registry
from rljax.config import UsageError


@pytest.mark.parametrize("name", agents.AGENTS)
def test_every_agent_keeps_the_contract_of_its_module(name):
    module = registry.agent_module(name)
    module.validate(module.Config())
    assert callable(module.make)
    assert callable(module.loop)


def test_names_are_those_of_the_table():
    assert registry.agent_names() == tuple(agents.AGENTS)


def test_unknown_agent_names_the_nearest_and_the_known(monkeypatch):
    monkeypatch.setattr(agents, "AGENTS", {"ppo": "agents.ppo", "sac": "agents.sac"})
    with pytest.raises(UsageError) as error:
        registry.agent_module("poo")
    assert str(error.value) == "unknown agent 'poo'; did you mean ppo? Known: ppo, sac."


def test_only_the_asked_for_module_is_imported(monkeypatch):
    monkeypatch.setattr(agents, "AGENTS", {"math": "math", "broken": "no.such.module"})
    assert registry.agent_module("math").pi > 3


def test_names_alone_import_no_agent():
    code = (
        "import sys; from rljax import registry; registry.agent_names(); "
        "assert not {'jax', 'agents.ppo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
