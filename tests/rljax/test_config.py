import dataclasses
import enum
import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from rljax import config
from rljax.config import UsageError


class Color(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float


@dataclasses.dataclass(frozen=True)
class Square:
    side: int


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int  # the only field without a default
    rate: float = 3e-4  # of learning
    anneal: bool = True
    clip: float | None = None
    sizes: tuple[int, ...] = (64, 64)
    window: tuple[int, float] = (2, 0.5)
    color: Color = Color.RED
    name: str = "a # b"  # quoted: no comment
    shape: Circle | Square = Circle(1.0)
    inner: Circle = Circle(2.0)  # nested
    options: tuple[tuple[str, object], ...] = ()


CHANGED = Config(
    steps=7,
    rate=-math.inf,
    anneal=False,
    clip=0.25,
    sizes=(),
    window=(3, 1.0),
    color=Color.DARK_BLUE,
    name="é",
    shape=Square(4),
    inner=Circle(3.0),
    options=(("frame", (84, 84)), ("gray", True)),
)


@pytest.mark.parametrize("original", [Config(steps=1), CHANGED])
def test_json_round_trip_gives_the_same_config(original):
    text = json.dumps(config.to_json(original), allow_nan=False)  # strict JSON, infinities too
    assert config.from_json(Config, json.loads(text)) == original


def test_json_holds_enums_by_value_and_tuples_as_lists():
    data = config.to_json(CHANGED)
    assert data["color"] == "dark blue"
    assert data["window"] == [3, 1.0]
    assert data["shape"] == {"side": 4}
    assert data["rate"] == "-inf"
    assert data["options"] == [["frame", [84, 84]], ["gray", True]]


def test_missing_fields_take_their_defaults_and_ints_become_floats():
    read = config.from_json(Config, {"steps": 1, "rate": 1})
    assert read == Config(steps=1, rate=1.0)
    assert type(read.rate) is float


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "raet": 1.0}, "raet is no known field; did you mean rate?"),
        ({}, "steps is missing; it should be an int."),
        ({"steps": 8.0}, "steps should be an int, got 8.0."),
        ({"steps": True}, "steps should be an int, got true."),
        ({"steps": 1, "rate": "fast"}, 'rate should be a float, got "fast".'),
        ({"steps": 1, "anneal": 1}, "anneal should be true or false, got 1."),
        ({"steps": 1, "clip": "x"}, 'clip should be a float or None, got "x".'),
        ({"steps": 1, "sizes": [1, "2"]}, 'sizes should be an int, got "2".'),
        ({"steps": 1, "window": [1]}, "window should be a tuple of 2: an int, a float, got [1]."),
        ({"steps": 1, "color": "blue"}, 'color should be one of red, dark blue, got "blue".'),
        ({"steps": 1, "inner": {"radius": None}}, "inner.radius should be a float, got null."),
        ({"steps": 1, "inner": {"radios": 1}}, "inner.radios is no known field; did you mean"),
        ({"steps": 1, "inner": 3}, "inner should be an object with radius, got 3."),
    ],
)
def test_wrong_json_is_refused_in_one_sentence_with_the_field(data, message):
    with pytest.raises(UsageError) as error:
        config.from_json(Config, data)
    assert str(error.value).startswith(message)


def test_names_resolve_annotations_that_the_module_does_not_know():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        held: "Unknown"  # noqa: F821

    data = {"held": {"radius": 1.5}}
    assert config.from_json(Holder, data, {"Unknown": Circle}) == Holder(Circle(1.5))


