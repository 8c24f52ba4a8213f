"""The agent: what it computes, what it makes of a model that does not keep to the form, and its tools."""

import pytest

from programs import react
from sdk.testing import FakeKernel

ACT = "Action: calculate[2 + 3]\nObservation:"


async def run(replies: list[str], **parameters: object) -> tuple[dict[str, object], str]:
    async with FakeKernel(replies=replies) as kernel:
        result = await react.main(**parameters)  # type: ignore[arg-type]
    return result, "".join(event.data for event in kernel.events)


async def test_every_token_is_computed_once() -> None:
    result, said = await run([ACT] * 5 + [" 5\n\n"])
    assert result["tool_calls"] == 5
    assert result["answer"] == "5"
    assert result["computed_tokens"] == result["file_tokens"]
    assert result["file_tokens"] == len(react.EXAMPLES) + len(said)


async def test_the_model_may_end_before_its_steps_are_used_up() -> None:
    result, said = await run([ACT, " I know the answer.\nFinal Answer: five\n\n"], task="What is 2 + 3?", steps=9)
    assert (result["answer"], result["tool_calls"]) == ("five", 1)
    assert "Observation: 5\n" in said


async def test_the_questions_are_put_one_by_one() -> None:
    _, said = await run([ACT, ACT, " y"], task="First?\n\n Second? ", steps=2)
    first, _, rest = said.partition("Thought: First?\n")
    assert first == ""
    assert "Thought: Second?\nAction" in rest


@pytest.mark.parametrize(
    ("reply", "observation"),
    [
        ("I do not know", "\nObservation: that was no action; write: Action: tool[input]\n"),
        ("Action: fly[home]\nObservation:", " there is no tool fly; there are calculate and search\n"),
        ("Action: calculate[1 / 0]\nObservation:", " error: float division by zero\n"),
        ("Action: calculate[import os]\nObservation:", " error: 'import os' is no arithmetic\n"),
        ("Action: search[the meaning of life]\nObservation:", " error: nothing is known about the meaning of life\n"),
        ("Action: search[the capital of France]\nObservation:", " Paris\n"),
    ],
)
async def test_what_the_model_is_told(reply: str, observation: str) -> None:
    result, said = await run([reply, " nothing"], steps=1)
    assert f"{reply}{observation}Thought: I know the answer.\nFinal Answer: nothing" in said
    assert result["computed_tokens"] == result["file_tokens"]


async def test_only_tools_that_exist_are_counted() -> None:
    result, _ = await run(["Action: fly[home]", "hm", "Action: calculate[1 / 0]", " -"], steps=3)
    assert result["tool_calls"] == 1


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), (" 7 / 2 ", "3.5"), ("-2 ** 2", "-4"), ("(1 + 2) * 3", "9"), ("25 ** 2", "625")],
)
async def test_calculate(expression: str, value: str) -> None:
    assert await react.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "().__class__", "9 ** 9 ** 9", "x", "'a' * 9", "[1]", "", "1 if 1 else 2", "(" * 300],
)
async def test_calculate_does_nothing_else(expression: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        await react.calculate(expression)
