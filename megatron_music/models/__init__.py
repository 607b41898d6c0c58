"""Models built from megatron-core's parts. Knows nothing about data, losses or training loops."""
