"""`python.py TARGET SECONDS`: hypothesis on what reads bytes of others, for as long as it is given.

filter: the compiled seccomp filter against the slow reading of its table. policies: the loader, with TOML and JSON that
are nearly right. requests: the authority calls' parser. frames: the framed channel. logs: the verifier.
Each round is a run of hypothesis with a seed of its own; the first failure is printed and ends it with exit code 1.
"""

from __future__ import annotations

import atexit
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

REQUEST_KEYS = "args cap seq ptr type value patch expected_version what where limit operations op"
Body = Callable[..., None]


def filters() -> tuple[st.SearchStrategy[object], Body]:
    from akbox.linux.filter import RET_ALLOW, RET_TRACE, RET_TRAP, RET_USER_NOTIF, compile_filter
    from akbox.linux.syscalls import ARCHES, FilterPlan, Outcome, decide, decisions
    from tests.unit.bpf import run

    flag = st.booleans()
    plans = st.builds(FilterPlan, st.sampled_from(tuple(ARCHES)), flag, flag, flag, flag, flag, flag, flag)
    register = st.integers(0, 2**64 - 1) | st.integers(0, 2**12) | st.sampled_from([2**31, 2**32, 2**63, 0x5412, 0x800])
    number = st.integers(0, 480) | st.integers(0, 2**32 - 1)
    arches = st.sampled_from([*ARCHES.values(), 0x4000_0003, 0x4000_0028])

    def check(case: tuple[FilterPlan, int, list[int], int | None, int]) -> None:
        plan, nr, args, arch, rule = case
        found = decisions(plan).get(nr)
        if found is not None and found.rules:  # near a rule: what it wants, garbage elsewhere
            for arg, mask, value in found.rules[rule % len(found.rules)]:
                args[arg] = args[arg] & ~mask | value
        arch = ARCHES[plan.arch] if arch is None else arch
        supervisor = RET_USER_NOTIF if plan.notify else RET_TRACE
        wanted = {Outcome.ALLOW: RET_ALLOW, Outcome.SUPERVISOR: supervisor, Outcome.SIGSYS: RET_TRAP}
        assert run(compile_filter(plan), nr, arch, args) == wanted[decide(plan, arch, nr, args)], case

    six = st.lists(register, min_size=6, max_size=6)
    return st.tuples(plans, number, six, st.none() | arches, st.integers(0, 99)), check


def policies() -> tuple[st.SearchStrategy[object], Body]:
    from akbox.policy.check import PolicyError
    from akbox.policy.compile import compile_policy
    from akbox.policy.load import parse
    from akbox.policy.rules import Context
    from tests.fuzz.words import policy_text

    context = Context(workdir="/w", home="/h", tmp="/t", prefix="/usr", state_dirs=("/s",))

    def check(case: tuple[str, str]) -> None:
        text, syntax = case
        try:
            compile_policy(parse(text, syntax=syntax, name="fuzz"), context)  # type: ignore[arg-type]
        except PolicyError as error:
            sound = bool(error.problems) and all(p.line >= 1 and p.message for p in error.problems)
        else:
            sound = True
        assert sound, case

    return policy_text(), check


def requests() -> tuple[st.SearchStrategy[object], Body]:
    from tests.unit.kernel_kit import Box

    folder = _folder()
    box = Box(folder)
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    )
    keys = st.sampled_from(REQUEST_KEYS.split())
    near = st.dictionaries(keys, json_value, max_size=5).map(lambda v: json.dumps(v).encode())

    def check(case: tuple[int, bytes]) -> None:
        number, data = case
        reply = box.kernel.call(box.kernel.root, number, data)
        document = json.loads(reply.body)
        assert document["ok"] is (reply.errno == 0), (case, reply)
        assert reply.errno or "result" in document, (case, reply)

    return st.tuples(st.integers(1020, 1048), st.binary(max_size=200) | near), check


