"""What main.py shows without a stack."""


class UserError(ValueError):
    """Says what is wrong, the value, what is allowed, and what to do."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did. Not an error, and no `except Exception` may swallow it."""
