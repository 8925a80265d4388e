"""Work beside the main thread: compiling a program that will be needed, while the data are read and audited."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

_log = logging.getLogger(__name__)
_NAME = "ahead"  # of the threads
_GLANCE = 0.1  # seconds between looks at whether to go on waiting


class BackgroundTask:
    """Runs one job at a time. A failed one is harmless: whoever needs its result computes it in the foreground."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Begins the work in a thread of its own, once what was begun before is done."""
        self.wait()
        self._thread = threading.Thread(target=_tried, args=(work,), name=_NAME)
        self._thread.start()

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """Returns when nothing is being worked on; `check` is called now and then, and may raise to wait no longer."""
        while self._thread is not None and self._thread.is_alive():
            if check is not None:
                check()
            self._thread.join(_GLANCE)
        self._thread = None


def _tried(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        _log.warning("nothing was compiled ahead: %s", (str(error).splitlines() or [type(error).__name__])[0])


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the status that `main` returns, or 1 and a traceback where it raises.

    It does not wait for work that nobody needs any more: a compilation cannot be called off.
    """
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if any(thread.name == _NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
