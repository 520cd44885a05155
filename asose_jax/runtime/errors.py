"""Exceptions that main.py reports as one message, without a traceback."""


class UserError(ValueError):
    """Reports a mistake that the user can fix: what is wrong, the value, what is allowed."""


class Stopped(KeyboardInterrupt):
    """Reports that a run was stopped by a signal, after it saved what there was to save.

    It is not an error. It derives from `KeyboardInterrupt`, so that no `except Exception` catches
    it.
    """
