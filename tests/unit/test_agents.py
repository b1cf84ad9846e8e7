"""Several agents in one kernel: policies that narrow, grants, mailboxes, budgets, the end of an agent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import POLICY, Box, compiled

from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import Op
from akbox.kernel.tree import MAX_DEPTH

READ, ALLOC, WRITE, DELETE, QUERY, BATCH = range(1024, 1030)
SEND, RECV, CAP = 1033, 1034, 1043
NARROW = 'version = "1.0"\n[fs]\nread = ["/app/sub/**", "/etc/**"]\n'


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, POLICY + "[budgets]\ntokens = 100\nheap_objects = 10\n[spawn]\nmax_agents = 4\n")
    yield made
    made.close()


def allowed(box: Box, agent: bytes, target: str, need: int = 1) -> bool:
    return box.kernel.authorize(agent, Effect(op=Op.FS_OPEN, target=target, need=need)).allowed


def test_a_child_has_at_most_what_its_parent_has(box: Box) -> None:
    kernel = box.kernel
    same = kernel.tree.add(kernel.root, "same", None, {})
    less = kernel.tree.add(kernel.root, "less", compiled(NARROW), {})
    below = kernel.tree.add(less.id, "below", compiled('version = "1.0"\n[fs]\nread = ["/**"]\nwrite = ["/**"]\n'), {})
    for target, need, expected in (
        ("/app/x", 1, (True, False, False)),
        ("/app/sub/x", 1, (True, True, True)),
        ("/etc/passwd", 1, (False, False, False)),  # its own policy says yes, its parent's does not
        ("/app/out/x", 2, (True, False, False)),
        ("/app/sub/.env", 1, (False, False, False)),
    ):
        assert tuple(allowed(box, a.id, target, need) for a in (same, less, below)) == expected, target
    entry = box.entries()[-1]
    assert (entry["agent"], entry["stage"]) == (below.id.hex(), "POLICY")


def test_revoking_a_parents_capability_ends_the_childs_too(box: Box) -> None:
    kernel = box.kernel
    child = kernel.tree.add(kernel.root, "child", compiled(NARROW), {})
    assert allowed(box, child.id, "/app/sub/x")
    tid = next(h.tid for h in kernel.agent(kernel.root).held() if h.section == "fs.read")
    error = box.fail(CAP, by=child.id, op="revoke", cap=tid)
    assert error["code"] == Code.CAP_SCOPE  # not its own
    assert box.call(CAP, op="revoke", cap=tid, reason="enough")["revoked"] is True
    assert not allowed(box, child.id, "/app/sub/x")
    assert box.call(QUERY, what="authorize", op="READ", target="/app/x")["allowed"] is False
    revoked = [h for h in box.call(QUERY, what="capabilities")["capabilities"] if h["state"] == "revoked"]
    assert [h["tid"] for h in revoked] == [tid]


def test_a_heap_object_belongs_to_one(box: Box) -> None:
    child = box.kernel.tree.add(box.kernel.root, "child", None, {}).id
    ptr = box.call(ALLOC, type="t", value={"a": 1})["ptr"]
    other = box.call(ALLOC, type="t", value=0)["ptr"]
    assert box.fail(READ, by=child, ptr=ptr)["code"] == Code.CAP_MISSING
    heap = box.kernel.agent(box.kernel.root).heap_tid
    grant = box.call(CAP, op="derive", cap=heap, resource=f"heap:{ptr}", methods=["read"], agent="child")["token"]
    assert box.call(READ, by=child, token=grant, ptr=ptr)["value"] == {"a": 1}
    assert box.fail(READ, by=child, token=grant, ptr=other)["code"] == Code.CAP_SCOPE
    assert box.fail(WRITE, by=child, token=grant, ptr=ptr, patch=[])["code"] == Code.CAP_SCOPE
    stranger = box.kernel.tree.add(box.kernel.root, "stranger", None, {}).id
    assert box.fail(READ, by=stranger, token=grant, ptr=ptr)["code"] == Code.CAP_SCOPE
    write = box.call(CAP, op="derive", cap=heap, resource=f"heap:{ptr}")["token"]
    box.call(WRITE, by=stranger, token=write, ptr=ptr, patch=[{"op": "set", "path": "/b", "value": 2}])
    assert box.call(READ, ptr=ptr)["taint"] == 100  # another agent wrote it
    # A capability for all of one's own heap says nothing about somebody else's.
    own = box.kernel.agent(child).heap_tid
    everything = box.call(CAP, by=child, op="derive", cap=own)["token"]
    assert box.fail(READ, by=child, token=everything, ptr=ptr)["code"] == Code.CAP_MISSING
    assert box.fail(CAP, by=child, op="derive", cap=own, resource=f"heap:{ptr}")["code"] == Code.CAP_SCOPE
    box.call(CAP, op="revoke", cap=grant)
    assert box.fail(READ, by=child, token=grant, ptr=ptr)["code"] == Code.CAP_REVOKED


def test_mail(box: Box) -> None:
    kernel = box.kernel
    a = kernel.tree.add(kernel.root, "a", None, {}).id
    b = kernel.tree.add(kernel.root, "b", None, {}).id
    for n in range(3):
        box.call(SEND, to="a", payload={"n": n}, correlation=f"c{n}")
    box.call(SEND, to=a.hex(), payload="now", urgent=True)
    messages = box.call(RECV, by=a, limit=3)["messages"]
    assert [m["payload"] for m in messages] == ["now", {"n": 0}, {"n": 1}]
    assert {m["from"] for m in messages} == {kernel.root.hex()}
    assert [m["correlation"] for m in messages] == [None, "c0", "c1"]
    assert box.call(RECV, by=a)["messages"][0]["payload"] == {"n": 2}
    assert box.call(RECV, by=a)["messages"] == []
    assert box.fail(SEND, by=a, to="b", payload=1)["code"] == Code.CAP_MISSING
    token = box.call(CAP, by=b, op="derive", cap=kernel.agent(b).ipc_tid, agent="a")["token"]
    box.call(SEND, by=a, token=token, to=b.hex(), payload="hi")
    assert box.call(RECV, by=b)["messages"][0]["from_name"] == "a"
    assert box.fail(SEND, by=a, token=token, to="root2", payload=1)["code"] in (Code.NO_RECIPIENT, Code.CAP_SCOPE)
    assert box.fail(SEND, to="nobody", payload=1)["code"] == Code.NO_RECIPIENT
    assert box.fail(SEND, to="a", payload="x" * 65_536)["code"] == Code.MSG_TOO_LARGE
    for n in range(100):
        box.call(SEND, to="a", payload=n)
    assert box.fail(SEND, to="a", payload=101)["code"] == Code.MAILBOX_FULL
    assert [m["payload"] for m in box.call(RECV, by=a, limit=100)["messages"]] == list(range(100))


def test_waiting_for_mail(box: Box) -> None:
    child = box.kernel.tree.add(box.kernel.root, "child", None, {}).id
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(box.call(RECV, by=child, timeout_ms=30_000)["messages"]))
    waiter.start()
    box.call(SEND, to="child", payload="at last")
    waiter.join(30)
    assert [m["payload"] for m in got[0]] == ["at last"]  # type: ignore[attr-defined]
    assert box.call(RECV, by=child, timeout_ms=10)["messages"] == []


def test_the_end_of_an_agent(box: Box) -> None:
    kernel = box.kernel
    child = kernel.tree.add(kernel.root, "child", compiled(NARROW), {"tokens": 40, "heap_objects": 3})
    assert kernel.budgets.status("tokens").remaining == 60
    ptr = box.call(ALLOC, by=child.id, type="t", value=1)["ptr"]
    grant = box.call(CAP, by=child.id, op="derive", cap=child.heap_tid)["token"]
    child.ledger.charge("tokens", 10)
    kernel.tree.end(child)
    kernel.tree.end(child)
    assert kernel.budgets.status("tokens").remaining == 90
    assert kernel.budgets.used("heap_objects") == 1
    assert box.fail(READ, by=child.id, ptr=ptr)["code"] == Code.CAP_REVOKED
    assert box.fail(READ, token=grant, ptr=ptr)["code"] == Code.CAP_REVOKED
    assert box.call(READ, ptr=ptr)["value"] == 1  # its parent's now
    box.call(DELETE, ptr=ptr)
    assert kernel.budgets.used("heap_objects") == 0
    assert box.fail(SEND, to="child", payload=1)["code"] == Code.NO_RECIPIENT
    assert {a["state"] for a in box.call(QUERY, what="agents")["agents"]} == {"running", "ended"}
    kernel.tree.add(kernel.root, "child", None, {})  # the name is free again


def test_how_many(box: Box) -> None:
    kernel = box.kernel

    def refused(parent: bytes, name: str | None = None, **limits: int) -> Code:
        with pytest.raises(CallError) as caught:
            kernel.tree.add(parent, name, None, limits)
        return caught.value.code

    kernel.tree.add(kernel.root, "one", None, {"tokens": 60})
    assert refused(kernel.root, "one") == Code.NAME_EXISTS
    assert refused(kernel.root, tokens=41) == Code.BUDGET_EXCEEDED
    for _ in range(3):
        kernel.tree.add(kernel.root, None, None, {})
    assert refused(kernel.root) == Code.QUOTA_EXCEEDED


def test_how_deep(tmp_path: Path) -> None:
    box = Box(tmp_path)
    at = box.kernel.root
    for _ in range(MAX_DEPTH):
        at = box.kernel.tree.add(at, None, None, {}).id
    with pytest.raises(CallError, match="deep"):
        box.kernel.tree.add(at, None, None, {})
    box.close()


PARTS = st.sampled_from(["/a/**", "/a/b/**", "/**", "/c/*", "/a/b/c"])
POLICIES = st.builds(
    lambda read, write, deny: (
        f'version = "1.0"\n[fs]\nread = {sorted(read)!r}\nwrite = {sorted(write)!r}\ndeny = {sorted(deny)!r}\n'.replace(
            "'", '"'
        )
    ),
    st.sets(PARTS, max_size=3), st.sets(PARTS, max_size=2), st.sets(PARTS, max_size=1),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(POLICIES, min_size=2, max_size=5), dead=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5))))
def test_attenuation_through_any_depth(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], dead: list[tuple[int, int]]
) -> None:
    """What any agent may do, everybody above it may; whatever is revoked meanwhile."""
    box = Box(tmp_path_factory.mktemp("deep"), texts[0])
    chain = [box.kernel.agent(box.kernel.root)]
    for text in texts[1:]:
        chain.append(box.kernel.tree.add(chain[-1].id, None, compiled(text), {}))
    for who, rule in dead:
        layer = chain[who % len(chain)].layers[0]
        if rule < len(layer.policy.rules):
            layer.end(rule)
    for target in ("/a", "/a/x", "/a/b", "/a/b/c", "/c/d", "/z"):
        for need in (1, 2, 3):
            rights = [box.kernel.decide(a.id, Effect(op=Op.FS_OPEN, target=target, need=need)).allowed for a in chain]
            assert sorted(rights, reverse=True) == rights, (texts, target, need, rights)
    box.close()
