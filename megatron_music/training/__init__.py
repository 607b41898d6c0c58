"""The training loop on megatron-core: processes, optimizer, checkpoints, metrics."""
