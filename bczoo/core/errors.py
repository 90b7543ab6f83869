"""Errors that the user can put right.

Place in the pipeline: anywhere something that came from outside (data, configuration, a game) does not fit. The
command line shows the message alone; a traceback would not help.
"""


class UserError(ValueError):
    """Says what was wrong, where, and what to do."""
