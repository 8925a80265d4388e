"""SIGTERM and SIGINT become a flag, looked at between steps, so that the last step is saved before the run ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from rcmnet_jax.errors import Interrupted


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

    def wanted(self, step: int | None = None) -> bool:
        """Whether to stop now. With several processes and a step, all of them get the same answer for it."""
        import jax

        if jax.process_count() > 1 and step is not None:
            import numpy as np
            from jax.experimental import multihost_utils

            if step % 16:  # an exchange a step would cost more than the step
                return False
            return bool(np.any(multihost_utils.process_allgather(np.int32(self.signal or 0))))
        return self.signal is not None

    def check(self) -> None:
        """Raises Interrupted where a stop was asked for; between stages, where nothing is unsaved."""
        if self.signal is not None:
            raise Interrupted(f"Stopped by {signal.Signals(self.signal).name}; run the same command again to go on.")
