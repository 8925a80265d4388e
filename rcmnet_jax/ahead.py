"""Work beside the main thread: compiling a program that will be needed, while the data are read and audited."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

_log = logging.getLogger(__name__)
_NAME = "ahead"  # of the threads


class Ahead:
    """At most one piece of work at a time. Nothing hangs on it: what fails here will fail again where it is needed."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Begins the work in a thread of its own, once what was begun before is done."""
        self.wait()
        self._thread = threading.Thread(target=_tried, args=(work,), name=_NAME)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being worked on."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _tried(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # whatever it is, the main thread meets it too
        _log.warning("nothing was compiled ahead: %s", error)


def leave(status: int) -> NoReturn:
    """Ends the process, without waiting for work that nobody needs any more: a compilation cannot be called off."""
    if any(thread.name == _NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
