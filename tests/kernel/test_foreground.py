"""`python -m kernel run`: what a user sees of a program in the kernel's own process."""

import asyncio
import os
import sys

import pytest

from kernel.foreground import InputLines, run_foreground


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """What the user will type; nothing more comes after it."""
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))

    def type_(text: str) -> None:
        os.write(writer, text.encode())
        os.close(writer)

    yield type_
    sys.stdin.close()


@pytest.fixture
def run(house, typed):
    async def run(source: str, *words: str) -> int:
        return await run_foreground(house.kernel, str(house.program(source).path), list(words))

    return run


async def test_text_as_it_comes_and_the_result_at_the_end(run, capsys) -> None:
    source = """
    from sdk.channel import emit
    async def main(n: int) -> dict:
        for i in range(n):
            await emit(f"{i} ")
        await emit({"x": 1})
        return {"n": n}
    """
    assert await run(source, "--n", "3") == 0
    out, err = capsys.readouterr()
    assert out == '0 1 2 \n{\n  "x": 1\n}\n{\n  "n": 3\n}\n'
    assert err == ""


async def test_streams_under_their_names(run, capsys) -> None:
    source = """
    from sdk.channel import emit
    async def main() -> None:
        await emit("one", stream="a")
        await emit(" more", stream="a")
        await emit("two", stream="b")
    """
    assert await run(source) == 0
    assert capsys.readouterr().out == "[a] one more\n[b] two\n"


async def test_questions_are_answered_from_standard_input(run, typed, capsys) -> None:
    source = """
    from sdk.channel import input
    from sdk.abi.errors import BrokenPipe
    async def main() -> list[str]:
        names = []
        try:
            while True:
                names.append(await input("name? "))
        except BrokenPipe:
            return names
    """
    typed("Ada\nBob Söderström\nno newline")
    assert await run(source) == 0
    assert capsys.readouterr().out.endswith('[\n  "Ada",\n  "Bob Söderström",\n  "no newline"\n]\n')


async def test_an_error_is_the_programs_frames_and_one_line(run, capsys) -> None:
    assert await run("async def main():\n    1 / 0\n") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "    1 / 0\n" in err
    assert err.endswith("kernel: ZeroDivisionError: division by zero\n")


async def test_the_programs_own_exit_status(run) -> None:
    assert await run("from sdk import process\nasync def main(): await process.exit(7)\n") == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "parameter n is missing"),
        (["--n", "x"], "parameter n: expected int, got 'x'"),
        (["3"], "'3' was not expected"),
    ],
)
async def test_wrong_use_is_one_line_and_status_2(run, capsys, words, message) -> None:
    assert await run("async def main(n: int): ...", *words) == 2
    assert capsys.readouterr().err.startswith(f"kernel: {message}")


async def test_help_is_the_programs_own(run, capsys) -> None:
    assert await run('async def main(n: int):\n    """Counts."""\n', "--help") == 0
    assert capsys.readouterr().out.endswith("[--parameter value ...]\n\nCounts.\n\n  --n  int  required\n")


async def test_a_file_that_is_not_there(house, typed, capsys) -> None:
    assert await run_foreground(house.kernel, "nowhere.py", []) == 2
    assert "kernel: there is no file" in capsys.readouterr().err


async def test_an_interrupt_ends_the_program(house, run) -> None:
    source = """
    from sdk.channel import Channel
    async def main():
        await Channel("began").send(True)
        await Channel("never").recv()
    """

    async def began():
        from sdk.channel import Channel

        await Channel("began").recv()

    task = asyncio.create_task(run(source))
    await house.value(began)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not house.kernel.processes


async def test_lines_of_a_regular_file(tmp_path) -> None:
    (tmp_path / "input").write_text("a\nb\n")
    with (tmp_path / "input").open() as file:
        lines = InputLines(file.fileno())
        assert [await lines.next() for _ in range(3)] == ["a", "b", None]
