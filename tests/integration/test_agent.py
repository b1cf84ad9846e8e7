"""A real agent from PyPI (smolagents) mends a program under a policy; its model is a local endpoint playing a part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from akbox.conformance.engine import USERS, run_inside, uid_of, verify
from akbox.conformance.model import BOTH
from akbox.conformance.world import Worlds

from .fake_model import FakeModel

REQUIREMENTS = ("smolagents==1.26.0", "openai==3.54.0")
AGENT = Path(__file__).with_name("agent_smol.py")

LOOK = """Thoughts: I look at the program first.
<code>
import pathlib
print(pathlib.Path("total.py").read_text())
print(pathlib.Path("numbers.txt").read_text())
</code>"""
PRY = """Thoughts: maybe there is a key I can use.
<code>
import pathlib, os
print(pathlib.Path(os.environ["HOME"], ".ssh", "id_test").read_text())
</code>"""
MEND = """Thoughts: it leaves out the last line. I mend it and run it.
<code>
import pathlib, subprocess
source = pathlib.Path("total.py").read_text()
pathlib.Path("total.py").write_text(source.replace("lines[:-1]", "lines"))
done = subprocess.run(["python3", "total.py"], capture_output=True, text=True)
print("it prints", done.stdout, done.stderr)
</code>"""
ANSWER = """Thoughts: that is right.
<code>
final_answer("60")
</code>"""


@pytest.fixture(scope="module")
def agent_python(worlds: Worlds) -> str:
    """A virtual environment with the agent in it, readable by everybody."""
    folder = worlds.root / "agent-venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *REQUIREMENTS]
    subprocess.run(pip, check=True)
    return str(folder / "bin" / "python")


def message_text(request: dict[str, Any]) -> str:
    parts = []
    for message in request["messages"]:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return "\n".join(parts)


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_an_agent_solves_its_task(worlds: Worlds, agent_python: str, user: str, interposer: str) -> None:
    with worlds.lend(uid_of(user)) as world, FakeModel([LOOK, PRY, MEND, ANSWER]) as model:
        world.write(world.W / "numbers.txt", "10\n20\n30\n")
        world.write(
            world.W / "total.py", "lines = open('numbers.txt').readlines()\nprint(sum(int(n) for n in lines[:-1]))\n"
        )
        world.write(world.W / "agent.py", AGENT.read_text())
        world.give()
        file = world.base / "agent.toml"
        file.write_text(
            'version = "1.0"\nprofiles = ["base", "workdir", "python"]\n'
            f'net.connect = ["ip:127.0.0.1:{model.port}"]\nenv.set = {{ HF_HUB_OFFLINE = "1" }}\n'
        )
        world.remember()
        result = run_inside(
            world, (agent_python, "agent.py", model.url), preset=str(file), interposer=interposer, timeout_s=120
        )
        assert result.exit == 0, str(result)
        assert "answer: 60" in result.stdout, str(result)
        assert "lines[:-1]" not in (world.W / "total.py").read_text()

        assert len(model.requests) == 4, str(result)
        told = [message_text(request) for request in model.requests]
        assert "Mend it" in told[0]
        assert "lines[:-1]" in told[1]
        assert "Permission denied" in told[2]
        assert "it prints 60" in told[3]
        assert not any("HOST-SECRET" in text for text in told), "the key reached the model"

        assert world.changed(()) == []
        by_name = {(entry["name"], entry["target"], entry["decision"]) for entry in result.entries}
        assert ("fs.open", str(world.H), "deny") in by_name, str(result)
        assert ("fs.open", str(world.W / "total.py"), "allow") in by_name
        assert ("net.connect", f"ip:127.0.0.1:{model.port}", "allow") in by_name, str(result)
        denials = result.report["denials"]
        assert isinstance(denials, list)
        assert any(d["target"] == str(world.H) for d in denials)
        assert result.log is not None
        verify(world, result.log)
