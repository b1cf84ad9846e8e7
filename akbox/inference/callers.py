"""Who calls: the agent whose capability the API key is, and what that capability covers.

A key is a token of the run (akbox/kernel/capability.py), of type INFERENCE, given to one agent. It ends with the agent
and with the run, by revocation, and by whatever its holder has narrowed it to: models, time, rate.
"""

from __future__ import annotations

import msgspec

from akbox.kernel.agents import Agent
from akbox.kernel.capability import Type, decode
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId
from akbox.kernel.kernel import Kernel


class Caller(msgspec.Struct, frozen=True):
    """`token` "": a call of the agent itself (INFERENCE), whose capabilities the pipeline has checked."""

    agent: AgentId
    token: str = ""


def identify(kernel: Kernel, token: str) -> Caller:
    """Raises CallError: CAP_MISSING, CAP_INVALID, CAP_RUN_MISMATCH, CAP_EXPIRED, CAP_REVOKED, CAP_SCOPE."""
    if not token:
        raise CallError(Code.CAP_MISSING, "no token")
    given = [caveat.agent for caveat in decode(token).caveats if caveat.agent is not None]
    subject = bytes.fromhex(given[0]) if given else kernel.root
    checked = kernel.caps.verify(token, agent=subject)  # a holder may add another name, which then is nobody's
    if Type(checked.capability.type) not in (Type.INFERENCE, Type.ADMIN):
        raise CallError(Code.CAP_SCOPE, "the capability is not for models")
    agent = _agent(kernel, subject)
    if not agent.alive:
        raise CallError(Code.CAP_REVOKED, f"agent {agent.name} has ended")
    return Caller(agent.id, token)


def admit(kernel: Kernel, caller: Caller, target: str) -> None:
    """Takes one use of the token for this model. Raises CallError: as `identify`, and CAP_RATE."""
    if caller.token:
        kernel.caps.check(caller.token, Type.INFERENCE, target, "invoke", agent=caller.agent)


def _agent(kernel: Kernel, agent_id: AgentId) -> Agent:
    try:
        return kernel.agent(agent_id)
    except KeyError:
        raise CallError(Code.CAP_INVALID, "the capability is of no agent of this run") from None
