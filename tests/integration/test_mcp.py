"""`akbox mcp` inside a sandbox, spoken to by the official client: what it lists, what it calls, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

import akbox
from akbox.conformance.engine import USERS, akbox_command, as_user, environment, logs, uid_of, verify
from akbox.conformance.world import World, Worlds

POLICY = """
version = "1.0"
profiles = ["base", "workdir", "python"]
[tools]
allow = ["file_*", "json_query"]
deny = ["file_list"]
[wasm]
hostcalls = ["fs_*"]
[fs]
read = ["{root}", "{root}/akbox/**"]
deny = ["**/.env"]
"""


def server(world: World) -> list[str]:
    """The command that an MCP client starts. The checkout's packages must be readable, as an installed akbox's are."""
    policy = world.base / "mcp.toml"
    policy.write_text(POLICY.format(root=Path(akbox.__file__).parents[1]))
    program = akbox_command()
    return [*as_user(world.uid), *program, "run", "-p", str(policy), "-q", "--", *program, "mcp"]


def talk(world: World, work: Callable[[ClientSession], Awaitable[None]]) -> None:
    async def run() -> None:
        command = server(world)
        world.give()
        parameters = StdioServerParameters(
            command=command[0], args=command[1:], env=environment(world), cwd=str(world.W)
        )
        async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            await work(session)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("user", USERS)
def test_the_official_client(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        world.write(world.W / "notes.txt", "from a file")
        world.write(world.W / ".env", "KEY=1")
        seen: dict[str, Any] = {}

        async def work(session: ClientSession) -> None:
            listed = await session.list_tools()
            seen["names"] = [tool.name for tool in listed.tools]

            async def call(name: str, **arguments: Any) -> tuple[bool, Any]:
                result: Any = await session.call_tool(name, arguments)
                dumped = result.model_dump(by_alias=True)
                return dumped["isError"], json.loads(dumped["content"][0]["text"])

            seen["read"] = await call("file_read", path="notes.txt")
            seen["secret"] = await call("file_read", path=".env")
            seen["denied"] = await call("file_list", path=".")
            seen["unknown"] = await call("nothing")
            seen["schema"] = await call("file_read", path=7)
            seen["query"] = await call("json_query", value=[1, 2], path="[1]")
            seen["alloc"] = await call("ak_alloc", type="t", value={"n": 1})
            seen["object"] = await call("ak_read", ptr=1)
            seen["budget"] = await call("ak_budget", resource="tool_calls")
            seen["may"] = await call("ak_authorize", op="fs.read", target=str(world.W / ".env"))

        talk(world, work)
        assert seen["names"][:3] == ["file_read", "file_write", "json_query"]
        assert all(name.startswith("ak_") for name in seen["names"][3:])
        assert seen["read"][1]["content"] == "from a file"
        assert (seen["secret"][0], seen["secret"][1]["error"]) == (True, "POLICY_DENY")
        assert (seen["denied"][0], seen["denied"][1]["missing_cap"]) == (True, "tools.allow")
        assert (seen["unknown"][0], seen["unknown"][1]["error"]) == (True, "POLICY_DENY")
        assert (seen["schema"][0], seen["schema"][1]["error"]) == (True, "SCHEMA_INVALID")
        assert seen["query"] == (False, {"found": True, "value": 2})
        assert seen["alloc"][1] == {"ptr": 1, "version": 1}
        assert seen["object"][1]["value"] == {"n": 1}
        assert seen["budget"][1]["used"] == 2
        assert seen["may"][1]["allowed"] is False
        log = logs(world)[-1]
        verify(world, log)
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        called = [(e["target"], e["decision"]) for e in entries if e["name"] == "CALL"]
        assert ("tool:file_read", "allow") in called
        assert ("tool:file_list", "deny") in called
