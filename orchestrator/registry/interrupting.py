"""Interrupt the thread that runs a command, as Ctrl-C does, wherever it waits."""

from __future__ import annotations

import signal
import threading


def interrupt_main_thread(owner: int) -> None:
    """Raise KeyboardInterrupt in the main thread, if it is the thread ``owner``; SIGINT itself may be ignored.

    Args:
        owner: Identity of the thread that runs the command. Any other thread than the main one is left alone.
    """
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    if owner == threading.main_thread().ident and callable(signal.getsignal(number)):
        signal.pthread_kill(owner, number)
