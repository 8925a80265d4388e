"""What a person sees: a progress bar on a terminal, plain lines elsewhere, nothing in any process but the first."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table


class Bar:
    """A running stage; `update` is cheap enough for every step."""

    def __init__(self, console: Console, name: str, total: int, start: int, unit: float, live: Any = None):
        self._console, self._name, self._total, self._unit, self._live = console, name, total, unit, live
        self._start, self._begun, self._spoken = start, time.monotonic(), time.monotonic()
        self._task = live.add_task(escape(name), total=total, completed=start, detail="") if live else None

    def update(self, done: int, detail: str = "", total: int | None = None) -> None:
        """Shows that `done` of the total are behind us; a total found out later may come along."""
        self._total = self._total if total is None else total
        now = time.monotonic()
        rate = (done - self._start) * self._unit / max(now - self._begun, 1e-9)
        if self._live is not None:
            self._live.update(self._task, completed=done, total=self._total, detail=f"{rate:6.1f} images/s  {detail}")
        elif now - self._spoken > self._console.every_seconds:
            self._spoken = now
            left = (self._total - done) * self._unit / max(rate, 1e-9)
            self._console.say(f"{self._name}: {done}/{self._total}, {rate:.0f} images/s, {left:.0f} s left  {detail}")


class _Rich(RichConsole):
    """Rich's console, but that a reader who leaves does not end the program: what is being made is in files."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Writes to standard output."""

    def __init__(self, *, active: bool = True, images_per_step: float = 1.0, every_seconds: float = 15.0):
        self._rich = _Rich(soft_wrap=True, highlight=False, quiet=not active)
        self.active, self.images_per_step, self.every_seconds = active, images_per_step, every_seconds

    def say(self, text: str) -> None:
        """One line, printed as it is: no markup is read from it."""
        self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that begins with 'warning:'."""
        self._rich.print(f"warning: {text}", markup=False, style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of strings, the first column to the left, the others to the right."""
        table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        for i, column in enumerate(columns):
            table.add_column(escape(column), justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._rich.print(table)

    @contextmanager
    def progress(self, name: str, total: int, start: int = 0, unit: float | None = None) -> Iterator[Bar]:
        """A bar on a terminal, else a line now and then.

        Args:
          name: what is going on.
          total: steps in all.
          start: steps done before.
          unit: images a step, for the rate; by default the batch size set for the run.
        """
        unit = self.images_per_step if unit is None else unit
        if not (self.active and self._rich.is_terminal):
            yield Bar(self, name, total, start, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        with Progress(*columns, console=self._rich, transient=True) as live:
            yield Bar(self, name, total, start, unit, live)
