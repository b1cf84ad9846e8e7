"""Plain file access whose refusals say what would have allowed it."""

from __future__ import annotations

import errno
import os

from .errors import BufferOverflowError, NotFoundError, OperationDeniedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .kernel import AuthorityKernel


def file_read(kernel: AuthorityKernel, path: str, max_size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(max_size + 1)
    except OSError as error:
        raise _translated(kernel, error, path) from error
    if len(data) > max_size:
        raise BufferOverflowError(f"{path} is larger than {max_size} bytes", errno=errno.EFBIG)
    return data


def file_write(kernel: AuthorityKernel, path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise _translated(kernel, error, path) from error


def _translated(kernel: AuthorityKernel, error: OSError, path: str) -> Exception:
    if error.errno == errno.ENOENT:
        return NotFoundError(str(error), errno=errno.ENOENT)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return error
    denial = kernel.get_last_denial()
    if denial is None or denial.target != os.path.realpath(path):  # refused by the file's own mode
        return OperationDeniedError(str(error), errno=error.errno)
    return OperationDeniedError(
        f"{denial.operation} {denial.target}: {denial.reason}",
        code=int(denial.raw.get("error_code") or 0),
        name="POLICY_DENY",
        errno=error.errno,
        missing_cap=denial.missing_cap,
        suggested_fix=denial.suggested_fix,
        trace_id=denial.trace_id,
    )
