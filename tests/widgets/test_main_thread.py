import asyncio
import signal
import threading

import pytest

from bloomlab.widgets.main_thread import MainThread


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("work", [interrupt, lambda: signal.raise_signal(signal.SIGINT)])
def test_an_interrupt_in_the_work_does_not_stop_the_loop(work):
    ran = []

    async def cell():
        main = MainThread()
        done = asyncio.Event()

        def last():
            ran.append(threading.current_thread() is threading.main_thread())
            done.set()

        def other():
            main(work)
            main(last)

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.wait_for(done.wait(), 10)
        thread.join()

    before = signal.getsignal(signal.SIGINT)
    asyncio.run(cell())
    assert ran == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_main_thread_works_at_once():
    ran = []
    MainThread()(ran.append, 1)
    assert ran == [1]
