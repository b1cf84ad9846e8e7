"""`akbox run --anchor`: checkpoints reach a file, a command and a server, and show there what the host would hide."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from e2e.audit_crash import AKBOX, ROOT

from akbox.kernel.checkpoint import read_checkpoints


def run(tmp_path: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    (tmp_path / "work").mkdir(exist_ok=True)
    base = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [
        *AKBOX,
        "run",
        "--state-dir",
        str(tmp_path / "state"),
        *options,
        "--",
        "sh",
        "-c",
        "cat /etc/hostname; exit 3",
    ]
    return subprocess.run(
        argv, cwd=tmp_path / "work", env=base | (env or {}), capture_output=True, text=True, timeout=60, check=False
    )


def audit(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [*AKBOX, "audit", args[0], "--state-dir", str(tmp_path / "state"), *args[1:]]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def log_of(tmp_path: Path) -> Path:
    (directory,) = (tmp_path / "state" / "runs").iterdir()
    return directory / "audit.jsonl"


def test_a_file_shows_a_tail_that_was_cut(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    folder.mkdir()
    done = run(tmp_path, "--anchor", f"file:{kept}", "--anchor", f"file:{folder}")
    assert done.returncode == 3, done.stderr
    with open(kept, "rb") as file:
        points = list(read_checkpoints(file, whole=True))
    log = log_of(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    assert [points[0].seq, points[-1].seq] == [1, len(lines)]  # before the agent starts, and the whole log
    assert (folder / f"{points[0].run}.checkpoint").read_text() == points[-1].note
    assert audit(tmp_path, "verify", "last", "--checkpoint", str(kept)).returncode == 0
    log.write_bytes(b"".join(lines[:-1]))
    (log.parent / "checkpoints").write_text(points[0].note + "\n")  # rolled back, as its owner can
    assert audit(tmp_path, "verify", "last").returncode == 0
    found = audit(tmp_path, "verify", "last", "--checkpoint", str(kept), "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["first_bad_seq"] == len(lines)


def test_a_command_gets_the_note(tmp_path: Path) -> None:
    script = tmp_path / "take"
    script.write_text(f'#!/bin/sh\ncat >"{tmp_path}/got-$AKBOX_SEQ-$AKBOX_RUN"\n')
    script.chmod(0o755)
    assert run(tmp_path, "--anchor", f"exec:{script}").returncode == 3
    directory = log_of(tmp_path).parent
    last = len(log_of(tmp_path).read_bytes().splitlines())
    for seq in (1, last):
        with open(tmp_path / f"got-{seq}-{directory.name}", "rb") as file:
            assert [point.seq for point in read_checkpoints(file, whole=True)] == [seq]


@pytest.mark.parametrize(
    ("anchor", "why"),
    [("file:/no/such/directory/x", "No such file"), ("exec:false", "exited with 1"), ("ftp://x", "an anchor is"),
     ("https://user:hunter2@localhost/", "an anchor is"), ("exec:/no/such/program", "No such file")],
)  # fmt: skip
def test_a_run_that_cannot_be_anchored_does_not_start(tmp_path: Path, anchor: str, why: str) -> None:
    done = run(tmp_path, "--anchor", anchor)
    assert done.returncode == 125
    assert why in done.stderr
    assert done.stdout == ""
    assert "hunter2" not in done.stderr


def test_an_anchor_that_is_lost_is_told(tmp_path: Path) -> None:
    script = tmp_path / "once"
    script.write_text('#!/bin/sh\nread x\n[ "$AKBOX_SEQ" = 1 ] || { echo "no more room" >&2; exit 9; }\n')
    script.chmod(0o755)
    done = run(tmp_path, "-q", "--anchor", f"exec:{script}")
    assert done.returncode == 3  # the agent's own
    assert "is not anchored: exec:" in done.stderr
    assert "no more room" in done.stderr
    assert "no more room" in json.loads((log_of(tmp_path).parent / "summary.json").read_bytes())["not_anchored"]


class Server:
    def __init__(self, directory: Path) -> None:
        self.notes: list[tuple[str, bytes]] = []
        self.status = 200
        certificate = make_certificate(directory)
        notes, outer = self.notes, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                notes.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, directory / "key.pem")
        self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True)
        self.url = f"https://localhost:{self.httpd.server_address[1]}/anchor?token=hunter2secret"
        self.env = {"SSL_CERT_FILE": str(certificate)}
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()


def make_certificate(directory: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(*form))
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return directory / "cert.pem"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


def test_a_server_gets_the_notes_over_tls(tmp_path: Path, server: Server) -> None:
    assert run(tmp_path, "--anchor", server.url, env=server.env).returncode == 3
    last = (log_of(tmp_path).parent / "checkpoints").read_text().split("\n\n")[-3]
    assert server.notes[0][0] == "/anchor?token=hunter2secret"
    assert server.notes[0][1].split(b"\n")[1] == b"1"
    assert server.notes[-1][1].decode().startswith(last)
    state = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert b"hunter2secret" not in state


def test_a_server_that_is_not_the_one_or_says_no(tmp_path: Path, server: Server) -> None:
    done = run(tmp_path, "--anchor", server.url)  # a certificate that nobody trusts
    assert (done.returncode, server.notes) == (125, [])
    server.status = 302
    done = run(tmp_path, "--anchor", server.url, env=server.env)
    assert done.returncode == 125
    assert "answered 302" in done.stderr
    assert "hunter2secret" not in done.stderr
