"""Which device a run without a host computes on."""
from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .errors import LoomError


def check_device(device: str) -> str:
    """The device if it is one that torch may have; raises LoomError otherwise. Imports no torch: a mistake answers at once."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise LoomError(f"device {device!r} is unknown: take auto, cpu, cuda, or cuda:1 for the second card")
    return device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes on so many CPU threads inside; 0 changes nothing. On operations of microseconds they wait for each other more than they
    work, and ten times so where another program takes a core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bf16_instructions() -> bool | None:
    """Whether this CPU has them (AVX512-BF16 or AMX); None where torch cannot tell."""
    import torch

    known = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if platform.machine().lower() not in ("x86_64", "amd64") or not all(known):
        return None
    return any(ask() for ask in known)


def slow_in_bf16(device: Any) -> bool:
    """Whether that is a CPU without bf16 instructions, where bf16 takes several times as long as fp32."""
    return str(device) == "cpu" and _bf16_instructions() is False


def fast_in_bf16(device: Any) -> bool:
    """Whether that is a CPU that computes in bf16 faster than in fp32."""
    return str(device) == "cpu" and _bf16_instructions() is True


def compiles_by_itself(device: Any) -> bool:
    """Whether torch.compile is worth trying there unasked: its compiler for GPUs is there. On a CPU it takes minutes and gains little."""
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    return has_triton()


NATIVE = ("Steps were not recorded as CUDA graphs, for which torch must manage the GPU's memory by itself: start ComfyUI with --disable-cuda-malloc, "
          "or set compile to never or auto")


def why_not_recorded(device: Any) -> str | None:
    """Why CUDA graphs are not safe on that device, "" where that goes without saying; None where they are.

    Under cudaMallocAsync, ComfyUI's default, what is allocated within a recording is the graph's own: where one breaks off, giving it back is an error
    in a destructor, which ends the process, and graphs that are gone keep their memory. ROCm's graphs were never tried.
    """
    import torch

    if device.type != "cuda" or torch.version.hip:
        return ""
    return None if torch.cuda.get_allocator_backend() == "native" else NATIVE


def free_memory(device: Any) -> int | None:
    """Bytes that torch may still take there; None where nobody knows."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        import psutil  # comes with accelerate and with ComfyUI
    except ImportError:
        return None
    return psutil.virtual_memory().available


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a type for that, but what a library or the driver lacks comes as another. Such an error is cleared."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    if not isinstance(error, RuntimeError) or not any(word in words for word in ("out of memory", "alloc_failed")):
        return False
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.cuda.synchronize()
    return True


def onto(tensor: Any, device: Any, dtype: Any = None) -> Any:
    """The tensor there. A copy to a CUDA device waits for nothing: one out of pageable memory would wait for all that the device has yet to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)  # then the type: both at once go through pageable memory
    return tensor.to(device, dtype)


@contextmanager
def capped(device: Any, limit: int) -> Iterator[None]:
    """torch reserves no more than that many bytes of a CUDA device inside, and what it lacks then is OutOfMemoryError as ever; 0 caps nothing."""
    import torch

    if not limit or device.type != "cuda":
        yield
        return
    # cudaMallocAsync, ComfyUI's default, begins with no limit at all, which torch tells as hundreds of millions of the card
    before = min(1.0, getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device))
    torch.cuda.empty_cache()  # what is reserved and unused would count
    torch.cuda.set_per_process_memory_fraction(min(before, limit / torch.cuda.mem_get_info(device)[1]), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def best_device(device: str) -> str:
    """`auto` as what this machine has. Raises LoomError where CUDA is asked for and not there."""
    import torch

    check_device(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LoomError(f"device {device!r} is not there: torch sees no CUDA device; take cpu or auto, or install a CUDA build of torch")
    return device
