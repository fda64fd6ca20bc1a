from contextlib import nullcontext

import pytest
import torch

from customdiff_core.devices import autocast, grad_scaler, needing_memory, resolve_device
from customdiff_core.errors import ConfigError, DeviceMemoryError


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ConfigError) as error:
        resolve_device(device)
    assert str(error.value) == f"device: found no {device} on this machine, need one of cpu; choose it or auto"


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError) as error:
        autocast(torch.device("cpu"), "fp16")
    assert str(error.value) == (
        "precision: found fp16 on a CPU, need fp32 or bf16 there; set train.precision or sample.precision (customdiff train: "
        "--set precision=fp32, generate: --precision fp32)"
    )


def test_bf16_computes_in_bf16_and_fp32_does_not():
    one = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert (one @ one).dtype == torch.bfloat16
    assert isinstance(autocast(torch.device("cpu"), "fp32"), nullcontext)


def test_the_gradient_scaler_acts_for_fp16_on_cuda_alone():
    assert not grad_scaler(torch.device("cpu"), "fp32").is_enabled()
    assert not grad_scaler(torch.device("cpu"), "fp16").is_enabled()


def test_the_end_of_a_gpus_memory_is_named_with_what_to_do():
    with pytest.raises(DeviceMemoryError) as error, needing_memory("training", "lower train.batch_size"):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB."
        )
    assert str(error.value) == (
        "training: found no GPU memory left (CUDA out of memory), need less or a larger GPU; lower train.batch_size"
    )
    with pytest.raises(ValueError, match="another"), needing_memory("training", "nothing"):
        raise ValueError("another")
