"""Where tensors live and how wide they are: CPU, CUDA and MPS."""

import ctypes
import gc
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil
import torch

from customdiff_core.config import Device, Precision
from customdiff_core.errors import ConfigError, DeviceMemoryError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: Device) -> torch.device:
    """Return the device asked for; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: if it is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[device]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ConfigError(f"device: found no {device} on this machine, need one of {there}; choose it or auto")
    return torch.device(device)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which the network computes, whatever its parameters are held in.

    Raises:
        ConfigError: for fp16 on a CPU, where neither speed nor range speaks for it.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "precision: found fp16 on a CPU, need fp32 or bf16 there; set train.precision or sample.precision (customdiff train: "
            "--set precision=fp32, generate: --precision fp32)"
        )
    return torch.autocast(device.type, dtype=DTYPES[precision])


@contextmanager
def needing_memory(what: str, remedy: str) -> Generator[None]:
    """Compute something that may be too large for a GPU.

    Args:
        what: is computed.
        remedy: which settings need less.

    Raises:
        DeviceMemoryError: naming both, if the GPU's memory ends.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        raise DeviceMemoryError(
            f"{what}: found no GPU memory left ({said}), need less or a larger GPU; {remedy}"
        ) from error


def forget_peak_memory(device: torch.device) -> None:
    """Begin to measure memory: what ran before in this process, and was freed, does not count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what is freed
        trim(0)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU since `forget_peak_memory`, or what the process holds of the RAM now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def grad_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return the gradient scaler, which does nothing unless fp16 needs it."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16" and device.type == "cuda")
