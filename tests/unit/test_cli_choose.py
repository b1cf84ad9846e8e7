"""Which policy a run gets, whom akbox believes about it, and what the flags add."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from akbox.cli.choose import Extra, choose, extra_document, load_named, merge
from akbox.cli.output import Failure
from akbox.cli.trust import discover, is_trusted, trust
from akbox.policy.load import parse
from akbox.policy.model import Policy

MINIMAL = 'version = "1.0"\nfs.read = ["/srv/data/**"]\n'


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    inner = tmp_path / "project" / "src" / "deep"
    inner.mkdir(parents=True)
    return tmp_path / "project"


def test_without_anything_it_is_the_preset_default(project: Path, state: str) -> None:
    choice = choose(None, project, state)
    assert choice.origin == "preset default"
    assert not choice.found


def test_an_untrusted_project_policy_is_an_error_not_a_fallback(project: Path, state: str) -> None:
    (project / "akbox.toml").write_text(MINIMAL)
    with pytest.raises(Failure, match="have not trusted") as caught:
        choose(None, project / "src" / "deep", state)
    assert caught.value.exit_code == 125
    assert "akbox policy trust" in caught.value.fix


def test_trust_holds_for_exactly_this_content_in_this_place(project: Path, state: str) -> None:
    path = project / "akbox.toml"
    path.write_text(MINIMAL)
    root = Path(state)
    root.mkdir(mode=0o700)
    trust(path, MINIMAL.encode(), root)
    choice = choose(None, project / "src" / "deep", state)
    assert choice.found
    assert choice.policy.fs.read == ("/srv/data/**",)

    path.write_text(MINIMAL + "# wider\n")
    with pytest.raises(Failure, match="has changed since"):
        choose(None, project, state)
    path.write_text(MINIMAL)
    assert choose(None, project, state).found

    elsewhere = project / "src" / "akbox.toml"
    elsewhere.write_text(MINIMAL)
    with pytest.raises(Failure, match="have not trusted"):
        choose(None, project / "src", state)


def test_a_link_to_a_trusted_policy_counts_as_what_it_names(project: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(MINIMAL)
    (project / "akbox.toml").symlink_to(real)
    assert discover(project / "src") == real
    trust(real, MINIMAL.encode(), tmp_path)
    assert is_trusted(real, MINIMAL.encode(), tmp_path)
    assert not is_trusted(project / "akbox.toml", MINIMAL.encode(), tmp_path)


def test_a_dangling_link_is_found_and_refused(project: Path, state: str) -> None:
    (project / "akbox.toml").symlink_to("/nonexistent/akbox.toml")
    with pytest.raises(Failure, match="cannot read the policy"):
        choose(None, project, state)


def test_two_policies_in_one_place_are_an_error(project: Path, state: str) -> None:
    (project / "akbox.toml").write_text(MINIMAL)
    (project / "akbox.json").write_text('{"version": "1.0"}')
    with pytest.raises(Failure, match="holds both"):
        choose(None, project, state)


def test_a_named_policy_needs_no_trust_and_wins(project: Path, state: str) -> None:
    (project / "akbox.toml").write_text("not even TOML")
    named = project / "mine.json"
    named.write_text('{"version": "1.0", "fs": {"read": ["/x"]}}')
    assert choose(str(named), project, state).policy.fs.read == ("/x",)
    assert choose("readonly", project, state).origin == "preset readonly"


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r'no preset "defalt" \(did you mean "default"\?\)') as caught:
        load_named("defalt")
    assert caught.value.exit_code == 125
    with pytest.raises(Failure, match="cannot read the policy"):
        load_named(str(tmp_path / "none.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_text('version = "1.0"\n[fs]\nraed = ["/x"]\n')
    with pytest.raises(Failure) as caught:
        load_named(str(bad))
    assert caught.value.lines[0].startswith(f"{bad}:3:1: ")
    assert caught.value.exit_code == 125


def test_paths_mean_what_people_type(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "one.txt").touch()
    extra = Extra(read=("data", "one.txt", "/etc/*.conf", "../x", "*.key", "~/notes", "${workdir}/y", "new/*"))
    fs = extra_document(extra, tmp_path)["fs"]
    base = str(tmp_path)
    assert fs == {
        "read": [
            f"{base}/data/**",
            f"{base}/one.txt",
            "/etc/*.conf",
            f"{os.path.dirname(base)}/x",
            "*.key",
            "~/notes",
            "${workdir}/y",
            f"{base}/new/*",
        ]
    }


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("api.example.com:443", "dns:api.example.com:443"),
        ("10.0.0.1:80", "ip:10.0.0.1:80"),
        ("10.0.0.0/8:*", "ip:10.0.0.0/8:*"),
        ("[::1]:80", "ip:[::1]:80"),
        ("udp+1.1.1.1:53", "udp+ip:1.1.1.1:53"),
        ("dns:a.example:1", "dns:a.example:1"),
        ("udp+ip:1.1.1.1:53", "udp+ip:1.1.1.1:53"),
    ],
)
def test_endpoints_mean_what_people_type(typed: str, meant: str, tmp_path: Path) -> None:
    net = extra_document(Extra(connect=(typed,)), tmp_path)["net"]
    assert isinstance(net, dict)
    assert net["connect"] == [meant]
    if meant.startswith("dns:"):
        assert net["dns"] == [meant.split(":")[1]]


def policy(text: str) -> Policy:
    return parse(text, syntax="toml", name="test.toml")


def test_merge_joins_lists_and_replaces_numbers(tmp_path: Path) -> None:
    base = policy(
        MINIMAL + 'budgets.tool_calls = 5\nenv.pass = ["LANG"]\nenv.set = { A = "1" }\nfs.deny = ["**/.env"]\n'
    )
    extra = Extra(
        read=("/opt/x",),
        env=("TERM", "B=2=3"),
        budget=("tool_calls=9", "usd=0.5"),
        limit=("memory=1G",),
        audit="writes",
    )
    merged = merge(base, extra, tmp_path)
    assert merged.fs.read == ("/srv/data/**", "/opt/x")
    assert merged.fs.deny == ("**/.env",)
    assert merged.fs.exec is None
    assert merged.env.passed == ("LANG", "TERM")
    assert merged.env.set == {"A": "1", "B": "2=3"}
    assert (merged.budgets.tool_calls, merged.budgets.usd) == (9, 0.5)
    assert merged.limits.memory == 1 << 30
    assert merged.audit.level == "writes"
    assert base.fs.read == ("/srv/data/**",)
    assert merge(base, Extra(), tmp_path) is base


def test_bad_flags_are_named_as_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        merge(policy(MINIMAL), Extra(budget=("tool_cals=1",)), tmp_path)
    assert 'did you mean "tool_calls"?' in caught.value.lines[0]
    with pytest.raises(Failure, match="is not NAME=VALUE") as caught:
        merge(policy(MINIMAL), Extra(limit=("memory",)), tmp_path)
    assert caught.value.exit_code == 2
