"""Ctrl-C and SIGTERM: when they interrupt a job, and when they have to wait."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def sigterm_interrupts(terminated: threading.Event) -> Iterator[None]:
    """Makes SIGTERM unwind the job like Ctrl-C, so that the cluster is shut down."""

    def stop(signum: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a handler
        terminated.set()
        sys.exit(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_stays_ours() -> Iterator[None]:
    """Keeps Ray's handler of SIGTERM out: it hides which signal it was, and drains a node 30 s."""
    from ray._private import utils

    set_sigterm_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_sigterm_handler


@contextmanager
def wait_until_started() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until Ray has started: they would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, lambda signum, _: came.append(signum)) for s in signals}
    try:
        with sigterm_stays_ours():
            yield
    finally:
        for signum, handler in before.items():
            # The default would end this process without its `finally` blocks.
            default = signum == signal.SIGTERM and handler is signal.SIG_DFL
            signal.signal(signum, _exit if default else handler)
    if came:
        signal.raise_signal(came[0])


def _exit(signum: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a handler
    sys.exit(signum)


@contextmanager
def wait_until_stopped() -> Iterator[None]:
    """Holds further interrupts back while processes are being stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
