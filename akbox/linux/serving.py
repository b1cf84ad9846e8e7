"""The thread of one of the supervisor's own servers: what it waits for, and how it ends."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable


class Serving:
    """`name`: what it is called when it fails; `thread`: what its thread is called. `after` is called when a round of
    events is done and says how many seconds the next may take at most (None: as long as it likes). What goes wrong in a
    callback ends the thread, and with `on_failure` the run: what the server would have let out no longer gets out.
    `watch` before `start`, or on the thread itself."""

    def __init__(
        self,
        name: str,
        thread: str,
        on_failure: Callable[[str], None],
        after: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._name = name
        self._on_failure = on_failure
        self._after = after
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable from the moment that it is to end
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wake, selectors.EVENT_READ)

    def watch(self, what: socket.socket | int, call: Callable[[], None]) -> None:
        self.selector.register(what, selectors.EVENT_READ, call)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Returns when the thread has ended. Once; `close` after it, when nobody looks at `wake` any more."""
        self._closing = True
        os.eventfd_write(self.wake, 1)
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        self.selector.close()
        os.close(self.wake)

    def _run(self) -> None:
        try:
            at_most = self._after()
            while not self._closing:
                for key, _ in self.selector.select(at_most):
                    if key.data is not None:
                        key.data()
                at_most = self._after()
        except Exception as error:  # the server's edge: nothing goes out by it any more, and the run ends
            self._on_failure(f"{self._name} failed: {error!r}")
