"""Reads a policy: text to typed model, or one PolicyError with every problem in it."""

from __future__ import annotations

import os
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import msgspec

from akbox.policy import presets
from akbox.policy.check import Checker, PolicyError, Problem
from akbox.policy.model import POLICY_BYTES_MAX, RULES_MAX, Policy
from akbox.policy.source import Source, Syntax, SyntaxProblem, read_document


def load(path: str | PathLike[str]) -> Policy:
    """Read the policy file `path` (.json is JSON, anything else TOML). Raises PolicyError, or OSError when it can't be
    read."""
    name = fspath(path)
    with open(name, "rb") as file:
        data = file.read(POLICY_BYTES_MAX + 1)
    if len(data) > POLICY_BYTES_MAX:
        raise PolicyError([Problem(name, 1, 1, "", f"a policy may have at most {POLICY_BYTES_MAX} bytes", "split it")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise PolicyError([Problem(name, line, column, "", "not UTF-8", "save the file as UTF-8")]) from error
    return parse(text, syntax="json" if Path(name).suffix == ".json" else "toml", name=name, file=name)


def parse(text: str, *, syntax: Syntax, name: str, file: str | None = None) -> Policy:
    """Parse policy text; `name` is what problems call the file, `file` the path it was read from, which a run under the
    policy protects. Raises PolicyError."""
    source = Source(name, text, syntax, None if file is None else os.path.join(os.getcwd(), file))
    if len(text.encode("utf-8", "surrogatepass")) > POLICY_BYTES_MAX:
        raise PolicyError([Problem(name, 1, 1, "", f"a policy may have at most {POLICY_BYTES_MAX} bytes", "split it")])
    try:
        document = read_document(source)
    except SyntaxProblem as error:
        raise PolicyError([Problem(name, error.line, error.column, "", error.message, error.hint)]) from error
    checker = Checker(source, presets.profile_names)
    plain = checker.value(Policy, document, ())
    if checker.rules > RULES_MAX:
        checker.problem((), f"{checker.rules} rules: at most {RULES_MAX} are allowed", "use * or ** to join them")
    if not checker.problems:
        _check_references(checker, plain)
    if checker.problems:
        raise PolicyError(sorted(checker.problems, key=lambda p: (p.line, p.column)))
    return msgspec.structs.replace(msgspec.convert(plain, Policy), source=source)


def _check_references(checker: Checker, plain: dict[str, Any]) -> None:  # Any: a checked document
    """Secrets and upstreams are named in one section and defined in another."""
    secrets = plain.get("secrets", {})
    upstreams = plain.get("infer", {}).get("upstreams", {})
    for name, upstream in upstreams.items():
        secret = upstream.get("key", "").removeprefix("secret:")
        if secret and secret not in secrets:
            hint = f'add [secrets.{secret}] with from = "env:{secret}"'
            checker.problem(("infer", "upstreams", name, "key"), f'no secret "{secret}" is defined', hint)
        elif secret and f"infer:{name}" not in secrets[secret].get("for", ()):
            hint = f'add "infer:{name}" to secrets.{secret}.for'
            checker.problem(("infer", "upstreams", name, "key"), f'secret "{secret}" is not for this upstream', hint)
    passed = plain.get("env", {}).get("pass", ())
    for name, entry in secrets.items():
        variable = entry.get("from", "").removeprefix("env:")
        if variable in passed:
            hint = "remove one of the two"
            checker.problem(
                ("env", "pass", list(passed).index(variable)),
                f'"{variable}" is the secret "{name}": no agent gets it',
                hint,
            )
        for i, use in enumerate(entry.get("for", ())):
            kind, _, target = use.partition(":")
            if kind == "infer" and target not in upstreams:
                hint = f"define infer.upstreams.{target}"
                checker.problem(("secrets", name, "for", i), f'no upstream "{target}" is defined', hint)
