"""Errors for the person who can mend them."""


class UserError(ValueError):
    """A sentence for the person who can mend it: what was expected, what came, what to do."""
