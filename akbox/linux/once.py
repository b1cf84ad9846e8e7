"""A value that one thread makes and others wait for. (`concurrent.futures` would bring in `logging` and more: 5 ms.)"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Set to a value or to an error; what comes later is ignored. One thread sets, any may wait."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._outcome: tuple[T] | BaseException | None = None  # written before _set is set

    def done(self) -> bool:
        return self._set.is_set()

    def put(self, value: T) -> None:
        self._settle((value,))

    def fail(self, error: BaseException) -> None:
        self._settle(error)

    def _settle(self, outcome: tuple[T] | BaseException) -> None:
        if not self._set.is_set():
            self._outcome = outcome
            self._set.set()

    def get(self, timeout: float | None = None) -> T:
        """The value; raises what fail() was given, or TimeoutError after `timeout` seconds."""
        if not self._set.wait(timeout):
            raise TimeoutError
        assert self._outcome is not None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome[0]
