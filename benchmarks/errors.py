"""What the user of a benchmark has to change."""

from __future__ import annotations


class BadInput(Exception):
    """A file, a folder or an option cannot be used; the message says what to do instead.

    Never holds a prompt: logs are somebody's conversations.
    """
