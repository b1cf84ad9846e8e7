"""A question on the host's terminal while an agent has it, as a state machine: typed bytes in, what is to be shown out.

The agent's output has gone to the same terminal, and its answers to queries come back as typed bytes. So what the agent
may have left behind is undone first, what comes in the first half second does not count, and an answer is a whole
line: nothing that a terminal sends by itself, and nothing typed for the agent, is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

GRACE_S = 0.5
_LINE_MAX = 16
# An unfinished sequence is cancelled and a string ended (CAN, ST); the scrolling region is the whole screen, the cursor
# where it was (DECSC, DECSTBM, DECRC); ASCII, no colours, a visible cursor.
_SANE = "\x18\x1b\\\x1b7\x1b[r\x1b8\x0f\x1b(B\x1b[0m\x1b[?25h"
_HINT = "y, n or a, and Enter: "
_ENTER, _ERASE, _KILL = b"\r\n", b"\x7f\x08", b"\x15"
_HANDED_ON = b"\x03\x1a\x1c"  # ^C, ^Z and ^\ are for the agent, as without a question
_ANSWERS = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "a": "always", "always": "always"}


class Question(Protocol):
    """What is asked. Called from the thread that copies; must not wait."""

    lines: tuple[str, ...]  # shown as they are: made safe for a terminal

    def settled(self) -> str | None:
        """How it was decided, by whomever; None as long as it waits."""

    def answer(self, word: str) -> None:
        """The person's answer: yes, no or always."""


class Prompt:
    """One question from its showing to its end. `raw`: the terminal echoes nothing and ends no lines."""

    def __init__(
        self, question: Question, *, raw: bool, plain: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._question = question
        self._raw = raw
        self._plain = plain  # the terminal understands no escape sequences
        self._clock = clock
        self._line = bytearray()
        self._spoilt = False
        self._counts_from = 0.0

    def shown(self) -> bytes:
        """What shows the question, now or again."""
        self._line.clear()
        self._spoilt = False
        self._counts_from = self._clock() + GRACE_S
        return self._bytes(("" if self._plain else _SANE) + "\n" + "\n".join(self._question.lines) + " " + _HINT)

    def typed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what is to be shown, what is for the agent nevertheless)."""
        handed_on = bytes(byte for byte in data if byte in _HANDED_ON)
        if self._clock() < self._counts_from:
            return b"", handed_on
        shown = bytearray()
        for byte in data:
            if byte in _ENTER:
                shown += self._entered()
                if self._question.settled() is not None:
                    break
            elif byte not in _HANDED_ON:
                echo = self._key(byte)
                shown += echo if self._raw else b""
        return bytes(shown), handed_on

    def _key(self, byte: int) -> bytes:
        """Takes one key of a line; returns its echo."""
        if byte in _KILL or byte in _ERASE:
            kept = 0 if byte in _KILL else max(0, len(self._line) - 1)
            echo = b"\b \b" * (len(self._line) - kept)
            del self._line[kept:]
            self._spoilt = self._spoilt and byte in _ERASE
            return echo
        # A key without a letter, or the beginning of what a terminal sends when the agent has asked it something:
        # such a line is no answer, however it goes on.
        self._spoilt = self._spoilt or not 0x20 <= byte < 0x7F or len(self._line) >= _LINE_MAX
        if self._spoilt:
            return b""
        self._line.append(byte)
        return bytes((byte,))

    def _entered(self) -> bytes:
        word = None if self._spoilt else _ANSWERS.get(self._line.decode().strip().lower())
        self._line.clear()
        self._spoilt = False
        if word is None:
            return self._bytes("\n" + _HINT)
        self._question.answer(word)
        return b""

    def over(self) -> bytes | None:
        """What is shown at the end, when the question is decided; None as long as it waits."""
        how = self._question.settled()
        return None if how is None else self._bytes(f"\n{how}\n")

    def _bytes(self, text: str) -> bytes:
        return text.replace("\n", "\r\n").encode("utf-8", "backslashreplace")
