"""A network's forward and backward as CUDA graphs: recorded once, and then given to the device as a whole, where a small network's many kernels
take the host longer to start than the device to compute.

What is recorded is the network as it runs otherwise, with all its other fast paths, and it is held to that: before a recording is used, its answer and
every gradient are compared with what the network itself gives for the same question. Whatever is not as it was when it was recorded runs as ever.
"""
from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from .compiled import in_short
from .on_demand import replaced, replaced_forward

WARM = 3  # runs before a recording, in which libraries make their choices and compilers compile
FAR = {torch.float32: 1e-3}  # relative differences of the gradients that are no rounding; of other dtypes OTHERS
OTHERS = 3e-2
SHAPES = 16  # that are recorded, each by itself; the others run as ever
MOST = 4 * SHAPES  # recordings a run: as often as blocks are compiled and no longer compiled, each shape is recorded anew
_log = logging.getLogger("lora_loom")

Gradients = tuple["torch.Tensor | None", ...]


class Recorder(Protocol):
    """How a device records: functions that write into the same memory at every call go in, what repeats them comes out."""

    def warm(self, function: Callable[[], object]) -> str:
        """Runs the function; why it could not be recorded, or ""."""

    def record(self, forward: Callable[[], torch.Tensor], backward: Callable[[torch.Tensor], Gradients]) -> Recording:
        """The answer and the gradients lie in the same place after every repetition."""


class Recording(Protocol):
    answer: torch.Tensor
    gradients: Gradients

    def forward(self) -> None: ...

    def backward(self) -> None: ...


class Recorded:
    """A network that runs recorded while `on`, in steps. `failed` says why it does not; `recordings` counts. `state` is asked for what else recordings
    depend on, and others are made where it changes. All of them share their memory: one repeats at a time, from its answer to its gradients."""

    def __init__(self, several: bool = False, state: Callable[[], Hashable] = lambda: None, recorder: Callable[[torch.device], Recorder] | None = None) -> None:
        """several: more than one answer's gradients add up to a step."""
        self.on, self.failed, self.recordings = False, "", 0
        self.usable = False  # whether a network is there that can be recorded, as far as is known
        self._recorder, self._several, self._state = recorder or Cuda, several, state
        self._held: list[_Held] = []
        self._place: Recorder | None = None

    @contextmanager
    def of(self, network: torch.nn.Module, ready: Callable[[torch.nn.Module], bool]) -> Iterator[None]:
        """Inside, the network goes through here if all of its layers are `ready`: their weights lie on the device for as long.

        To be entered after all else that replaces `forward`, and before adapters are in the tree."""
        layers = [layer for layer in network.modules() if layer._parameters or layer._buffers]
        self.usable = not self.failed and not replaced(network) and all(map(ready, layers))
        if not self.usable:
            yield
            return
        with replaced_forward(network, self._forward()):
            try:
                yield
            finally:
                self._forget()
                self.usable = False

    def stop(self, why: str) -> None:
        """Off, for all that is left of the run; its memory is given back."""
        self.on, self.usable, self.failed = False, False, why
        self._forget()

    def _forget(self) -> None:
        self._held, self._place = [], None  # where the recordings lie goes with the last of them

    def _forward(self) -> Callable:
        def forward(network, *args, **kwargs):
            plain = type(network).forward
            if not self.on or not torch.is_grad_enabled():
                return plain(network, *args, **kwargs)
            leaves, tree = tree_flatten((args, kwargs))
            asked = _Asked(leaves, tree, self._state())
            if any(held.waited_for for held in self._held):
                return plain(network, *args, **kwargs)
            if self._held and self._held[0].asked.state != asked.state:
                self._forget()
            held = next((held for held in self._held if held.asked.same(asked)), None) or self._recording(network, plain, asked)
            return plain(network, *args, **kwargs) if held is None else held(asked.tensors)

        return forward

    def _recording(self, network: torch.nn.Module, plain: Callable, asked: _Asked) -> _Held | None:
        """A recording of that question, which was compared with the plain answer; None where there is none, and off where it failed."""
        if len(self._held) >= SHAPES:
            return None
        parameters = [p for p in network.parameters() if p.requires_grad]
        why = "" if self.recordings < MOST else "it would have to be recorded too often"
        devices = {t.device for t in (*asked.tensors, *parameters)}
        if len(devices) != 1 or not parameters or any(t.requires_grad for t in asked.tensors):
            why = why or "what it is given is not on the device alone, or is trained itself"
        if not why:
            self.recordings += 1
            try:
                held, self._place = _Held(asked, parameters, self._several), self._place or self._recorder(devices.pop())
                why = held.record(self._place, lambda args, kwargs: plain(network, *args, **kwargs))
            except Exception as error:
                why = in_short(error)
        if why:
            self.stop(why)
            _log.info("steps are not recorded: %s", why)
            return None
        self._held.append(held)
        return held


class _Asked:
    """What a network was called with: tensors, and all else, which must be the same again."""

    def __init__(self, leaves: list, tree: Any, state: Hashable) -> None:
        self.leaves, self.tree, self.state = leaves, tree, state
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def same(self, other: _Asked) -> bool:
        return self.state == other.state and self.tree == other.tree and all(map(_alike, self.leaves, other.leaves))

    def copied(self) -> _Asked:
        """The same on memory of its own."""
        return _Asked([leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves], self.tree, self.state)

    def again(self) -> tuple[tuple, dict]:
        """(args, kwargs)"""
        return tree_unflatten(self.leaves, self.tree)


