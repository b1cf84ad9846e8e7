"""Programs that know nothing of proxies reach the names that a policy lists, and no other: real clients against
servers on loopback, whose names a DNS server of the test's own knows. Both sides in each case: one listed name, one
that is not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dns.message
import pytest

from akbox.conformance import services as kit
from akbox.conformance.engine import (
    Result,
    akbox_command,
    as_user,
    environment,
    has_entry,
    policy_text,
    run_inside,
    uid_of,
    verify,
)
from akbox.conformance.model import Entry
from akbox.conformance.world import World, Worlds

NAMES = {f"{name}.net.test": {"A": ["127.0.0.1"]} for name in ("listed", "other")}
PYTHON_CLIENTS = ("requests==2.34.2", "httpx==0.28.1", "aiohttp==3.14.0")


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass


class Servers:
    """An HTTP and an HTTPS server for one directory, and the kit's DNS."""

    def __init__(self, folder: Path, names: kit.Services) -> None:
        self.names = names
        self.www = folder / "www"
        self.www.mkdir(parents=True)
        self.certificate = folder / "ca.pem"
        make_certificate(self.certificate, folder / "key.pem")
        handler = partial(Quiet, directory=str(self.www))
        self.plain = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.secure = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        self.secure.socket = context.wrap_socket(self.secure.socket, server_side=True, do_handshake_on_connect=False)
        self.http, self.https = self.plain.server_address[1], self.secure.server_address[1]
        self.threads = [threading.Thread(target=s.serve_forever, daemon=True) for s in (self.plain, self.secure)]

    def close(self) -> None:
        for s in (self.plain, self.secure):
            s.shutdown()
            s.server_close()
        for thread in self.threads:
            thread.join()


