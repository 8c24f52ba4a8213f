"""Run a program in a unit test, with no kernel and no model.

    answer = await run_lip(main, prompt="x")                # what main returns; what it raises comes through

    async with FakeKernel(replies=["Action: add[1, 2]"]) as kernel:
        answer = await main("What is 1 + 2?")               # the test itself is the program
    assert kernel.events == [...]

`FakeKernel` answers every system call from plain lists over a toy model, in which a token is a byte and the same
tokens always continue in the same way. Files, forks, paths, handles, channels, children and their errors behave as
in the kernel, so that a program's own logic can be tested.

Not modelled: pages (nothing is shared and nothing runs out, so no ENOSPC, and no EDQUOT but a full channel's or that
of a limit of tokens), workers (ENODEV and EIO come only where a test asks for them with `fail`), owners (no EACCES
but that of a handle for reading, a priority or a limit), scheduling and time (a sleep moves the clock and returns;
priorities, and limits but that of tokens, are only remembered), penalties and `min_p`, and `exit` in another thread
than a program's first.
"""

from sdk.testing.kernel import FakeKernel, run_lip
from sdk.testing.process import Event

__all__ = ["Event", "FakeKernel", "run_lip"]
