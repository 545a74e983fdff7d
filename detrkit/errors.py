"""The errors that a person can mend: the command line prints them without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something in the input is wrong, and the message says what, where and what is accepted instead."""


class DataError(UserError):
    """An image, an annotation file or a data set that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read safely, or that does not fit the recipe."""