def make_certificate(certificate: Path, key: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "30", "-subj", "/CN=akbox test"),
            *("-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in NAMES)),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def names() -> Iterator[kit.Services]:
    kit.ZONE.update(NAMES)
    with kit.Services() as made:
        yield made


@pytest.fixture(scope="module")
def servers(worlds: Worlds, names: kit.Services) -> Iterator[Servers]:
    folder = worlds.root / "net"
    made = Servers(folder, names)
    (made.www / "index.html").write_text("hello\n")
    repository(made.www)
    package_index(made.www)
    for thread in made.threads:
        thread.start()
    yield made
    made.close()


def repository(www: Path) -> None:
    """A bare repository that any web server can serve (git's "dumb" protocol)."""
    work = www / "work"
    environment = {"PATH": os.environ["PATH"], "HOME": str(www), "GIT_CONFIG_NOSYSTEM": "1"}
    run = partial(subprocess.run, check=True, capture_output=True, env=environment)
    run(["git", "init", "-q", "-b", "main", work])
    (work / "file.txt").write_text("content\n")
    run(["git", "-C", work, "add", "-A"])
    run(["git", "-C", work, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "first"])
    run(["git", "clone", "-q", "--bare", work, www / "repo.git"])
    run(["git", "-C", www / "repo.git", "update-server-info"])
    shutil.rmtree(work)


def package_index(www: Path) -> None:
    """A Python index and an npm registry with one package each."""
    from . import programs

    pip = www / "simple" / "kit-demo"
    pip.mkdir(parents=True)
    programs.wheel(pip)
    (pip / "index.html").write_text('<a href="kit_demo-1.0-py3-none-any.whl">kit_demo-1.0-py3-none-any.whl</a>\n')
    source = www / "npm-source"
    source.mkdir()
    (source / "package.json").write_text('{"name": "kit-demo", "version": "1.0.0", "main": "index.js"}')
    (source / "index.js").write_text("module.exports = 42;\n")
    subprocess.run(["npm", "pack", "--silent"], cwd=source, check=True, capture_output=True)
    (source / "kit-demo-1.0.0.tgz").rename(www / "kit-demo-1.0.0.tgz")


@dataclass(frozen=True)
class Client:
    """`command` with {N} the name, {HTTP} and {HTTPS} the ports; `says` is in the output when it worked."""

    id: str
    command: str
    says: str
    interposer: str = "auto"
    user: str = "user"
    port: str = "HTTP"


CLIENTS = [
    Client("curl", "curl -sS -m10 http://{N}:{HTTP}/", "hello"),
    Client("curl-ptrace", "curl -sS -m10 http://{N}:{HTTP}/", "hello", "ptrace", "root"),
    Client("curl-https", "curl -sS -m10 --cacert {CA} https://{N}:{HTTPS}/", "hello", port="HTTPS"),
    Client("wget", "wget -q -T10 -t1 -O- http://{N}:{HTTP}/", "hello", user="root"),
    Client(
        "git-https",
        "git -c http.sslCAInfo={CA} clone -q https://{N}:{HTTPS}/repo.git c && cat c/file.txt",
        "content",
        port="HTTPS",
    ),
    Client(
        "urllib",
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{N}:{HTTP}/\").read())'",
        "hello",
        "ptrace",
    ),
    Client("node-fetch", "node -e 'fetch(\"http://{N}:{HTTP}/\").then(r => r.text()).then(console.log)'", "hello"),
    Client("go", 'hey -n 1 -c 1 -disable-keepalive http://{N}:{HTTP}/ | grep -F "[200]"', "[200]"),
    Client(
        "npm",
        "npm install --silent --no-audit --no-fund --no-update-notifier --fetch-retries 0 --cache $TMPDIR/npm"
        " --registry http://{N}:{HTTP}/ http://{N}:{HTTP}/kit-demo-1.0.0.tgz && node -p 'require(\"kit-demo\")'",
        "42",
    ),
]
# One test, so that only one process of the suite makes them a virtual environment.
PYTHON = [
    Client("requests", "{PY} -c 'import requests; print(requests.get(\"http://{N}:{HTTP}/\").text)'", "hello"),
    Client("httpx", "{PY} -c 'import httpx; print(httpx.get(\"http://{N}:{HTTP}/\").text)'", "hello", user="root"),
    Client(
        "aiohttp",
        "{PY} -c 'import aiohttp, asyncio\nasync def go():\n  async with aiohttp.ClientSession() as s:\n"
        '    async with s.get("http://{N}:{HTTP}/") as r: print(await r.text())\nasyncio.run(go())\'',
        "hello",
    ),
    Client(
        "pip",
        "python3 -m venv --without-pip v && {PY} -m pip --python v/bin/python install -q --no-cache-dir"
        " --disable-pip-version-check --retries 0 -i http://{N}:{HTTP}/simple --trusted-host {N} kit-demo"
        " && v/bin/kit-demo",
        "answer 42",
    ),
]


@pytest.fixture(scope="module")
def client_python(worlds: Worlds) -> str:
    """The system's Python with the HTTP clients on its path, readable by everybody."""
    folder = worlds.root / "clients"
    options = ["-q", "--disable-pip-version-check", "--no-compile", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *PYTHON_CLIENTS, "pip"], check=True)
    return f"env PYTHONPATH={folder} /usr/bin/python3"


@contextlib.contextmanager
def lent(worlds: Worlds, names: kit.Services, user: str) -> Iterator[World]:
    """A world that asks this module's DNS server."""
    with worlds.lend(uid_of(user)) as world:
        world.services = names
        yield world


def policy(world: World, *connect: str) -> dict[str, object]:
    """What the kit's policy lacks for such programs, and the endpoints."""
    root = str(world.base.parent)
    return {
        "fs.read": ["/etc/**", "/proc/**", "/sys/**", f"{root}/net/ca.pem", f"{root}/clients/**", "${tmp}/**"],
        "fs.write": ["${tmp}/**", "/proc/self/comm"],
        "fs.exec": [f"{root}/clients/**", "{W}/**"],
        "net.connect": list(connect),
        "net.private": ["listed.net.test"],
    }


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
def test_client(worlds: Worlds, servers: Servers, client: Client) -> None:
    check_client(worlds, servers, client, "python3")


