"""Score prediction folders against ground truth, one protocol a benchmark. Knows no model, imports no torch."""
