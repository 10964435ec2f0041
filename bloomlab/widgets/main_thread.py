"""Work for the thread of the cells.

Newer kernels handle a widget's messages in a thread of their own, beside a running cell. A forward
there would see the hooks of the cell's forward and the other way round, and an interrupt would not
reach it. So work waits here for the cell to end, and can be interrupted like one.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any


class MainThread:
    """Runs work in the main thread; made in a cell, it knows the event loop there."""

    def __init__(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook: callers are in the main thread
            self._loop = None

    def __call__(self, work: Callable[..., None], *args: Any) -> None:
        """Do the work now, or as soon as the main thread is free."""
        if self._loop is None or threading.current_thread() is threading.main_thread():
            work(*args)
        else:
            self._loop.call_soon_threadsafe(_interruptible, work, *args)


def _interruptible(work: Callable[..., None], *args: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work(*args)
        finally:
            signal.signal(signal.SIGINT, before)
    except KeyboardInterrupt:  # came outside a view's own handling; the loop would end by it
        signal.signal(signal.SIGINT, before)
