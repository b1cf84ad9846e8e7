"""The console script: picks the way in, and is the edge where every error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from akbox.cli.output import EXIT_CANNOT, Failure, fail


def entry() -> NoReturn:
    """The console script. It ends without taking the interpreter apart, which would be a tenth of a short run: whatever
    was opened is closed by now, files are written without buffers of Python's, and the two streams are flushed here."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or nobody reads it any more: main() has judged that already
            continue
    os._exit(code)


def main() -> int:
    """Runs the command line and returns the exit code."""
    try:
        code = _call()
        sys.stdout.flush()
    except Failure as failure:
        fail(failure)
        return failure.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has gone (`akbox audit show | head`): not an error, but the interpreter's own flush at exit
        # would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    except Exception as error:  # the edge of the process: said in a sentence, and never taken for success
        if os.environ.get("AKBOX_DEBUG"):
            raise
        message = f"internal error: {type(error).__name__}: {error}"
        fail(Failure(message, fix="this is a bug in akbox; AKBOX_DEBUG=1 shows where"))
        return EXIT_CANNOT
    return code


def _call() -> int:
    args = sys.argv[1:]
    if args[:1] == ["run"]:
        _import_msgspec()
        from akbox.cli.run import main as run

        return run(args[1:])
    from akbox.cli.group import call

    return call()


def _import_msgspec() -> None:
    """msgspec takes two names from `typing_extensions` where that is installed, and the same ones from `typing` where
    it is not. The former loads `inspect`, `ast` and `tokenize` with it, a tenth of a short run; so here it is not."""
    name = "typing_extensions"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]  # importlib's own sign for what cannot be imported
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[name]
