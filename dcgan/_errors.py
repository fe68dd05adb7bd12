"""Errors that are raised on purpose: a plain `ValueError` or `ImportError` is then a mistake of the package itself."""


class DcganError(Exception):
    """Something that its user can correct: the message says what was expected and what came."""


class InputError(DcganError, ValueError):
    """An argument, a file or a combination of them that cannot be used."""


class MissingPackageError(DcganError, ImportError):
    """An optional package that is not installed; the message has the command that installs it."""
