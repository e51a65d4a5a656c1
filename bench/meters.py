"""What is measured of a case: time, memory, and what became of the base weights."""
from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import threading
import time
import zlib
from dataclasses import dataclass, field

import psutil
import torch
from bases import Base
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CPU = torch.device("cpu")
# attention on CPUs, which torch's counter does not know: the same formulas as on GPUs
_ALIKE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
          torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: torch.ops.aten._scaled_dot_product_flash_attention_backward}
SMALL = 4096  # values: below this a parameter may well look like another by chance, and weighs nothing


def tidy() -> None:
    """Every case starts alike: nothing of the one before is loaded, cached or kept by the allocator."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    trim()


def trim() -> None:
    """What is free goes back to the system, so that the VAE's activations do not count as the training's."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def private_bytes() -> int:
    """Resident memory without mapped files: the checkpoint's page cache is nobody's cost."""
    info = psutil.Process().memory_info()
    return info.rss - getattr(info, "shared", 0)


class Weights:
    """The base UNet's parameters as they were: are they still, and does anybody hold the same values a second time? Where ComfyUI moves them to a GPU and
    back they are elsewhere afterwards, and what is held there a second time is not looked for."""

    def __init__(self, base: Base) -> None:
        self.root, self.moved = base.model.model.diffusion_model, base.model.load_device.type != "cpu"
        self.before = self._state()
        theirs = () if base.theirs is None else base.theirs.parameters()
        self.own = {p.untyped_storage().data_ptr() for p in (*self.root.parameters(), *theirs)}
        self.heads: dict[tuple, list[torch.Tensor]] = {}
        for p in (p for p in self.root.parameters() if p.numel() >= SMALL):
            self.heads.setdefault(tuple(p.shape), []).append(self._head(p))

    def _state(self) -> dict[str, tuple[int, int]]:
        return {name: (0 if self.moved else p.data_ptr(), zlib.crc32(p.detach().contiguous().view(torch.uint8).cpu().numpy()))
                for name, p in self.root.named_parameters()}

    @staticmethod
    def _head(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1)[:64].float().clone()

    def unchanged(self) -> bool:
        """Same storages, same bytes."""
        return self._state() == self.before

    def copied(self) -> int:
        """Bytes of other live tensors that hold a parameter's values, in whatever dtype."""
        found: dict[int, int] = {}
        if self.moved:
            return 0
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and tuple(thing.shape) in self.heads and thing.device == CPU:
                if isinstance(thing, FakeTensor):  # of torch's compiler, without values
                    continue
                storage = thing.untyped_storage()
                if storage.data_ptr() in self.own or storage.nbytes() == 0:
                    continue
                head = self._head(thing)
                if any(torch.allclose(head, own, rtol=1e-2, atol=1e-4) for own in self.heads[tuple(thing.shape)]):
                    found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())


class Operations(TorchDispatchMode):
    """`count` of the floating-point operations inside, forward and backward, by torch's own formulas: products, convolutions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(_ALIKE.get(func._overloadpacket, func._overloadpacket))
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=made)
        return made


def products_rate(dtype: torch.dtype, device: str = "cpu", seconds: float = 3.0) -> float:
    """Operations a second of this machine's matrix products, at their best."""
    size, times = (2048, 1) if device == "cpu" else (8192, 10)
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        before = time.perf_counter()
        for _ in range(times):
            a @ b
        wait(device)
        best = min(best, time.perf_counter() - before)
    return 2 * size ** 3 * times / best


def wait(device: str) -> None:
    """For all that a GPU has been given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


class Saved:
    """`bytes` of what autograd keeps for backward in the second step of a run that ticks: storages, each counted once, without weights. What
    checkpointing computes again is not counted, only what it keeps for that. `operations`: those of that step."""

    def tick(self, done: int) -> None:
        if done == 1:
            self._begin()
        elif done == 2:
            self._end()

    def _begin(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)
        self._hooks.__enter__()
        self._operations = Operations()
        self._operations.__enter__()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return tensor

    def _end(self) -> None:
        self._operations.__exit__(None, None, None)
        self.operations = self._operations.count
        self._hooks.__exit__()
        weights = {t.untyped_storage().data_ptr() for t in gc.get_objects() if issubclass(type(t), torch.nn.Parameter)}
        self.bytes = sum(storage.nbytes() for pointer, storage in self._storages.items() if pointer not in weights)
        self._storages.clear()


class Peak:
    """`bytes`: the most memory held inside, above what was held when it was entered or `restart`ed; sampled from a thread."""

    def __enter__(self) -> Peak:
        trim()
        self.baseline = self.level = private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def restart(self) -> None:
        self.level = private_bytes()

    @property
    def bytes(self) -> int:
        return self.level - self.baseline

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.level = max(self.level, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Reserved:
    """The same on a GPU: `bytes` is the most that torch has reserved there, the base model's weights among it."""

    def __enter__(self) -> Reserved:
        self.restart()
        return self

    def restart(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    @property
    def bytes(self) -> int:
        return torch.cuda.max_memory_reserved()

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()


@dataclass
class Meter:
    """A case's figures over all rounds. `tick` notes the steps; memory is sampled from a thread while the meter is entered. A GPU, which goes on by itself,
    is waited for before the first timed step and after the last."""

    weights: Weights | None = None
    device: str = "cpu"
    warm: int = 1  # steps of a round that are not timed
    total: int = 0  # steps of a round
    seconds: list[float] = field(default_factory=list)  # one a timed step; on a GPU one a round, of a step on an average
    setup: list[float] = field(default_factory=list)  # from encoded pictures to the end of the first step
    peaks: list[int] = field(default_factory=list)  # bytes above what was resident when the case began, from encoded pictures on
    copied: list[int] = field(default_factory=list)
    trained: int = 0
    saved: int = 0  # bytes for backward, of one step
    operations: int = 0  # floating-point ones, of one step

    def tick(self, done: int) -> None:
        now = time.perf_counter()
        if done == 0:
            trim()
            self._peak.restart()
            self._began = time.perf_counter()
        elif done == 1:
            self.setup.append(now - self._began)
            if self.weights:
                self.copied.append(self.weights.copied())
        elif self.device == "cpu" and done > self.warm:
            self.seconds.append(now - self._last)
        elif done == self.total:
            wait(self.device)
            self.seconds.append((time.perf_counter() - self._last) / (self.total - self.warm))
        if self.device == "cpu" or done <= self.warm:
            if done == self.warm:
                wait(self.device)
            self._last = time.perf_counter()

    def __enter__(self) -> Meter:
        tidy()
        self._peak = (Peak() if self.device == "cpu" else Reserved()).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._peak.__exit__()
        self.peaks.append(self._peak.bytes)
