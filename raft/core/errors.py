"""What a user can fix: every message says what, where, what is allowed, and what to do next."""


def install_extra(*extras: str) -> str:
    """What to do where packages of one of these extras of raft are missing, as the end of a message."""
    return f"install raft's extra {' or '.join(extras)} (docs/install.md#extras)"


class UserError(ValueError):
    """A fault of the recipe, the data or the machine; the command line prints it alone and exits with 2."""


class RowError(UserError):
    """A fault of one row of the data: it is dropped or has no reward, with this as the reason, and the rest goes on."""


class Stopped(BaseException):
    """The run was asked to stop (see signals.py); the same command resumes it.

    Not an Exception, so that code which handles those lets it through.
    """
