"""Secrets of a run: read once from where the policy says, given only to those the policy names, never to the agent.

A value lives in the supervisor's memory (which the agent cannot read) and goes to its consumer. It is not in the
agent's environment, not in the log (its exact text is masked in every entry), and consumers keep it out of replies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from akbox.kernel.entry import Draft
from akbox.kernel.ops import Op, op_name
from akbox.policy.model import Secret

if TYPE_CHECKING:
    from akbox.kernel.kernel import Kernel

MAX_SECRET_BYTES = 64 << 10
EXEC_TIMEOUT_S = 30
_SHORTEST_MASKED = 6  # a shorter value is found in too much that is not it


class SecretError(Exception):
    """A secret cannot be had, or not by this consumer. The message never holds a value."""


class Secrets:
    """`read` the values once, at the start; `get` one for its consumer. Not for the agent: no call reaches this."""

    def __init__(self, kernel: Kernel, stated: Mapping[str, Secret]) -> None:
        self._kernel = kernel
        self._stated = dict(stated)
        self._values: dict[str, str] = {}

    def read(self, environ: Mapping[str, str]) -> None:
        """Reads every secret that somebody is named for. `environ`: what `env:` reads. Raises SecretError naming the
        secret and its source."""
        for name, secret in self._stated.items():
            if secret.uses:
                value = read_source(name, secret.source, environ)
                self._values[name] = value
                if len(value) >= _SHORTEST_MASKED:
                    self._kernel.log.redactor.hide(value)

    def get(self, name: str, consumer: str) -> str:
        """The value, for a consumer that the policy names (`infer:UPSTREAM`). Each time is an entry of the log, allowed
        or not. Raises SecretError."""
        secret = self._stated.get(name)
        allowed = secret is not None and consumer in secret.uses and name in self._values
        self._kernel.log.append(
            Draft(
                ts_ns=self._kernel.clock_ns(), agent=self._kernel.root, op=Op.SECRET_GET, name=op_name(Op.SECRET_GET),
                target=f"secret:{name}", decision="allow" if allowed else "deny",
                stage=None if allowed else "POLICY", rule=f"secrets.{name}" if allowed else None,
                req={"which": name, "consumer": consumer},  # in the target a mask for `secret: VALUE` hides the name
                res={},
            )
        )  # fmt: skip
        if not allowed:
            raise SecretError(f'secret "{name}" is not for {consumer}')
        return self._values[name]


def read_source(name: str, source: str, environ: Mapping[str, str]) -> str:
    """The value that `env:NAME`, `file:/path` or `exec:COMMAND ARGS` gives, without a final line end. Raises
    SecretError."""
    kind, _, rest = source.partition(":")
    data = _READERS[kind](name, rest, environ)
    if len(data) > MAX_SECRET_BYTES:
        raise SecretError(f'secret "{name}": {source} gives more than {MAX_SECRET_BYTES} bytes')
    try:
        value = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SecretError(f'secret "{name}": {source} is not text') from None
    if not value or not value.isprintable():  # it goes into a header: a line end would be another header
        raise SecretError(f'secret "{name}": {source} is {"not one printable line" if value else "empty"}')
    return value


def _from_env(name: str, variable: str, environ: Mapping[str, str]) -> bytes:
    if variable not in environ:
        raise SecretError(f'secret "{name}": the environment of akbox has no {variable}')
    return os.fsencode(environ[variable])


def _from_file(name: str, path: str, environ: Mapping[str, str]) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SecretError(f'secret "{name}": {path}: {error.strerror}') from error


def _from_exec(name: str, command: str, environ: Mapping[str, str]) -> bytes:
    """No shell: words as a shell would split them. What it says on standard error is the user's to see."""
    import shlex
    import subprocess

    try:
        argv = shlex.split(command)
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=EXEC_TIMEOUT_S,
            env=dict(environ),
            check=False,
        )
    except (OSError, ValueError) as error:
        raise SecretError(f'secret "{name}": {command}: {error}') from error
    except subprocess.TimeoutExpired:
        raise SecretError(f'secret "{name}": {command}: no answer in {EXEC_TIMEOUT_S} s') from None
    if done.returncode:
        raise SecretError(f'secret "{name}": {command} ended with {done.returncode}')
    return done.stdout


_READERS = {"env": _from_env, "file": _from_file, "exec": _from_exec}


def secret_files(stated: Mapping[str, Secret]) -> tuple[str, ...]:
    """The files that secrets are read from, and the links that lead there: refused to the agent, whatever its policy
    grants around them."""
    from akbox.policy.inuse import names_on_the_way

    files = [s.source.removeprefix("file:") for s in stated.values() if s.source.startswith("file:")]
    return tuple(dict.fromkeys(name for f in files for name in names_on_the_way(os.path.expanduser(f))))
