"""Flow matching: the path, the solvers, guidance, averages. Mathematics on tensors: knows nothing about models or music."""
