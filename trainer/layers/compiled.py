"""A network's repeated blocks through torch.compile, each kind once (regional compilation), and as they are wherever that fails.

Inside a compiled block frozen layers and adapters are plain operations on weights where they lie (`torch.compiler.is_compiling` tells them), so that
torch's compiler fuses what lies between the products, and decides itself what is kept for backward.
"""
from __future__ import annotations

import contextlib
import logging
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from .on_demand import replaced, replaced_forward, usable

SHAPES = 64  # of one kind of block, at most: each is compiled by itself
# Drawn as the layers themselves would; and no copies of convolutions' weights in another layout, which would be kept for backward.
INDUCTOR = {"fallback_random": True, "layout_optimization": False}
GONE = "weights no longer lie on the device"
_log = logging.getLogger("lora_loom")


class Blocks:
    """Blocks that run compiled while `on`, in steps; what is drawn or checked between them runs as ever.

    `failed` says of each kind of block why it does not, by the class's name; `compilations` counts what has been compiled. Shapes beyond SHAPES run as
    ever."""

    def __init__(self, backend: str = "inductor") -> None:
        self.on, self.failed, self.compilations = False, {}, 0
        self._backend, self._entries = backend, {}
        self._shapes: set[tuple] = set()
        self._until = ExitStack()  # what ends with the run

    @property
    def usable(self) -> bool:
        """Whether a kind of block is there that can be compiled, as far as is known."""
        return any(kind not in self.failed for kind, *_ in self._shapes)

    @property
    def kinds(self) -> dict[str, int]:
        """How many compilations each kind of block takes for one size of pictures and captions: blocks of other weights are other ones."""
        return Counter(kind for kind, *_ in self._shapes if kind not in self.failed)

    @contextmanager
    def of(self, blocks: Iterable[torch.nn.Module], ready: Callable[[torch.nn.Module], bool],
           tidy: Callable[[object], object] = lambda value: value) -> Iterator[None]:
        """Inside, those of the blocks go through here whose layers are all `ready`: their weights lie on the device, to be multiplied with as they are.

        To be entered after `weights_on_demand`, and before adapters are in the tree. tidy: what a block is given, as it is to be given to a
        compiled one: whatever differs from block to block means another compilation."""
        with ExitStack() as self._until:
            stack = self._until
            stack.callback(self._entries.clear)  # and what was compiled goes with its code
            self._shapes.clear()
            for block in blocks:
                layers = [layer for layer in block.modules() if layer._parameters or layer._buffers]
                if replaced(block) or not all(map(ready, layers)):
                    continue
                for layer in layers:
                    stack.enter_context(usable(layer))
                self._shapes.add((type(block).__name__, *(tuple(p.shape) for p in block.parameters())))
                stack.enter_context(replaced_forward(block, self._forward(tidy)))
            yield

    def stop(self, why: str) -> None:
        """Off, for all that is left of the run."""
        self.on = False
        for kind, *_ in self._shapes:
            self.failed.setdefault(kind, why)

    def _forward(self, tidy: Callable[[object], object]) -> Callable:
        def forward(block, *args, **kwargs):
            kind = type(block)
            if not self.on or kind.__name__ in self.failed or not torch.is_grad_enabled():
                return kind.forward(block, *args, **kwargs)
            entry = None
            try:
                entry = self._entry(kind)
                return entry(block, *map(tidy, args), **{name: tidy(value) for name, value in kwargs.items()})
            except Exception as error:
                if entry is not None and not of_the_compiler(error):
                    raise
                if type(error).__name__ == "FailOnRecompileLimitHit":  # those before it stay compiled
                    return kind.forward(block, *args, **kwargs)
                self.failed[kind.__name__] = in_short(error)
                _log.info("%s is not compiled: %s", kind.__name__, error)
                self.on = self.usable
                return kind.forward(block, *args, **kwargs)

        return forward

    def _entry(self, kind: type[torch.nn.Module]) -> Callable:
        """The kind's forward, compiled. Its code is a copy, which torch's cache goes by: with the copy it is gone."""
        if not self._entries:  # its import takes a second or two
            from torch._dynamo import config

            self._until.enter_context(config.patch(**{_limit(config): SHAPES}))
            self._until.callback(_stop_workers)
        if kind not in self._entries:
            method = kind.forward

            def entry(block, *args, **kwargs):
                return method(block, *args, **kwargs)

            copy = types.FunctionType(entry.__code__.replace(co_name=f"loom_{kind.__name__}"), entry.__globals__, None, None, entry.__closure__)
            self._entries[kind] = torch.compile(copy, fullgraph=True, dynamic=False, backend=self._compile)
        return self._entries[kind]

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.compilations += 1
        options = {"config_patches": INDUCTOR} if self._backend == "inductor" else {}
        return torch._dynamo.lookup_backend(self._backend)(graph, inputs, **options)


def _limit(config: object) -> str:
    """What torch's compiler calls the number of shapes that it keeps of a function."""
    return "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7


def _stop_workers() -> None:
    """The compiler's processes, which wait for more as long as this one lives; they begin anew where somebody compiles."""
    with contextlib.suppress(Exception):
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()


def of_the_compiler(error: BaseException | None) -> bool:
    """Whether torch's compiler raised it, or what came before it."""
    while error is not None:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch", "triton")):
            return True
        error = error.__cause__
    return False


def in_short(error: BaseException) -> str:
    """Its kind and the first line of what it says; of what the compiler ran into, where it wraps that."""
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
