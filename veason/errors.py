"""The exception for faults that a user can put right: a file, an entry, an option."""


class DataError(ValueError):
    """Input is missing or wrong. The message names the file or sample, what was found, and the remedy."""
