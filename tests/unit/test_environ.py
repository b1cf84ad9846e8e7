"""Only what is on the list reaches the agent, and never what steers or what is secret."""

import pytest

from akbox.linux.environ import build_environment, looks_secret
from akbox.policy.model import Env

HOST = {
    "PATH": "/usr/bin",
    "HOME": "/home/u",
    "LANG": "C.UTF-8",
    "LC_TIME": "de_DE.UTF-8",
    "TERM": "xterm",
    "TZ": "UTC",
    "NO_COLOR": "1",
    "TMPDIR": "/var/tmp",
    "LD_PRELOAD": "/tmp/evil.so",
    "LD_LIBRARY_PATH": "/tmp",
    "PYTHONPATH": "/tmp/evil",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "BASH_ENV": "/tmp/evil.sh",
    "NODE_OPTIONS": "--require /tmp/evil.js",
    "ANTHROPIC_API_KEY": "sk-ant-0123456789abcdef",
    "SSH_AUTH_SOCK": "/tmp/ssh-x/agent.1",
    "AWS_PROFILE": "prod",
    "EDITOR": "vim",
    "RANDOM_THING": "1",
}


def build(**policy: object) -> tuple[dict[str, str], list[str]]:
    return build_environment(HOST, Env(**policy), tmpdir="/run/t", extra={})  # type: ignore[arg-type]


def test_the_allow_list_and_nothing_else() -> None:
    env, removed = build()
    assert env == {
        **{name: HOST[name] for name in ("PATH", "HOME", "LANG", "LC_TIME", "TERM", "TZ", "NO_COLOR")},
        "TMPDIR": "/run/t",
    }
    assert removed == sorted(HOST.keys() - env.keys())


def test_exact_names_pass_secrets_and_steering_but_never_the_linker() -> None:
    names = ("ANTHROPIC_API_KEY", "NODE_OPTIONS", "RANDOM_THING", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH")
    env, removed = build(passed=names)
    assert {name for name in names if name in env} == {"ANTHROPIC_API_KEY", "NODE_OPTIONS", "RANDOM_THING"}
    assert {"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH"} <= set(removed)


def test_patterns_pass_neither_secrets_nor_steering() -> None:
    env, _ = build(passed=("*",))
    assert env.keys() == {"PATH", "HOME", "LANG", "LC_TIME", "TERM", "TZ", "NO_COLOR", "TMPDIR", "RANDOM_THING"}


def test_set_wins_over_pass_and_extra_over_both() -> None:
    policy = Env(passed=("RANDOM_THING",), set={"RANDOM_THING": "2", "LD_LIBRARY_PATH": "/opt/cuda", "AKBOX": "0"})
    env, _ = build_environment(HOST, policy, tmpdir="/run/t", extra={"AKBOX": "1"})
    assert (env["RANDOM_THING"], env["LD_LIBRARY_PATH"], env["AKBOX"]) == ("2", "/opt/cuda", "1")


def test_the_sdk_stands_in_front_of_a_policy_python_path() -> None:
    policy = Env(set={"PYTHONPATH": "/app"})
    env, removed = build_environment(HOST, policy, tmpdir="/t", extra={"PYTHONPATH": "/sdk"})
    assert env["PYTHONPATH"] == "/sdk:/app"
    assert "PYTHONPATH" not in removed
    assert build_environment(HOST, Env(), tmpdir="/t", extra={"PYTHONPATH": "/sdk"})[0]["PYTHONPATH"] == "/sdk"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "x"),
        ("openai_apikey", "x"),
        ("GITHUB_TOKEN", "x"),
        ("DB_PASSWORD", "x"),
        ("MY_SECRET_2", "x"),
        ("AWS_REGION", "eu"),
        ("DATABASE_URL", "x"),
        ("LC_ALL", "ghp_0123456789abcdefghij"),
        ("TERM", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
        ("LANG", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("HTTP_PROXY", "http://user:hunter2@proxy:3128"),
        ("X", "http://[bad@"),
    ],
)
def test_secrets(name: str, value: str) -> None:
    assert looks_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/bin:/bin"),
        ("HTTP_PROXY", "http://proxy:3128"),
        ("KEYBOARD", "us"),
        ("HOME", "/root"),
    ],
)
def test_not_secrets(name: str, value: str) -> None:
    assert not looks_secret(name, value)


def test_variables_in_set_are_expanded() -> None:
    policy = Env(set={"CACHE": "${tmp}/cache:${workdir}", "PLAIN": "$HOME"})
    env, _ = build_environment({}, policy, tmpdir="/t", extra={}, variables={"tmp": "/t", "workdir": "/w"})
    assert env == {"CACHE": "/t/cache:/w", "PLAIN": "$HOME", "TMPDIR": "/t"}


@pytest.mark.parametrize("bad", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}])
def test_what_no_environment_can_hold_is_an_error(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be passed"):
        build_environment({}, Env(), tmpdir="/t", extra=bad)
