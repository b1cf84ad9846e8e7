"""Anchors: checkpoints handed to where this host cannot change them, so that cutting the tail of a log, or writing it
anew, is found by somebody who does not trust the host.

    file:PATH    appended to the file; into a directory: one file for each run, its latest checkpoint
    https://…    POST of the note as text/plain; 2xx is success
    exec:CMD     the note on the command's standard input; AKBOX_RUN and AKBOX_SEQ in its environment

One thread delivers, the latest checkpoint first: what an anchor is too slow for is left out, never queued. The first
one is delivered before the agent starts, the last one before the run is over.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from akbox.kernel.checkpoint import Checkpoint

TIMEOUT_S = 10
Deliver = Callable[[Checkpoint], None]


class AnchorError(Exception):
    """An anchor is none, or did not take a checkpoint. The message names it without what may be secret in it."""


def parse_anchor(text: str) -> tuple[str, Deliver]:
    """(what to call it, how to deliver to it). Raises AnchorError."""
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        path = Path(os.path.abspath(rest))
        return f"file:{path}", lambda point: _to_file(path, point)
    if kind == "exec" and (argv := _words(rest)):
        return f"exec:{argv[0]}", lambda point: _to_command(argv, point)
    if kind == "https" and (parts := urlsplit(text)).hostname and parts.username is None:
        return f"https://{parts.hostname}", lambda point: _to_server(text, point)
    raise AnchorError(f"{kind or text!r}: an anchor is file:PATH, https://HOST/PATH or exec:COMMAND")


class Anchors:
    """Delivers a run's checkpoints to all its anchors. `first` and `close` say what failed; what fails in between is
    tried again with the next checkpoint."""

    def __init__(self, anchors: Sequence[tuple[str, Deliver]]) -> None:
        self._anchors = anchors
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._latest: Checkpoint | None = None
        self._done_seq = [0] * len(anchors)
        self._problems: list[str | None] = [None] * len(anchors)
        self._closing = False
        self._thread: threading.Thread | None = None

    def first(self, point: Checkpoint) -> None:
        """Delivers one now. Raises AnchorError."""
        self._deliver(point)
        if problem := self._problem():
            raise AnchorError(problem)

    def offer(self, point: Checkpoint) -> None:
        """Takes note of a newer checkpoint and returns at once."""
        with self._changed:
            self._latest = point
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="akbox-anchors", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> str | None:
        """Delivers the last one. Returns why an anchor does not have it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        if self._latest is not None:
            self._deliver(self._latest)
        return self._problem()

    def _problem(self) -> str | None:
        names = [name for name, _ in self._anchors]
        return "; ".join(f"{name}: {why}" for name, why in zip(names, self._problems, strict=True) if why) or None

    def _run(self) -> None:
        seen = 0
        while True:
            with self._changed:
                while not self._closing and (self._latest is None or self._latest.seq == seen):
                    self._changed.wait()
                if self._closing:
                    return
                assert self._latest is not None
                point, seen = self._latest, self._latest.seq
            self._deliver(point)

    def _deliver(self, point: Checkpoint) -> None:
        for n, (_, deliver) in enumerate(self._anchors):
            if self._done_seq[n] >= point.seq:
                continue
            try:
                deliver(point)
            except (OSError, AnchorError, subprocess.SubprocessError) as error:
                self._problems[n] = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            else:
                self._done_seq[n], self._problems[n] = point.seq, None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise AnchorError(f"exec: {error}") from error


def _to_file(path: Path, point: Checkpoint) -> None:
    if path.is_dir():
        fresh = path / f".{point.run}.checkpoint"
        fresh.write_text(point.note)
        fresh.rename(path / f"{point.run}.checkpoint")
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(point.note.encode() + b"\n")
        file.flush()
        os.fdatasync(fd)


def _to_command(argv: list[str], point: Checkpoint) -> None:
    env = {**os.environ, "AKBOX_RUN": point.run, "AKBOX_SEQ": str(point.seq)}
    try:
        done = subprocess.run(
            argv, input=point.note.encode(), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise AnchorError(f"took more than {TIMEOUT_S} s") from error
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise AnchorError(f"exited with {done.returncode}" + (f" ({last[0][:200]})" if last else ""))


def _to_server(url: str, point: Checkpoint) -> None:
    """The certificate is checked as Python does by default (SSL_CERT_FILE). A redirect is a failure: who follows it
    would hand the checkpoint to somebody else."""
    import http.client
    import ssl

    parts = urlsplit(url)
    assert parts.hostname is not None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
    )
    try:
        connection.request("POST", path, point.note.encode(), {"Content-Type": "text/plain; charset=utf-8"})
        status = connection.getresponse().status
    except http.client.HTTPException as error:
        raise AnchorError(f"no answer that is HTTP: {type(error).__name__}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise AnchorError(f"answered {status}")
