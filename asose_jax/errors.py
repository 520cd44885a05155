"""The one kind of error that a user can put right; main.py shows its message without a stack."""


class UserError(ValueError):
    """Says what is wrong, the value, what is allowed, and what to do."""
