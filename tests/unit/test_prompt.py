"""What counts as an answer to a question at a terminal, and what does not."""

from __future__ import annotations

import pytest

from akbox.linux.prompt import GRACE_S, Prompt


class Question:
    lines = ("akbox: fs.open /x", "  Allow it?")

    def __init__(self) -> None:
        self.words: list[str] = []
        self.state: str | None = None

    def settled(self) -> str | None:
        return self.state

    def answer(self, word: str) -> None:
        self.words.append(word)
        self.state = f"akbox: {word}"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(*, raw: bool = True, plain: bool = False) -> tuple[Prompt, Question, Clock]:
    question, clock = Question(), Clock()
    prompt = Prompt(question, raw=raw, plain=plain, clock=clock)
    assert b"akbox: fs.open /x\r\n  Allow it? " in prompt.shown()
    clock.now += GRACE_S
    return prompt, question, clock


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (b"y\r", ["yes"]), (b"Y\n", ["yes"]), (b"yes\r", ["yes"]), (b"n\r", ["no"]), (b"no\r", ["no"]),
        (b"a\r", ["always"]), (b"always\r", ["always"]), (b" y \r", ["yes"]), (b"x\x7fy\r", ["yes"]),
        (b"junk\x15y\r", ["yes"]), (b"\r\ry\r", ["yes"]), (b"y", []), (b"\r", []), (b"ye\r", []), (b"yy\r", []),
        (b"y\x7f\r", []), (b"\x1b[Ay\r", []), (b"\x1b]11;rgb:aaaa/y\r", []), (b"\x1b]ly\x1b\\\r", []),
        (b"\x1b[200~y\r\x1b[201~", []), ("ý\r".encode(), []), (b"y" * 40 + b"\r", []), (b"\x1b\x7f\x7fy\r", []),
        (b"\x1b[A\x15y\r", ["yes"]), (b"\x1b[A\ry\r", ["yes"]), (b"y\rn\r", ["yes"]), (b"\0y\r", []), (b"y\t\r", []),
    ],
)  # fmt: skip
def test_an_answer_is_a_whole_line_of_one_word(typed: bytes, words: list[str]) -> None:
    prompt, question, _ = asked()
    prompt.typed(typed)
    assert question.words == words
    prompt, question, _ = asked()
    for byte in typed:  # the same however it is split
        if question.settled() is None:
            prompt.typed(bytes((byte,)))
    assert question.words == words


def test_what_was_typed_before_it_could_be_read_does_not_count() -> None:
    prompt, question, clock = asked()
    clock.now -= 0.01
    assert prompt.typed(b"y\r") == (b"", b"")
    assert question.words == []
    assert prompt.over() is None
    clock.now += 0.01
    prompt.typed(b"y\r")
    assert question.words == ["yes"]
    assert prompt.over() == b"\r\nakbox: yes\r\n"


def test_half_an_answer_does_not_last_past_a_second_showing() -> None:
    prompt, question, clock = asked()
    prompt.typed(b"y")
    prompt.shown()
    clock.now += GRACE_S
    prompt.typed(b"\r")
    assert question.words == []


def test_the_keys_of_job_control_are_the_agents() -> None:
    prompt, question, clock = asked()
    assert prompt.typed(b"y\x03\x1a\x1c\r")[1] == b"\x03\x1a\x1c"
    assert question.words == ["yes"]
    prompt, question, clock = asked()
    clock.now -= GRACE_S
    assert prompt.typed(b"\x03y\r")[1] == b"\x03"
    assert question.words == []


def test_the_echo_is_ours_in_raw_mode_only() -> None:
    assert asked()[0].typed(b"ab\x7f\x1b") == (b"ab\b \b", b"")
    assert asked(raw=False)[0].typed(b"ab\x7f\x1b") == (b"", b"")
    assert asked(raw=False)[0].typed(b"what\n")[0] == b"\r\ny, n or a, and Enter: "


def test_what_the_agent_left_on_the_terminal_is_undone_first() -> None:
    shown = asked()[0].shown()
    assert shown.startswith(b"\x18\x1b\\")  # an unfinished sequence swallows nothing of it
    assert b"\x1b[0m" in shown  # not invisible
    assert b"\x1b[r" in shown
    assert b"\x1b" not in asked(plain=True)[0].shown()
