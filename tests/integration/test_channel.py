"""The other SDKs in a real sandbox: Node.js and Python over the channel, C by the doors."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import akbox

ROOT = Path(__file__).parents[2]
NODE = """
const { AuthorityKernel, AuthorityKernelError, Channel } = require(process.argv[1]);
(async () => {
  const ak = new AuthorityKernel();
  const out = {};
  const handle = await ak.alloc('counter', { value: 0, text: 'é' });
  out.version = await ak.write(handle, [{ op: 'set', path: '/value', value: 1 }]);
  out.value = await ak.read(handle);
  out.many = await Promise.all([...Array(20).keys()].map((n) => ak.alloc('t', n)));
  out.same = await Promise.all(out.many.map((h) => ak.read(h)));
  out.authorized = await ak.authorize('READ', '/etc/shadow');
  out.conflict = await ak.write(handle, [], 1).catch((e) => [e.name, e.code, e.details.version]);
  out.missing = await ak.callTool('nope').catch((e) => e instanceof AuthorityKernelError);
  out.budget = (await ak.budgetStatus('heap_objects')).used;
  out.large = (await ak.read(await ak.alloc('t', 'x'.repeat(900000)))).length;
  await ak.send('root', { n: 1 });
  out.mail = (await ak.recv(1, 1000))[0].payload;
  await ak.respond('done');
  out.stranger = await new Channel(process.env.AKBOX_CHANNEL, 'f'.repeat(64)).call('COMMIT').catch((e) => e.errorName);
  out.last = (await ak.auditQuery({ op: 'RESPOND' })).length;
  console.log(JSON.stringify(out));
})().catch((e) => { console.error(e); process.exit(1); });
"""


def policy(tmp_path: Path, *read: Path) -> akbox.Policy:
    paths = ", ".join(f'"{p}/**"' for p in (tmp_path, *read))
    profiles = '["node", "python", "base"]'
    run = f'exec = ["/usr/**", "/lib*/**", "{tmp_path}/**"]'
    text = f'version = "1.0"\nprofiles = {profiles}\n[fs]\nread = [{paths}]\n{run}\n'
    return akbox.Policy.parse(text)


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_node(tmp_path: Path, interposer: str) -> None:
    assert shutil.which("node"), "install nodejs"
    sandbox = akbox.Sandbox(
        policy(tmp_path, ROOT / "sdk"), cwd=tmp_path, state_dir=tmp_path / "s", interposer=interposer
    )
    result = sandbox.run(["node", "-e", NODE, str(ROOT / "sdk/node/index.js")], timeout=100)
    assert result.exit_code == 0, (result.stderr, result)
    out = json.loads(result.stdout)
    assert out.pop("many")[19] == {"ptr": 21, "version": 1}
    assert out == {
        "version": 2, "value": {"value": 1, "text": "é"}, "same": list(range(20)), "authorized": False,
        "conflict": ["ConflictError", -4400, 2], "missing": True, "budget": 21, "large": 900_000, "mail": {"n": 1},
        "stranger": "CAP_INVALID", "last": 1,
    }  # fmt: skip


def test_node_outside(tmp_path: Path) -> None:
    code = "new (require(process.argv[1]).AuthorityKernel)().commit().catch((e) => console.log(e.name, e.message))"
    done = subprocess.run(
        ["node", "-e", code, str(ROOT / "sdk/node/index.js")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin"},
    )
    assert "NotUnderAkboxError" in done.stdout
    assert "akbox run" in done.stdout


PYTHON = """
import json
from authority_nanos import AuthorityKernel, errors
from authority_nanos.channel import Channel
ak = AuthorityKernel(Channel())
h = ak.alloc("t", {"a": 1})
out = {"version": ak.write(h, [{"op": "set", "path": "/a", "value": 2}]), "value": ak.read(h).decode()}
try: ak.read(99)
except errors.NotFoundError as e: out["error"] = [e.name, e.code]
print(json.dumps(out))
"""


def test_python_over_the_channel(tmp_path: Path) -> None:
    sandbox = akbox.Sandbox(policy(tmp_path), cwd=tmp_path, state_dir=tmp_path / "s")
    result = sandbox.run(["/usr/bin/python3", "-c", PYTHON], timeout=100)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"version": 2, "value": '{"a":2}', "error": ["NOT_FOUND", -4407]}


C = r"""
#include "ak.h"
#include <stdio.h>
int main(void)
{
	char small[8], reply[4096];
	long n = ak_call(AK_ALLOC, "{\"type\":\"t\",\"value\":\"hello\"}", reply, sizeof reply);
	printf("%ld %s\n", n, reply);
	n = ak_call(AK_READ, "{\"ptr\":1}", small, sizeof small);
	printf("%d\n", n == -EMSGSIZE);
	n = ak_fetch(AK_READ, reply, sizeof reply);
	printf("%d %s\n", n > 0, reply);
	n = ak_call(AK_READ, "{\"ptr\":9}", reply, sizeof reply);
	printf("%d %d\n", n == -ENOENT, strstr(reply, "NOT_FOUND") != NULL);
	return 0;
}
"""


def test_c(tmp_path: Path) -> None:
    (tmp_path / "agent.c").write_text(C)
    command = [
        "gcc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{ROOT}/sdk/c",
        "-o",
        str(tmp_path / "agent"),
        "agent.c",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    outside = subprocess.run([str(tmp_path / "agent")], capture_output=True, text=True, check=True).stdout
    assert outside.startswith("-38 ")  # ENOSYS
    result = akbox.Sandbox(policy(tmp_path), cwd=tmp_path, state_dir=tmp_path / "s").run([str(tmp_path / "agent")])
    assert result.stdout.decode().splitlines() == [
        '42 {"ok":true,"result":{"ptr":1,"version":1}}', "1",
        '1 {"ok":true,"result":{"ptr":1,"type":"t","version":1,"value":"hello","taint":0}}', "1 1",
    ]  # fmt: skip
