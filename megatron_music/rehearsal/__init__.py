"""Rehearsal of a training step of many GPUs on one machine without any: the real code, over a stand-in for CUDA and
NCCL.
"""