def test_python_clients(worlds: Worlds, servers: Servers, client_python: str) -> None:
    for client in PYTHON:
        check_client(worlds, servers, client, client_python)


def check_client(worlds: Worlds, servers: Servers, client: Client, python: str) -> None:
    port = servers.http if client.port == "HTTP" else servers.https
    places = {"HTTP": servers.http, "HTTPS": servers.https, "CA": servers.certificate, "PY": python}
    with lent(worlds, servers.names, client.user) as world:

        def run(name: str) -> Result:
            command = client.command
            for place, value in {**places, "N": name}.items():
                command = command.replace(f"{{{place}}}", str(value))
            endpoints = policy(world, f"dns:listed.net.test:{port}")
            return run_inside(
                world, ("sh", "-c", command), interposer=client.interposer, policy=endpoints, timeout_s=120
            )

        refused = run("other.net.test")
        assert refused.exit != 0, str(refused)
        assert has_entry(refused, world, Entry("net.dns", "other.net.test")), str(refused)
        worked = run("listed.net.test")
        assert worked.exit == 0, str(worked)
        assert client.says in worked.stdout, str(worked)
        assert has_entry(worked, world, Entry("net.connect", f"dns:listed.net.test:{port}", "allow")), str(worked)
        assert worked.log is not None
        verify(world, worked.log)


@contextlib.contextmanager
def running(argv: list[str], ready: str, **options: object) -> Iterator[None]:
    """A server that says on standard error when it listens; killed at the end."""
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]
    reader: threading.Thread | None = None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if ready in line:
                break
        else:
            raise AssertionError(f"{argv[0]} ended: {said}")
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        yield
    finally:
        process.kill()
        process.wait()
        if reader is not None:
            reader.join()


def reach(world: World, command: str, port: int, says: str, interposer: str) -> None:
    """`command` works to the listed name, and not to the other."""
    for name in ("other.net.test", "listed.net.test"):
        argv = ("sh", "-c", command.replace("{N}", name))
        endpoints = policy(world, f"dns:listed.net.test:{port}")
        result = run_inside(world, argv, interposer=interposer, policy=endpoints, timeout_s=60)
        if name.startswith("listed"):
            assert result.exit == 0, str(result)
            assert says in result.stdout, str(result)
        else:
            assert result.exit != 0, str(result)
            assert has_entry(result, world, Entry("net.dns", name)), str(result)


def test_git_over_ssh(worlds: Worlds, servers: Servers) -> None:
    port = kit.free_port()
    with lent(worlds, servers.names, "user") as world:
        folder = world.base / "sshd"
        folder.mkdir()
        os.chown(folder, world.uid, world.uid)
        for key in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
            os.chown(folder / key, world.uid, world.uid)
        shutil.copy(folder / "client", world.W / "key")
        shutil.copy(folder / "client.pub", folder / "authorized")
        os.chown(world.W / "key", world.uid, world.uid)
        (folder / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPidFile none\n"
            f"ForceCommand git -c safe.directory=* upload-pack {servers.www}/repo.git\n"
        )
        # The account is whoever runs the tests: it needs a shell, by which sshd runs the command.
        account = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root wants it; packages make it when the service starts
        ssh = (
            f"ssh -F none -i {world.W}/key -p {port} -l {account} -o StrictHostKeyChecking=no -o IdentitiesOnly=yes"
            " -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
        )
        command = f"GIT_SSH_COMMAND='{ssh}' git clone -q {{N}}:repo.git c && cat c/file.txt"
        with running(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")], "listening on"):
            reach(world, command, port, "content", "auto")


def test_psql(worlds: Worlds, names: kit.Services, tmp_path: Path) -> None:
    del tmp_path
    port = kit.free_port()
    initdb = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1]
    with lent(worlds, names, "user") as world:
        folder = world.base / "pg"
        folder.mkdir()
        os.chown(folder, world.uid, world.uid)
        as_them = as_user(world.uid)
        quiet = {"check": True, "capture_output": True, "cwd": "/"}
        subprocess.run([*as_them, str(initdb), "-D", str(folder / "d"), "-A", "trust", "-U", "kit", "-N"], **quiet)  # type: ignore[call-overload]
        options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = [*as_them, str(initdb.with_name("postgres")), "-D", str(folder / "d"), *options]
        with running(server, "ready to accept connections", cwd="/"):
            command = f"psql -h {{N}} -p {port} -U kit -Atc 'select 6 * 7' postgres"
            reach(world, command, port, "42", "ptrace")


