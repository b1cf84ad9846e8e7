"""The agents of a run as a tree: who there is, by id and by name, how one is added and what its end leaves behind.

What an agent may do is its layers' (agents.py) and the pipeline's; starting and ending processes is the target's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from akbox.kernel.agents import Agent, Layer
from akbox.kernel.budget import BudgetExceeded, Ledger
from akbox.kernel.codes import CallError, Code
from akbox.kernel.digest import sha256
from akbox.kernel.effect import AgentId
from akbox.kernel.taint import TAINT_UNTRUSTED

if TYPE_CHECKING:
    from akbox.kernel.kernel import Kernel
    from akbox.policy.compile import CompiledPolicy

DEFAULT_MAX_AGENTS, MAX_AGENTS_EVER = 64, 10_000
MAX_DEPTH = 12  # each level is one more Landlock domain, of which the kernel stacks 16


class AgentTree:
    """Thread-safe. Agents stay known after their end, so that their ids mean something in answers and in the log."""

    def __init__(self, kernel: Kernel, root: AgentId, budgets: Ledger) -> None:
        self._kernel = kernel
        seed = sha256(kernel.run_id + b"root")
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._agents: dict[AgentId, Agent] = {
            root: Agent(root, "root", Layer(kernel.policy, seed), budgets, None, seed)
        }

    def get(self, agent_id: AgentId) -> Agent:
        """Raises KeyError for an id that is no agent of this run."""
        return self._agents[agent_id]

    def all(self) -> list[Agent]:
        """Everybody there has been, the first agent first."""
        with self._lock:
            return list(self._agents.values())

    def layers(self) -> set[Layer]:
        """Every policy that is in force for somebody."""
        return {layer for agent in self.all() for layer in agent.layers}

    def name(self, agent_id: AgentId) -> str:
        """ "" for an id that is no agent of this run."""
        with self._lock:
            found = self._agents.get(agent_id)
        return "" if found is None else found.name

    def find(self, who: str) -> Agent:
        """A living agent by id (32 hex digits) or name. Raises CallError(NO_RECIPIENT)."""
        known = self.all()
        named = [a for a in known if a.id.hex() == who] or [a for a in known if a.name == who]
        found = next((a for a in named if a.alive), None)
        if found is None:
            raise CallError(Code.NO_RECIPIENT, f"there is no agent {who[:64]!r}")
        return found

    def below(self, top: Agent) -> list[Agent]:
        """The agent and everything it has started, directly or not."""
        return [a for a in self.all() if a.is_below(top)]

    def described(self) -> list[dict[str, Any]]:
        """What QUERY `agents` says."""
        return [
            {"id": a.id.hex(), "name": a.name, "parent": a.parent.id.hex() if a.parent else None, "state": a.state}
            for a in self.all()
        ]

    @property
    def most(self) -> int:
        """How many may live at once, the first one not counted."""
        stated = [part.spawn.max_agents for _, part in self._kernel.policy.parts if part.spawn.max_agents is not None]
        return stated[0] if stated else DEFAULT_MAX_AGENTS

    def add(
        self,
        parent: AgentId,
        name: str | None,
        policy: CompiledPolicy | None,
        limits: Mapping[str, int | None],
    ) -> Agent:
        """A child agent: within its parent's policy (`policy` narrows it further), its limits set aside in the parent's
        ledger. Raises CallError: NAME_EXISTS, QUOTA_EXCEEDED, BUDGET_EXCEEDED, CAP_REVOKED."""
        agent_id = os.urandom(16)
        seed = sha256(self._kernel.run_id + agent_id)
        with self._lock:
            above = self._agents[parent]
            living = [a for a in self._agents.values() if a.alive]
            most = self.most
            if not above.alive:
                raise CallError(Code.CAP_REVOKED, f"agent {above.name} has ended")
            if len(living) > most:
                raise CallError(
                    Code.QUOTA_EXCEEDED, f"the run has as many agents as it may have ({most} besides the first)",
                    missing_cap="spawn.max_agents", stage="POLICY", suggested_fix="raise spawn.max_agents",
                )  # fmt: skip
            if len(self._agents) > MAX_AGENTS_EVER:
                raise CallError(Code.QUOTA_EXCEEDED, f"a run has at most {MAX_AGENTS_EVER} agents", stage="POLICY")
            if above.depth >= MAX_DEPTH:
                raise CallError(Code.QUOTA_EXCEEDED, f"agents are at most {MAX_DEPTH} deep", stage="POLICY")
            name = name or f"agent-{len(self._agents)}"
            if any(a.name == name for a in living):
                raise CallError(Code.NAME_EXISTS, f"there is an agent {name!r} already")
            try:
                ledger = above.ledger.child(limits)
            except BudgetExceeded as error:
                raise CallError(
                    Code.BUDGET_EXCEEDED, f"the parent has not that much left: {error}", stage="BUDGET",
                    missing_cap=f"budgets.{error.name}", details={"budget": error.name, "remaining": error.remaining},
                ) from error  # fmt: skip
            layer = None if policy is None else Layer(policy, seed)
            made = self._agents[agent_id] = Agent(agent_id, name, layer, ledger, above, seed)
        self._kernel.log.open_side(agent_id, made.rule_texts)
        return made

    def end(self, agent: Agent, state: str = "ended") -> None:
        """The agent's end: what it held is revoked, its objects are its parent's, what it did not spend is free again;
        as long as some below it live on, the last two wait for their end. Safe to call twice."""
        with self._lock:
            if not agent.alive or agent.parent is None:
                return
            agent.state = state
        self._kernel.log.close_side(agent.id)
        why = f"agent {agent.name} has ended"
        self._kernel.caps.revoke(agent.heap_tid, why)
        self._kernel.caps.revoke(agent.ipc_tid, why)
        self._retire(agent)
        self._kernel.doorbell.ring()

    def _retire(self, agent: Agent) -> None:
        """What others may still need of an ended agent, its policy and its budget, goes with the last one below it."""
        with self._lock:
            busy = any(a.alive and a.is_below(agent) for a in self._agents.values())
            if agent.alive or agent.retired or busy or agent.parent is None:
                return
            agent.retired = True
        if agent.layer is not None:
            for held in agent.layer.held.values():
                agent.layer.end(held.rule or 0)
        with self._kernel.store.transaction() as tx:
            tx.inherit(agent.id, agent.parent.id, taint=TAINT_UNTRUSTED)
        agent.ledger.close()
        agent.forget()
        self._retire(agent.parent)