def test_what_is_no_json_is_refused_when_written():
    with pytest.raises(TypeError, match=r"Config\.rate .* float32"):
        config.to_json(Config(steps=1, rate=np.float32(1.0)))


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "1_000", 1000),
        (int, "1e6", 1_000_000),
        (float, "1", 1.0),
        (float, "-inf", -math.inf),
        (bool, "False", False),
        (str, "1", "1"),
        (float | None, "None", None),
        (float | None, "0.5", 0.5),
        (tuple[int, ...], "128,64", (128, 64)),
        (tuple[int, ...], "(128, 64)", (128, 64)),
        (tuple[int, ...], "[128]", (128,)),
        (tuple[int, ...], "128,", (128,)),
        (tuple[int, ...], "()", ()),
        (tuple[int, ...], "", ()),
        (tuple[int, float], "1,2", (1, 2.0)),
        (tuple[Color, ...], "red,DARK_BLUE", (Color.RED, Color.DARK_BLUE)),
        (tuple[tuple[int, int], ...], "((8, 4), (4, 2))", ((8, 4), (4, 2))),
        (tuple[int, ...] | None, "none", None),
        (Color, "Dark Blue", Color.DARK_BLUE),
        (Color, "dark_blue", Color.DARK_BLUE),
    ],
)
def test_text_is_read_by_the_type_of_its_field(hint, text, value):
    read = config.from_text(hint, text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("hint", "text", "right"),
    [
        (int, "8.5", "an int"),
        (int, "", "an int"),
        (int, "inf", "an int"),
        (float, "fast", "a float"),
        (bool, "maybe", "true or false"),
        (Color, "green", "one of red, dark blue"),
        (float | None, "no", "a float or None"),
        (tuple[int, ...], "a,b", "a tuple, each item an int"),
        (tuple[int, ...], "1.5", "a tuple, each item an int"),
        (tuple[int, float], "1", "a tuple of 2: an int, a float"),
        (tuple[tuple[int, int], ...], "8,4", "a tuple, each item a tuple of 2"),
    ],
)
def test_text_of_another_type_is_refused_saying_what_is_right(hint, text, right):
    with pytest.raises(UsageError) as error:
        config.from_text(hint, text)
    assert str(error.value).startswith(f"should be {right}")
    assert str(error.value).endswith(f"got {text!r}.")


def test_hash_depends_on_values_only():
    @dataclasses.dataclass(frozen=True)
    class Forth:
        a: int = 1
        b: float = 2.0

    @dataclasses.dataclass(frozen=True)
    class Back:
        b: float = 2  # equal to 2.0
        a: int = 1

    # Canonical JSON: sorted, no spaces, whole floats as ints.
    expected = hashlib.sha256(b'{"a":1,"b":2}').hexdigest()
    assert config.stable_hash(Forth()) == config.stable_hash(Back()) == expected
    assert config.stable_hash(Forth(b=2.5)) != expected


def test_diff_has_a_line_for_each_change_addition_and_removal():
    assert config.diff(CHANGED, CHANGED) == []
    new = dataclasses.replace(CHANGED, rate=1e-3, sizes=(1,), inner=Circle(9.0))
    assert config.diff(CHANGED, new) == [
        'rate: "-inf" -> 0.001',
        "sizes: [] -> [1]",
        "inner.radius: 3.0 -> 9.0",
    ]
    assert config.diff({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "d": None}) == [
        "a: 1 -> absent",
        "d: absent -> null",
    ]


def test_nearest_names_the_likeliest_and_lists_a_few():
    assert config.nearest("PPO2", ["sac", "ppo"]) == "did you mean ppo? Known: ppo, sac."
    assert config.nearest("zzz", ["sac", "ppo"]) == "known: ppo, sac."
    assert config.nearest("zzz", []) == "known: none."
    many = [f"env{i:02}" for i in range(40)]
    assert config.nearest("env7", many, "--") == "did you mean --env37 or --env27?"
    assert config.nearest("zzz", many).endswith("env28, env29 and 10 more.")


def test_comments_are_those_behind_the_fields():
    assert config.comments(Config) == {
        "steps": "the only field without a default",
        "rate": "of learning",
        "anneal": "",
        "clip": "",
        "sizes": "",
        "window": "",
        "color": "",
        "name": "quoted: no comment",
        "shape": "",
        "inner": "nested",
        "options": "",
    }


def test_hash_is_the_same_in_another_process_and_no_jax_is_imported():
    code = (
        "import sys; from rljax import config, registry; from launch import flags, presets; "
        "from rljax.metrics.writers import Logging; "
        "assert not {'jax', 'agents', 'tensorflow'} & set(sys.modules); "
        "print(config.stable_hash(Logging()))"
    )
    from rljax.metrics.writers import Logging

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == config.stable_hash(Logging())