def _alike(mine: object, other: object) -> bool:
    if isinstance(mine, torch.Tensor):
        return isinstance(other, torch.Tensor) and (mine.shape, mine.dtype, mine.device) == (other.shape, other.dtype, other.device)
    return mine is other or type(mine) is type(other) and isinstance(mine, (str, int, float, bool)) and mine == other


class _Held:
    """A recording, with the memory that it reads and writes."""

    def __init__(self, asked: _Asked, parameters: list[torch.nn.Parameter], several: bool) -> None:
        self.asked = asked.copied()
        self.parameters, self.several = parameters, several
        self.recording: Recording | None = None
        self.weights = self.answers = None  # of the answer's gradient; how the answer is packed
        self._token: weakref.ref | None = None

    def record(self, recorder: Recorder, network: Callable[[tuple, dict], Any]) -> str:
        """Why it cannot be, or ""."""
        def forward() -> torch.Tensor:
            (answer,), self.answers = tree_flatten(network(*self.asked.again()))
            return answer

        def backward(answer: torch.Tensor) -> Gradients:
            return torch.autograd.grad(answer, self.parameters, self.weights, allow_unused=True)

        with torch.no_grad():
            self.weights = torch.ones_like(forward())
            self.weights[..., ::2] = -0.5  # no sum in which an error would cancel out

        def step() -> None:
            backward(forward())

        for _ in range(WARM):
            why = recorder.warm(step)
        if why:
            return why
        self.recording = recorder.record(forward, backward)
        with torch.no_grad():
            for tensor in self.asked.tensors:  # another question, so that nothing of this one can have been kept for the answer
                if tensor.is_floating_point():
                    tensor.mul_(0.75)
        answer = forward()
        expected = answer.detach().clone(), *backward(answer)
        del answer
        for _ in range(2):  # a second time shows what it left behind
            self.recording.forward()
            self.recording.backward()
        found = self.recording.answer, *self.recording.gradients
        share = FAR.get(found[0].dtype, OTHERS)
        return "" if _near(found, expected, share) else "the recording gave other gradients than the network itself"

    @property
    def waited_for(self) -> bool:
        """Whether an answer's backward is yet to come: it needs what the recording wrote for it."""
        return self._token is not None and self._token() is not None

    def __call__(self, tensors: list[torch.Tensor]) -> Any:
        with torch.no_grad():
            torch._foreach_copy_(self.asked.tensors, tensors)
        token = _Token()
        self._token = weakref.ref(token)
        return tree_unflatten([_Replay.apply(self, token, *self.parameters)], self.answers)

    def done(self) -> None:
        self._token = None


class _Token:
    """Lives as long as somebody may ask for an answer's gradients."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, held, token, *parameters):
        ctx.held, ctx.token = held, token
        held.recording.forward()
        return held.recording.answer.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        held, ctx.token = ctx.held, None
        held.weights.copy_(grad)
        held.recording.backward()
        held.done()
        # where they are added up, they must not be what the next repetition writes to
        return None, None, *(None if g is None else g.clone() if held.several else g.detach() for g in held.recording.gradients)


def _near(found: tuple, expected: tuple, share: float) -> bool:
    """Whether the tensors are the same to that share of their norm, the answers and the gradients each as a whole."""
    for mine, other in ((found[:1], expected[:1]), (found[1:], expected[1:])):
        if [m is None for m in mine] != [o is None for o in other]:
            return False
        pairs = [(m.double(), o.double()) for m, o in zip(mine, other) if m is not None]
        away, whole = (torch.stack([t.square().sum() for t in ts]).sum().sqrt().item() for ts in ([m - o for m, o in pairs], [o for _, o in pairs]))
        if not away <= share * whole:  # nor where one is no number
            return False
    return True


class Cuda:
    """Records on a CUDA device, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise RuntimeError(f"{device} records nothing")
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, function: Callable[[], object]) -> str:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        before = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # what waits for the device would break a recording off
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        current.wait_stream(self.stream)
        return next(("a layer waits for the device" for one in heard if "synchronizing" in str(one.message)), "")

    def record(self, forward: Callable[[], torch.Tensor], backward: Callable[[torch.Tensor], Gradients]) -> Recording:
        return _CudaRecording(self, forward, backward)

    @contextmanager
    def capturing(self) -> Iterator[torch.cuda.CUDAGraph]:
        """torch.cuda.graph, which leaves its stream, torch's allocator and its random numbers as they were also where a recording breaks off. Other
        threads may go on using the device."""
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self.stream.device.index]
        spare = generator.clone_state()
        with torch.cuda.stream(self.stream):
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    yield graph
            except BaseException:
                with suppress(Exception):  # where torch could not end it, and so gives nothing back either
                    torch._C._cuda_endAllocateToPool(self.stream.device.index, self.pool)
                    torch._C._cuda_releasePool(self.stream.device.index, self.pool)
                with suppress(Exception):
                    generator.graphsafe_set_state(spare)
                raise


class _CudaRecording:
    def __init__(self, cuda: Cuda, forward: Callable[[], torch.Tensor], backward: Callable[[torch.Tensor], Gradients]) -> None:
        with cuda.capturing() as self._forward:
            answer = forward()
        with cuda.capturing() as self._backward:
            self.gradients = backward(answer)
        self.answer = answer.detach()

    def forward(self) -> None:
        self._forward.replay()

    def backward(self) -> None:
        self._backward.replay()
