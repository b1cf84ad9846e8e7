"""An MCP server for tests, without any package: `add`, `cat` (reads a file), `slow`, `exit`. What `add` says of itself
is in the file named by its first argument."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def call(name: str, arguments: dict[str, object]) -> dict[str, object]:
    if name == "add":
        return {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}]}  # type: ignore[operator]
    if name == "cat":
        try:
            text, failed = Path(str(arguments["path"])).read_text(), False
        except OSError as error:
            text, failed = str(error), True
        return {"content": [{"type": "text", "text": text}], "isError": failed}
    if name == "exit":
        sys.exit(3)
    while True:
        time.sleep(1)


def main() -> None:
    said = Path(sys.argv[1]).read_text()
    schema = {"type": "object"}
    tools = [{"name": "add", "description": said, "inputSchema": schema}]
    tools += [{"name": name, "description": name, "inputSchema": schema} for name in ("cat", "slow", "exit")]
    for line in sys.stdin:
        message = json.loads(line)
        results = {
            "initialize": {
                "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                "serverInfo": {"name": "t", "version": "1"},
            },
            "tools/list": {"tools": tools},
        }  # fmt: skip
        if "id" not in message or "method" not in message:
            continue
        result = results.get(message["method"]) or call(message["params"]["name"], message["params"]["arguments"])
        print("not a message", flush=True)
        print(json.dumps({"jsonrpc": "2.0", "id": 999, "result": {}}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "roots/list"}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


main()
