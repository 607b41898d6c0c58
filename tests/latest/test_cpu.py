"""The CPU adapter under a torch that was built with CUDA, on a machine without: `make test` has the build without."""

import pytest
import torch

from megatron_music.parallel import cpu_backend


def test_the_adapter_is_not_taken_for_cuda(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning does, and NeMo with it
    if not cpu_backend.install():
        pytest.skip("this machine has CUDA, where there is no adapter")
    try:
        assert torch.cuda.device_count() == 1  # what megatron-core is told
        assert not torch.cuda.is_available()
    finally:
        cpu_backend.uninstall()
    assert not torch.cuda.is_available()
