"""Secrets: their sources, who gets them, and where they never are."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_kit import Box

from akbox.kernel.secrets import MAX_SECRET_BYTES, SecretError, Secrets, read_source, secret_files
from akbox.policy.check import PolicyError
from akbox.policy.load import parse
from akbox.policy.model import Secret

VALUE = "hunter2-of-the-provider"


def test_sources(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{VALUE}\n")
    assert read_source("K", "env:THE_KEY", {"THE_KEY": VALUE}) == VALUE
    assert read_source("K", f"file:{file}", {}) == VALUE
    assert read_source("K", f"exec:cat '{file}'", {"PATH": "/usr/bin:/bin"}) == VALUE
    assert read_source("K", "exec:printenv THE_KEY", {"PATH": "/usr/bin:/bin", "THE_KEY": VALUE}) == VALUE


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("env:ABSENT", "has no ABSENT"),
        ("env:EMPTY", "empty"),
        ("env:TWO_LINES", "one printable line"),
        ("file:/nonexistent/key", "No such file"),
        ("exec:false", "ended with 1"),
        ("exec:/nonexistent/program", "No such file"),
        ("exec:echo 'unbalanced", "No closing quotation"),
        ("exec:sh -c 'echo hunter2-of-the-provider; exit 3'", "ended with 3"),
        (f"exec:head -c {MAX_SECRET_BYTES + 1} /dev/zero", "more than"),
    ],
)
def test_a_source_that_gives_none(source: str, why: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "EMPTY": "", "TWO_LINES": f"{VALUE}\nX-Other: header"}
    with pytest.raises(SecretError, match=why) as caught:
        read_source("K", source, env)
    assert 'secret "K"' in str(caught.value)
    assert VALUE not in str(caught.value).replace(source.removeprefix("exec:"), "")


def test_only_the_named_consumer_gets_it(tmp_path: Path) -> None:
    box = Box(tmp_path)
    secrets = Secrets(box.kernel, {"K": Secret("env:K", ("infer:claude",)), "UNUSED": Secret("env:NOBODY_READS_THIS")})
    secrets.read({"K": VALUE})
    assert secrets.get("K", "infer:claude") == VALUE
    for name, consumer in (("K", "infer:other"), ("K", ""), ("UNUSED", "infer:claude"), ("ABSENT", "infer:claude")):
        with pytest.raises(SecretError):
            secrets.get(name, consumer)
    found = [(e["req"]["which"], e["req"]["consumer"], e["decision"]) for e in box.entries() if e["name"] == "secret"]
    assert found[0] == ("K", "infer:claude", "allow")
    assert [decision for *_, decision in found[1:]] == ["deny"] * 4
    # Whatever an agent says of it, the log does not
    box.call(1025, type="note", value={"text": f"I know {VALUE}", VALUE: 1})
    assert VALUE not in (tmp_path / "audit.jsonl").read_text()
    box.close()


def test_files_of_secrets_and_the_links_that_lead_there(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(VALUE)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stated = {"A": Secret(f"file:{tmp_path}/link"), "B": Secret("env:B")}
    assert set(secret_files(stated)) == {f"{tmp_path}/link", f"{tmp_path}/real"}


UPSTREAM = 'version = "1.0"\ninfer.upstreams.u = { type = "openai", base_url = "https://x", key = "secret:K" }\n'


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('secrets.K = { from = "env:K" }', "infer.upstreams.u.key", "infer:u"),
        ('secrets.K = { from = "env:K", for = ["infer:u"] }\nenv.pass = ["A", "K"]', "env.pass[1]", "remove one"),
        ('secrets.K = { from = "exec:", for = ["infer:u"] }', "secrets.K.from", "exec:COMMAND"),
        ('secrets.K = { from = "file:relative", for = ["infer:u"] }', "secrets.K.from", "file:/path"),
        ('secrets.K = { from = "vault:x", for = ["infer:u"] }', "secrets.K.from", "env:NAME"),
    ],
)
def test_policies_that_would_not_hold(text: str, key: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(UPSTREAM + text, syntax="toml", name="p")
    (problem,) = caught.value.problems
    assert problem.key == key
    assert hint in problem.hint


def test_values_are_no_part_of_a_policy() -> None:
    policy = parse(UPSTREAM + 'secrets.K = { from = "env:K", for = ["infer:u"] }', syntax="toml", name="p")
    assert policy.secrets["K"] == Secret("env:K", ("infer:u",))
