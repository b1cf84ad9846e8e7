"""The kernel against a model: after any sequence of calls the heap is what the model says, what was refused has changed
nothing, the ledgers count what is there, and the log verifies."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kernel_kit import Box

from akbox.kernel.budget import Ledger
from akbox.kernel.codes import Code
from akbox.kernel.verify import verify

READ, ALLOC, WRITE, DELETE, QUERY, BATCH, COMMIT = range(1024, 1031)
POLICY = """
version = "1.0"
[budgets]
heap_objects = 12
heap_bytes = 400
[heap.types.small]
type = "object"
properties.n = {type = "integer", maximum = 9}
"""
PTRS = st.integers(0, 16)
VALUES = st.integers(0, 12)


class KernelMachine(RuleBasedStateMachine):
    """Two agents, each with a heap; every object is {"n": number} of a type that allows up to 9."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="akbox-model-"))
        self.box = Box(self.directory, POLICY)
        child = self.box.kernel.tree.add(self.box.kernel.root, "child", None, {"heap_objects": 4})
        self.agents = [self.box.kernel.root, child.id]
        self.model: dict[int, tuple[int, int, int]] = {}  # ptr -> (owner, version, n)
        self.calls = 0

    def call(self, who: int, nr: int, **args: Any) -> Code | dict[str, Any]:
        self.calls += 1
        errno, body = self.box.raw(nr, json.dumps(args).encode(), self.agents[who])
        assert (errno == 0) == body["ok"]
        entry = self.box.entries()[-1]
        assert (entry["decision"] == "allow") == body["ok"]
        stages = entry["res"]["stages"]
        assert ("EXECUTE" in stages and stages["EXECUTE"] == "pass") == body["ok"]
        return body["result"] if body["ok"] else Code(body["error"]["code"])

    def room(self, who: int) -> int:
        own = sum(owner == who for owner, _, _ in self.model.values())
        child = sum(owner == 1 for owner, _, _ in self.model.values())
        return 4 - child if who == 1 else 12 - 4 - (own if who == 0 else 0)

    def may(self, who: int, ptr: int, version: int) -> Code | None:
        if ptr not in self.model:
            return Code.NOT_FOUND
        owner, now, _ = self.model[ptr]
        if owner != who:
            return Code.CAP_MISSING
        return Code.CONFLICT if version not in (0, now) else None

    @rule(who=st.integers(0, 1), n=VALUES)
    def alloc(self, who: int, n: int) -> None:
        got = self.call(who, ALLOC, type="small", value={"n": n})
        if n > 9:
            assert got == Code.SCHEMA_INVALID
        elif self.room(who) <= 0:
            assert got == Code.BUDGET_EXCEEDED
        else:
            assert isinstance(got, dict)
            assert got["ptr"] not in self.model
            self.model[got["ptr"]] = (who, 1, n)

    @rule(who=st.integers(0, 1), ptr=PTRS, version=st.integers(0, 4), n=VALUES)
    def write(self, who: int, ptr: int, version: int, n: int) -> None:
        patch = [
            {"op": "test", "path": "/n", "value": self.model.get(ptr, (0, 0, 0))[2]},
            {"op": "set", "path": "/n", "value": n},
        ]
        got = self.call(who, WRITE, ptr=ptr, patch=patch, expected_version=version)
        expected = self.may(who, ptr, version) or (Code.SCHEMA_INVALID if n > 9 else None)
        if expected is not None:
            assert got == expected
        else:
            owner, now, _ = self.model[ptr]
            assert got == {"version": now + 1}
            self.model[ptr] = (owner, now + 1, n)

    @rule(who=st.integers(0, 1), ptr=PTRS, version=st.integers(0, 3))
    def delete(self, who: int, ptr: int, version: int) -> None:
        got = self.call(who, DELETE, ptr=ptr, expected_version=version)
        expected = self.may(who, ptr, version)
        if expected is not None:
            assert got == expected
        else:
            assert got == {"deleted": True}
            del self.model[ptr]

    @rule(who=st.integers(0, 1), ptr=PTRS, n=VALUES)
    def batch(self, who: int, ptr: int, n: int) -> None:
        """All or nothing: an object, and a change of another one."""
        ptr = ptr if ptr in self.model else 1000  # the next number is the new object's own, which the batch may change
        operations = [
            {"op": "alloc", "type": "small", "value": {"n": 1}},
            {"op": "write", "ptr": ptr, "patch": [{"op": "set", "path": "/n", "value": n}]},
        ]
        got = self.call(who, BATCH, operations=operations)
        expected = self.may(who, ptr, 0) or (Code.SCHEMA_INVALID if n > 9 else None)
        if self.room(who) <= 0:
            assert got in (Code.BUDGET_EXCEEDED, expected)
        elif expected is not None:
            assert got == expected
        else:
            assert isinstance(got, dict)
            self.model[got["results"][0]["ptr"]] = (who, 1, 1)
            owner, now, _ = self.model[ptr]
            self.model[ptr] = (owner, now + 1, n)

    @rule(request=st.binary(max_size=20))
    def nonsense(self, request: bytes) -> None:
        self.calls += 1
        self.box.raw(ALLOC, request, self.agents[0])

    @invariant()
    def the_heap_is_the_models(self) -> None:
        for who, agent in enumerate(self.agents):
            objects = self.box.store.objects(agent, type=None, after=0, limit=100)
            found = {o.ptr: (who, o.version, json.loads(o.value)["n"]) for o in objects}
            assert found == {ptr: item for ptr, item in self.model.items() if item[0] == who}
            ledger: Ledger = self.box.kernel.ledger(agent)
            assert ledger.used("heap_objects") == len(found)
            assert ledger.status("heap_objects").reserved == (4 if who == 0 else 0)
        sizes = sum(self.box.store.held(agent)[1] for agent in self.agents)
        assert self.box.kernel.budgets.used("heap_bytes") == sizes

    def teardown(self) -> None:
        self.box.close()
        found = verify(self.directory / "audit.jsonl", self.directory / "checkpoints")
        assert found.ok, found
        assert found.entries == self.calls
        shutil.rmtree(self.directory)


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
