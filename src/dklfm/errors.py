"""The package's exceptions: each says what is wrong, where, and how to mend it.

A command prints a :class:`DklfmError` as one line and exits with its ``exit_code``;
any other exception is a defect of the package and keeps its traceback.
"""


class DklfmError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # Names in it may be a stranger's; none of them makes a second line of it.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(DklfmError):
    """A configuration has an unknown key, a wrong type or an impossible value."""

    exit_code = 3


class DataError(DklfmError, ValueError):
    """A table or store of tasks is missing, damaged or not what it must be."""

    exit_code = 4


class ModelError(DklfmError):
    """Trained weights are missing, damaged or of another architecture."""

    exit_code = 5


class WriteError(DklfmError, OSError):
    """A product cannot be written: the disk is full, the folder read-only, or in use."""

    exit_code = 8


class NumericalError(DklfmError):
    """A computation that should be well posed was not, for example a Cholesky factor."""

    exit_code = 6
