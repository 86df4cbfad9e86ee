"""One ancestor for every mistake that a user can mend."""


class UserError(ValueError):
    """Bad input. The message names the file, key or flag, what was expected, and what to do."""
