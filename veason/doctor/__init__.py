"""Examines a copy of a benchmark before a run does: what is wrong with it, and the remedies."""