def frames() -> tuple[st.SearchStrategy[object], Body]:
    """Streams of frames that are right, nearly right, or nothing of the kind, as a channel reads them."""
    from akbox.kernel.frames import (
        BATCH,
        ERROR,
        HEADER,
        HELLO,
        REQUEST,
        RESPONSE,
        Conversation,
        FrameError,
        error_frame,
        pack,
        read_frame,
    )
    from tests.unit.kernel_kit import Box

    box = Box(_folder())
    token = "t" * 64
    words = st.sampled_from(
        ["op", "args", "READ", "ALLOC", "1025", HELLO, "token", token, "ptr", "type", "/etc/shadow"]
    )
    json_value = st.recursive(
        words | st.none() | st.integers() | st.floats(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    )
    payload = json_value.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=60)
    hello = st.sampled_from([token, "x"]).map(lambda t: json.dumps({"op": HELLO, "token": t}).encode())
    flags = st.sampled_from([REQUEST, REQUEST, REQUEST | BATCH, RESPONSE, 0xFF])
    good = st.builds(pack, flags, st.integers(0, 5) | st.integers(0, 2**64 - 1), payload)
    first = st.builds(pack, st.just(REQUEST), st.just(1), hello)
    damage = st.none() | st.tuples(st.integers(0, 200), st.integers(0, 4), st.binary(max_size=4))

    def check(case: tuple[bytes, list[bytes], tuple[int, int, bytes] | None]) -> None:
        start, rest, harm = case
        stream = start + b"".join(rest)
        if harm is not None:
            at, gone, other = harm
            stream = stream[:at] + other + stream[at + gone :]
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            part = stream[at : at + count]
            at += len(part)
            return part

        talk = Conversation(box.kernel, lambda given: box.kernel.root if given == token else None)
        replies: list[bytes] = []
        try:
            while (frame := read_frame(read)) is not None:
                replies.append(talk.answer(frame))
        except FrameError as error:
            replies.append(error_frame(error))
        for reply in replies:
            size = HEADER.unpack_from(reply)[3]
            assert size == len(reply) - HEADER.size, (case, reply)
            document = json.loads(reply[HEADER.size :])
            assert isinstance(document, list) or document["ok"] is not bool(reply[3] & ERROR), (case, reply)
        assert talk.agent is None or token.encode() in stream, case

    return st.tuples(first | good | st.binary(max_size=40), st.lists(good, max_size=4), damage), check


def logs() -> tuple[st.SearchStrategy[object], Body]:
    from akbox.kernel.verify import verify
    from tests.unit.kernel_kit import Box

    folder = _folder()
    box = Box(folder)
    for n in range(20):
        box.kernel.call(box.kernel.root, 1025, json.dumps({"type": "t", "value": n}).encode())
    box.kernel.close()
    good = (folder / "audit.jsonl").read_bytes()
    target = folder / "damaged.jsonl"

    def check(case: tuple[str, int, int, bytes]) -> None:
        kind, at, size, other = case
        at, size = at % len(good), 1 + size % 40
        data = {"replace": good[:at] + other + good[at + len(other) :], "cut": good[:at] + good[at + size :],
                "insert": good[:at] + other + good[at:], "swap": good[at:] + good[:at]}[kind]  # fmt: skip
        target.write_bytes(data)
        found = verify(target, None)
        assert not found.ok or good.startswith(data) or data == good, (case, found)

    kinds = st.sampled_from(["replace", "cut", "insert", "swap"])
    return st.tuples(kinds, st.integers(0, 2**20), st.integers(0, 99), st.binary(min_size=1, max_size=9)), check


def _folder() -> Path:
    """Removed when the program ends."""
    folder = tempfile.mkdtemp(prefix="akbox-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


TARGETS = {"filter": filters, "policies": policies, "requests": requests, "frames": frames, "logs": logs}


def main() -> int:
    target, seconds = sys.argv[1], float(sys.argv[2])
    strategy, body = TARGETS[target]()
    end, rounds, cases = time.monotonic() + seconds, 0, 0

    def counted(case: object) -> None:
        nonlocal cases
        cases += 1
        body(case)

    while time.monotonic() < end:
        rounds += 1
        fuzz = settings(
            max_examples=500, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )(given(strategy)(counted))  # fmt: skip
        seed(random.SystemRandom().getrandbits(64))(fuzz)()
    print(f"{target}: {cases} cases in {rounds} rounds: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
