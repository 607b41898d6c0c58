"""Flow matching: the path, the solvers, guidance, averages. Mathematics on tensors alone."""
