"""The one exception that a user is meant to read."""

from __future__ import annotations


class CarvError(ValueError):
    """Something the user can mend: one sentence that names what is wrong and the way out.

    The command line prints the sentence and exits with status 2, without a traceback.
    """
