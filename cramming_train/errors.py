"""The two ways a command can fail, and the wrapper that turns them into one line and an exit status."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence

from cramming_train.display import fitted


class UsageError(Exception):
    """The request itself cannot be met (exit status 2): a wrong name, path, key or value."""


class RunError(Exception):
    """The request was fine and the world was not (exit status 1): a full disk, a damaged file, no network."""


class Interrupted(Exception):
    """A signal stopped the command after everything was saved (exit status 128 + signal number)."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def describe_os_error(error: OSError) -> str:
    """One line that names what failed, where, and what to do about it."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full{where}: free some space, or choose another folder with --out, and run the command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{where}: choose another folder or change its permissions"
    return f"{error.strerror or error}{where}"


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorate a command's ``main(argv)``: errors become one line on stderr and a status, never a traceback.

    Set ``CRAMMING_TRACEBACK=1`` to see the traceback as well.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except BrokenPipeError:  # the reader of our output has gone: nothing to tell anyone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except (UsageError, RunError, Interrupted, OSError, KeyboardInterrupt) as error:
            if os.environ.get("CRAMMING_TRACEBACK") == "1":
                raise
            message, status = _message_and_status(error)
            print(fitted(message, sys.stderr), file=sys.stderr)
            return status

    return wrapped


def _message_and_status(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UsageError):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, Interrupted):
        return str(error), 128 + error.signal_number
    if isinstance(error, OSError):
        return f"error: {describe_os_error(error)}", 1
    return f"error: {error}", 1
