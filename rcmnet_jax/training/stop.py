"""SIGTERM and SIGINT become a flag, looked at between steps, so that the last step is saved before the run ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from rcmnet_jax.errors import Interrupted

_EXCHANGE = 16  # steps


class StopRequest:
    """Set by the first SIGTERM or SIGINT while installed; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> StopRequest:
        """Takes over both signals, in the main thread only: elsewhere Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def agree(self, steps: range, overdue: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether a save is overdue, after a dispatch: the same answer in all processes.

        A save is a joint act, and hosts' clocks and signals differ. So several processes ask one another at the end of
        a dispatch that reaches a 16th step, for an exchange a step would cost more than the step; a stop asked of any
        of them stops all, and the first one's clock says when to save.
        """
        import jax

        if jax.process_count() == 1:
            return self.signal is not None, overdue
        if steps.stop // _EXCHANGE == steps.start // _EXCHANGE:
            return False, False
        stops, saves = _gather(self.signal is not None, overdue)
        return bool(stops.any()), bool(saves[0])

    def check(self) -> None:
        """Raises Interrupted where a stop was asked for; between stages, where nothing is unsaved.

        With several processes all must call it together.
        """
        import jax

        wanted = self.signal is not None
        if jax.process_count() > 1:
            wanted = bool(_gather(wanted, False)[0].any())
        if wanted:
            raise Interrupted("Stopped by a signal; run the same command again to go on.")

    def check_alone(self) -> None:
        """As `check`, at a place that processes do not reach together; does nothing where there are several."""
        import jax

        if jax.process_count() == 1:
            self.check()


def _gather(*facts: bool) -> Any:
    """(len(facts), processes) int32: what each process says of each fact."""
    import numpy as np
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(facts, np.int32)).T
