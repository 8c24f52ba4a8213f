"""How `lip run` shows a program: its text as it comes, named streams side by side, its result at the end.

On a terminal, named streams are redrawn in columns while they grow; anywhere else each is printed under its name
once the program has ended. With `json_only` standard output gets the result and nothing else.
"""

import sys
from typing import Any

import msgspec
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from sdk.client import Exit

COLUMN_WIDTH_MIN = 28
N_COLUMNS_MAX = 6
REST = "output"  # title of what has no name of its own, once there are columns


class Screen:
    """Where one program's events go."""

    def __init__(self, out: Console, *, json_only: bool = False) -> None:
        self.out = out
        self.json_only = json_only
        self._streams: dict[str, Text] = {}  # by name, in order of appearance
        self._live: Live | None = None
        self._dirty = False  # the columns have changed since they were drawn
        self._at_line_start = True

    def emit(self, data: Any, stream: str | None) -> None:
        """Something came. Text is shown as it is, anything else as a line of JSON."""
        if self.json_only:
            return
        text = data if isinstance(data, str) else compact(data) + "\n"
        if stream is None and not self._streams:
            self._write(text)
            return
        if not self._streams:
            self._new_line()
        self._streams.setdefault(REST if stream is None else stream, Text()).append(text)
        self._dirty = True

    def redraw(self) -> None:
        """Bring the columns up to date. Called now and then by whoever feeds us, so that no thread is needed."""
        if not self._dirty or not self.out.is_terminal:
            return
        self._dirty = False
        if self._live is None:
            self._live = Live(get_renderable=self._columns, console=self.out, auto_refresh=False, transient=True)
            self._live.start()
        self._live.refresh()

    def ask(self, prompt: str) -> None:
        """Show a prompt; the line is read elsewhere."""
        self._stop()
        if self.json_only:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        else:
            self._write(prompt)
            self._at_line_start = True  # the terminal echoes the newline

    def end(self, exit: Exit | None) -> None:  # noqa: A002  (the word of the system call)
        """The program ended, or was given up."""
        self._stop()
        if not self.out.is_terminal:
            for name, text in self._streams.items():
                self._new_line()
                self._write(f"--- {name} ---\n{text.plain}")
        self._new_line()
        if exit is None or exit.code != 0:
            return
        if self.json_only or exit.result is not None:
            self._result(exit.result)

    def _result(self, result: Any) -> None:
        if self.out.is_terminal and not self.json_only:
            self.out.print_json(compact(result))
        else:
            self._write(compact(result) + "\n")

    # --- text ---

    def _write(self, text: str) -> None:
        if text:
            self.out.file.write(text)
            self.out.file.flush()
            self._at_line_start = text.endswith("\n")

    def _new_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    # --- columns ---

    def _stop(self) -> None:
        """Leave the columns on the screen as they are, in full."""
        self.redraw()
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.out.print(self._columns(full=True))

    def _columns(self, *, full: bool = False) -> RenderableType:
        n = max(1, min(len(self._streams), N_COLUMNS_MAX, self.out.width // COLUMN_WIDTH_MIN))
        width = self.out.width // n - 1
        n_rows = -(-len(self._streams) // n)
        height = max(1, self.out.height // n_rows - 3)
        panels = []
        for name, text in self._streams.items():
            lines = text.wrap(self.out, width - 4)
            shown = lines if full else lines[-height:]
            panels.append(Panel(Text("\n").join(shown), title=name, width=width))
        return Columns(panels, padding=(0, 1, 0, 0))


def compact(value: Any) -> str:
    return msgspec.json.encode(value).decode()
