"""Arguments against parameters: from JSON, and from the words of a command line."""

import enum
import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.parameters import LoadError, Parameters


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    x: int
    y: int = 0


async def main(
    s: str = "a",
    n: int = 1,
    f: float = 0.5,
    flag: bool = False,
    maybe: int | None = None,
    many: list[int] = [],  # noqa: B006
    unique: frozenset[str] = frozenset(),
    either: str | list[str] = "x",
    level: Literal["low", "high"] = "low",
    number: Literal[1, 2] = 1,
    colour: Colour = Colour.RED,
    point: Point | None = None,
    table: dict[str, int] = {},  # noqa: B006
    counts: dict[int, int] = {},  # noqa: B006
    anything: Any = None,
    untyped=7,  # type: ignore[no-untyped-def]
    small: Annotated[int, msgspec.Meta(ge=0, le=9)] = 3,
) -> None: ...


PARAMETERS = Parameters(main)


def text(**words: Any) -> Any:
    """The one bound value."""
    (value,) = PARAMETERS.bind(words, text=True).values()
    return value


def why(args: dict[str, Any], *, text: bool) -> str:
    with pytest.raises(LoadError) as caught:
        PARAMETERS.bind(args, text=text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ({"s": "4"}, "4"),
        ({"s": "null"}, "null"),
        ({"n": "-4"}, -4),
        ({"f": "1e3"}, 1000.0),
        ({"f": "2"}, 2.0),
        ({"flag": True}, True),
        ({"flag": "true"}, True),
        ({"flag": "False"}, False),
        ({"flag": "0"}, False),
        ({"maybe": "4"}, 4),
        ({"maybe": "null"}, None),
        ({"many": "4"}, [4]),
        ({"many": ["4", "5"]}, [4, 5]),
        ({"many": "[4, 5]"}, [4, 5]),
        ({"unique": ["a", "b", "a"]}, frozenset("ab")),
        ({"either": "[1]"}, "[1]"),
        ({"either": ["a", "b"]}, ["a", "b"]),
        ({"level": "high"}, "high"),
        ({"number": "2"}, 2),
        ({"colour": "blue"}, Colour.BLUE),
        ({"point": '{"x": 1}'}, Point(1)),
        ({"point": "null"}, None),
        ({"table": '{"a": 1}'}, {"a": 1}),
        ({"counts": '{"1": 2}'}, {1: 2}),
        ({"anything": "4"}, "4"),
        ({"anything": True}, True),
        ({"untyped": "8"}, 8),
        ({"small": "9"}, 9),
    ],
)
def test_words_of_a_command_line(words: dict[str, Any], value: Any) -> None:
    bound = text(**words)
    assert bound == value
    assert type(bound) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n": "x"}, "parameter n: expected int, got 'x'"),
        ({"n": "1.5"}, "parameter n: expected int, got '1.5'"),
        ({"n": ["1", "2"]}, "parameter n was given 2 times"),
        ({"n": True}, "parameter n needs a value: --n N"),
        ({"s": True}, "parameter s needs a value: --s S"),
        ({"many": True}, "parameter many needs a value: --many MANY"),
        ({"flag": "maybe"}, "parameter flag: expected bool, got 'maybe'"),
        ({"many": ["1", "x"]}, "parameter many[1]: expected int, got str"),
        ({"many": "[1,"}, "parameter many: expected JSON, got '[1,'"),
        ({"level": "mid"}, "parameter level: invalid enum value 'mid'"),
        ({"point": "{x}"}, "parameter point: expected JSON, got '{x}'"),
        ({"point": '{"y": 1}'}, "parameter point: object missing required field x"),
        ({"table": "7"}, "parameter table: expected object, got int"),
        ({"counts": '{"x": 1}'}, "parameter counts: expected int, got '{\"x\": 1}'"),
        ({"small": "10"}, "parameter small: expected int <= 9"),
        ({"flg": True}, "there is no parameter flg; did you mean flag?"),
    ],
)
def test_wrong_words(words: dict[str, Any], message: str) -> None:
    assert why(words, text=True) == message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n": "4"}, "parameter n: expected int, got str"),
        ({"flag": 1}, "parameter flag: expected bool, got int"),
        ({"s": None}, "parameter s: expected str, got null"),
        ({"zzz": 1}, "there is no parameter zzz; it takes s, n, f"),
    ],
)
def test_json_is_taken_as_it_is(args: dict[str, Any], message: str) -> None:
    assert why(args, text=False).startswith(message)


def test_defaults_stay_with_the_function() -> None:
    assert PARAMETERS.bind({}, text=False) == {}
    assert PARAMETERS.bind({"n": 1}, text=False) == {"n": 1}


def test_dashes_are_underscores() -> None:
    async def main(dry_run: bool) -> None: ...

    assert Parameters(main).bind({"dry-run": True}, text=False) == {"dry_run": True}


def test_a_missing_parameter_is_named() -> None:
    async def main(prompt: str) -> None: ...

    parameters = Parameters(main)
    with pytest.raises(LoadError, match="parameter prompt is missing: give --prompt PROMPT"):
        parameters.bind({}, text=True)
    with pytest.raises(LoadError, match=r"parameter prompt is missing$"):
        parameters.bind({}, text=False)


def test_a_program_without_parameters_says_so() -> None:
    async def main() -> None: ...

    with pytest.raises(LoadError, match="there is no parameter n: this program takes none"):
        Parameters(main).bind({"n": 1}, text=False)


@given(st.integers(-(2**53), 2**53), st.text(max_size=20), st.lists(st.integers(-9, 9), max_size=4), st.booleans())
def test_json_values_come_back_as_they_were(n: int, s: str, many: list[int], flag: bool) -> None:
    args = {"n": n, "s": s, "many": many, "flag": flag}
    assert PARAMETERS.bind(args, text=False) == args


@given(st.integers(-(2**53), 2**53), st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.floats(allow_nan=False))
def test_values_survive_the_command_line(n: int, many: list[int], f: float) -> None:
    words = {"n": str(n), "many": [str(m) for m in many], "f": repr(f) if abs(f) != float("inf") else "0.0"}
    bound = PARAMETERS.bind(words, text=True)
    assert bound["n"] == n
    assert bound["many"] == many


def test_the_schema_is_json_and_knows_defaults_and_limits() -> None:
    schema = json.loads(json.dumps(PARAMETERS.schema))
    properties = schema["properties"]
    assert list(properties)[:3] == ["s", "n", "f"]
    assert properties["n"] == {"type": "integer", "default": 1}
    assert properties["small"]["maximum"] == 9
    assert schema["additionalProperties"] is False
    assert "Point" in schema["$defs"]


def test_rows_spell_types_as_their_author_did() -> None:
    rows = {row["name"]: row for row in PARAMETERS.rows()}
    assert rows["n"] == {"name": "n", "type": "int", "required": False, "default": "1"}
    assert rows["either"]["type"] == "str | list[str]"
    assert rows["many"]["type"] == "list[int]"
    assert rows["level"]["type"] == "Literal['low', 'high']"
    assert rows["colour"] == {"name": "colour", "type": "Colour", "required": False, "default": '"red"'}
    assert rows["small"]["type"] == "int"
    assert rows["untyped"]["type"] == "int"


def test_help_is_a_line_for_each_parameter() -> None:
    async def main(prompt: str, dry_run: bool = False) -> None: ...

    assert Parameters(main).help() == "  --prompt   str   required\n  --dry-run  bool  default false"

    async def nothing() -> None: ...

    assert Parameters(nothing).help() == "It takes no parameters."
