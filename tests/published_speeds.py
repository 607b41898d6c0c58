"""Speeds of published training runs."""

# arXiv:2104.04473, table 1: billions of parameters, heads, hidden, layers, GPUs, global batch, TFLOP/s a GPU, percent
# of 312, all GPUs' PFLOP/s. Shapes, GPUs and batches are those of Megatron-LM's script for the table; the last three
# are second hand.
TABLE_1 = [
    (1.7, 24, 2304, 24, 32, 512, 137, 44, 4.4, 15.5),
    (3.6, 32, 3072, 30, 64, 512, 138, 44, 8.8, 32.7),
    (7.5, 32, 4096, 36, 128, 512, 142, 46, 18.2, 67.2),
    (18.4, 48, 6144, 40, 256, 1024, 135, 43, 34.6, 324.8),
    (39.1, 64, 8192, 48, 512, 1536, 138, 44, 70.8, 1021.2),
    (76.1, 80, 10240, 60, 1024, 1792, 140, 45, 143.8, 2302.0),
    (145.6, 96, 12288, 80, 1536, 2304, 148, 47, 227.1, 5641.7),
    (310.1, 128, 16384, 96, 1920, 2160, 155, 50, 297.4, 11194.0),
    (529.6, 128, 20480, 105, 2520, 2520, 163, 52, 410.2, 22215.9),
    (1008.0, 160, 25600, 128, 3072, 3072, 163, 52, 502.0, 51390.5),
]


# arXiv:2205.05198: hidden, layers, heads, GPUs, global batch, seconds with full and with selective recomputation, and
# MFU and HFU in percent. MFU and HFU of 530B and 1T were read in the paper; the rest is second hand.
TABLE_5 = {
    "22B": (6144, 48, 64, 8, 4, 1.42, 1.10, 41.5, 43.7),
    "175B": (12288, 96, 96, 64, 64, 18.13, 13.75, 51.4, 52.8),
    "530B": (20480, 105, 128, 280, 280, 49.05, 37.83, 56.0, 57.0),
    "1T": (25600, 128, 160, 512, 512, 94.42, 71.49, 56.3, 57.0),
}
