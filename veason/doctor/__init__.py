"""A doctor for data: looks over a copy of a benchmark before a run does, and says what is wrong and what to do."""
