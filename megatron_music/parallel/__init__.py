"""Processes, process groups, and the adapter for machines without CUDA."""
