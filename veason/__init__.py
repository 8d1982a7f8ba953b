"""Samples, prompts, replies and masks. Imports nothing else of the project, and torch in the trackers alone."""

__version__ = "0.1.0"
