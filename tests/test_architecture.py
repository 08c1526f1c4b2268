"""What holds for the whole of the code: layers, lengths, names, registries, presets, the lock."""

import ast
import dataclasses
import importlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rljax
from agents import AGENTS
from launch import presets
from rljax import config, returns, sources
from rljax.types import Box, EnvSpec

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("rljax", "agents", "worldmodels", "rlhf", "serving", "launch")
ELSEWHERE = {"bench", "gymnax", "brax", "playground", "navix"}  # extras that the lock is without
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
CODE = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
TEXTS = [
    *CODE,
    *(path for path in ROOT.iterdir() if path.is_file()),
    *(path for folder in ("docs", ".ci") for path in (ROOT / folder).rglob("*") if path.is_file()),
]
ENV = re.compile(r"--env=(\S+)")
PRESETS = {  # by what is built of them: many datasets share a config
    (agent, preset.config, *ENV.findall(preset.command)): (agent, name)
    for agent in AGENTS
    for name, preset in presets.load(agent).items()
}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def test_imports_flow_in_one_direction():
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    lint = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_our_packages_lie_side_by_side(name):  # other distributions install an `agents`, too
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).parent.parent == pathlib.Path(rljax.__file__).parent.parent


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_a_file_has_one_subject(path):
    assert len(path.read_text().splitlines()) <= 420, "two subjects? split it along them"
    assert path.stem not in {"utils", "helpers", "common", "misc"}, "name it by what it holds"


def test_tensorflow_is_imported_on_top_by_the_export_only():
    def imports_tensorflow(statement):
        match statement:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case _:
                modules = []
        return any(module.split(".")[0].startswith("tensorflow") for module in modules)

    importers = {
        relative(path)
        for path in MODULES
        if any(imports_tensorflow(statement) for statement in ast.parse(path.read_text()).body)
    }
    assert importers <= {"serving/export.py", "serving/tf_ops.py", "serving/verify.py"}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_is_complete(name):
    module = importlib.import_module(AGENTS[name])
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    module.validate(module.Config())  # the defaults work
    assert callable(module.make)
    assert callable(module.loop)


@pytest.mark.parametrize(("agent", "name"), PRESETS.values())
def test_every_preset_builds_and_survives_json(agent, name, key):
    module = importlib.import_module(AGENTS[agent])
    preset = presets.load(agent)[name]
    module.validate(preset.config)
    text = json.dumps(config.to_json(preset.config))
    assert config.from_json(module.Config, json.loads(text)) == preset.config
    found = ENV.findall(preset.command)
    assert found == [name] or f"--preset={name}" in preset.command
    spec = EnvSpec("maze", (29,), "float32", Box((-1.0,) * 8, (1.0,) * 8))  # no simulator of ours
    for env in found:
        spec = sources.open(sources.EnvSource(env, num_envs=1)).spec
    jax.eval_shape(module.make(preset.config, spec).init, key)


def test_presets_are_of_agents_that_exist():
    files = {path.stem for path in (ROOT / "launch" / "presets").glob("*.py")}
    assert files - {"__init__"} <= AGENTS.keys()


def test_shapes_are_checked_while_testing():
    with pytest.raises(jaxtyping.TypeCheckError):
        returns.gae(*[jnp.zeros(3)] * 7)  # [T] where [T, B] is due


def test_no_file_names_a_machine_or_a_package_index():
    private = re.compile(
        r"(?<![\w.~-])/(?:work|root|tmp)/|\bpypi\.org|/simple/?\b|--(extra-)?index"
    )
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in TEXTS
        if path.name != "test_architecture.py" and path.suffix not in {".png", ".gif"}
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if private.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_changelog_knows_this_version():
    assert rljax.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "WORKSPACE_NOTES.md", "LICENSE"])
def test_a_newcomer_finds(name):
    assert (ROOT / name).read_text().strip()


def test_the_lock_pins_what_the_project_asks_for():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^*]+", str(pin.specifier)), line
            pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    extras = PROJECT["project"]["optional-dependencies"]
    asked = PROJECT["project"]["dependencies"] + [
        line for extra, lines in extras.items() if extra not in ELSEWHERE for line in lines
    ]
    for requirement in map(Requirement, asked):
        if requirement.name != "rljax":
            version = pins.get(canonicalize_name(requirement.name), "nothing")
            assert requirement.specifier.contains(version), f"{requirement}: {version}; `make lock`"
    assert not [name for name in pins if name.startswith(("nvidia", "triton", "torch"))]
