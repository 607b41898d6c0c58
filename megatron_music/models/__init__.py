"""Models built from megatron-core's parts."""