def test_redis_cli(worlds: Worlds, names: kit.Services) -> None:
    """The client is real, the server a few lines: what counts is how it gets there."""
    import socketserver

    class Pong(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                if line.strip().upper() == b"PING":
                    self.wfile.write(b"+PONG\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Pong) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            with lent(worlds, names, "user") as world:
                reach(world, f"redis-cli -h {{N}} -p {port} PING", port, "PONG", "auto")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("user", "interposer"), [("user", "auto"), ("root", "ptrace")])
def test_the_name_in_tls_must_be_allowed(worlds: Worlds, servers: Servers, user: str, interposer: str) -> None:
    """Two names share an address; net.sni = "enforce" tells them apart, and lets what is not TLS pass elsewhere."""
    curl = f"curl -sS -m10 --cacert {servers.certificate}"
    fronted = f"{curl} --connect-to other.net.test:443:listed.net.test:{servers.https} https://other.net.test/"
    ends = [f"dns:listed.net.test:{port}" for port in (servers.http, servers.https)]
    with lent(worlds, servers.names, user) as world:
        without = run_inside(world, ("sh", "-c", fronted), policy=policy(world, *ends), interposer=interposer)
        assert "hello" in without.stdout, str(without)  # what it is for
        enforced = {**policy(world, *ends), "net.sni": "enforce"}
        refused = run_inside(world, ("sh", "-c", fronted), policy=enforced, interposer=interposer)
        assert refused.exit != 0, str(refused)
        assert has_entry(refused, world, Entry("net.connect", f"dns:other.net.test:{servers.https}")), str(refused)
        assert "net.sni" in refused.stderr, str(refused)
        both = f"{curl} https://listed.net.test:{servers.https}/ && {curl} http://listed.net.test:{servers.http}/"
        worked = run_inside(world, ("sh", "-c", both), policy=enforced, interposer=interposer)
        assert worked.stdout == "hello\nhello\n", str(worked)


def test_bytes_past_the_budget_are_cut_off(worlds: Worlds, servers: Servers) -> None:
    (servers.www / "big").write_bytes(bytes(3_000_000))
    curl = f"curl -sS -m10 http://listed.net.test:{servers.http}"
    command = f"{curl}/big | wc -c; {curl}/big | wc -c; {curl}/ || echo refused"
    with lent(worlds, servers.names, "user") as world:
        spent = {**policy(world, f"dns:listed.net.test:{servers.http}"), "budgets.bytes": 4_000_000}
        result = run_inside(world, ("sh", "-c", command), policy=spent)
        first, second, third = result.stdout.split()
        assert first == "3000000", str(result)
        assert 0 < int(second) < 1_000_000, str(result)
        assert third == "refused", str(result)
        assert has_entry(result, world, Entry("net.send", "budget:bytes")), str(result)
        assert has_entry(result, world, Entry("net.connect", f"dns:listed.net.test:{servers.http}")), str(result)
        udp = {**policy(world, "udp+ip:127.0.0.1:9"), "budgets.bytes": 4_000_000}
        send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
        uncounted = run_inside(world, ("python3", "-c", send), policy=udp)
        assert uncounted.exit != 0, str(uncounted)
        assert "cannot count this" in uncounted.stderr, str(uncounted)


PARALLEL = """
import asyncio, os
async def one(n):
    reader, writer = await asyncio.open_connection('listed.net.test', {port})
    writer.write(b'GET /' + str(n).encode() + b' HTTP/1.0\\r\\n\\r\\n')
    data = await reader.read()
    writer.close()
    return data.split(b'\\r\\n\\r\\n')[-1] == str(n).encode()
async def all_of_them():
    before = len(os.listdir('/proc/self/fd'))
    print(sum(await asyncio.gather(*(one(n) for n in range(500)))), len(os.listdir('/proc/self/fd')) - before)
asyncio.run(all_of_them())
"""


@pytest.mark.parametrize("sni", ["off", "enforce"])
def test_five_hundred_at_once(worlds: Worlds, names: kit.Services, sni: str) -> None:
    """Each gets its own answer, directly and through the relay, and nothing is left open."""
    import socketserver

    class Mirror(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().split()[1][1:]
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + path)

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 1024
        daemon_threads = True

    with Server(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            with lent(worlds, names, "user") as world:
                rules = {**policy(world, f"dns:listed.net.test:{port}"), "net.sni": sni}
                program = PARALLEL.replace("{port}", str(port))
                result = run_inside(world, ("python3", "-c", program), policy=rules, timeout_s=120)
                assert result.stdout == "500 0\n", str(result)
        finally:
            server.shutdown()
            thread.join()


STRANGER = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
s.connect(("192.0.2.1", 53))
print(s.getpeername()[1], flush=True)
sys.stdin.readline()
print(socket.gethostbyname("listed.net.test"), flush=True)
"""


def test_another_process_cannot_use_the_dns_server(worlds: Worlds, names: kit.Services) -> None:
    """One of the same user, that knows the port: it gets no answer, while the agent does."""
    names.clear()
    query = dns.message.make_query("listed.net.test", "A").to_wire()
    with lent(worlds, names, "user") as world, socket.socket(type=socket.SOCK_DGRAM) as mine:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, policy(world, "dns:listed.net.test:80")))
        argv = [*as_user(world.uid), *akbox_command(), "run", "-p", str(file), "--", "/usr/bin/python3", "-c", STRANGER]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(world), cwd=world.W, text=True) as run:
            assert run.stdout is not None
            end = ("127.0.0.1", int(run.stdout.readline()))
            mine.sendto(query, end)
            asked = len(names.heard("DNS"))
            answer, _ = run.communicate("go\n", timeout=60)
            assert answer == "127.0.0.1\n"
            assert run.returncode == 0
        assert asked == 0
        mine.setblocking(False)
        with pytest.raises(OSError, match=r"temporarily unavailable|refused"):
            mine.recv(512)


RELAYED = """
import socket, sys
s = socket.create_connection(("listed.net.test", {port}))
print(s.getpeername()[1], flush=True)
sys.stdin.readline()
s.sendall(b"mine")
print(s.recv(9).decode(), flush=True)
"""


def test_another_process_cannot_use_the_relay(worlds: Worlds, names: kit.Services) -> None:
    """One of the same user, that knows the port: it is hung up on, and the server hears the agent alone."""
    with socket.create_server(("127.0.0.1", 0)) as server, lent(worlds, names, "user") as world:
        port = server.getsockname()[1]
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {**policy(world, f"dns:listed.net.test:{port}"), "net.sni": "enforce"}))
        program = RELAYED.replace("{port}", str(port))
        argv = [*as_user(world.uid), *akbox_command(), "run", "-p", str(file), "--", "/usr/bin/python3", "-c", program]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(world), cwd=world.W, text=True) as run:
            assert run.stdout is not None
            relay = int(run.stdout.readline())
            assert relay != port
            with socket.create_connection(("127.0.0.1", relay), timeout=10) as mine:
                with contextlib.suppress(OSError):
                    mine.sendall(b"stranger")
                with contextlib.suppress(ConnectionResetError):
                    assert mine.recv(9) == b""
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
            peer, _ = server.accept()
            with peer:
                assert peer.recv(9) == b"mine"
                peer.sendall(b"heard")
            assert run.communicate(timeout=60)[0] == "heard\n"
            assert run.returncode == 0
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
