"""Pictures on the way: the same prompts and noise each time, through the host's own sampler, on the adapters as they are.

They are for the eye: nothing of the training's random numbers is used, and what goes wrong with them ends no run.
"""
from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from .adapters import evaluating
from .backbones.protocol import TrainableModel
from .config import SampleConfig
from .data.batches import Encoded
from .data.dataset import Dataset
from .errors import LoomError
from .files import write_whole
from .hooks import Hooks, Progress
from .runs import logs
from .state import State


class Samples:
    """Draws into the run's folder `samples/`, before the first step, every `sample_steps` and after the last; with 0 only when the host asks."""

    def __init__(self, model: TrainableModel, dataset: Dataset, config: SampleConfig, run: Path, log: logs.Log, hooks: Hooks, live_text: bool) -> None:
        """live_text: text encoders are trained, so prompts are encoded anew each time; else once, here, while the encoder is at hand (or when the
        host first asks for pictures)."""
        self.model, self.config, self.run, self.log, self.hooks = model, config, run, log, hooks
        self.prompts = list(config.sample_prompts) or list(dict.fromkeys(filter(None, map(dataset.caption, dataset.pictures))))[:2]
        self.shape: tuple[int, ...] = ()
        self.draws, self.seconds, self.failure = 0, 0.0, ""
        self.newest: list[Path] = []
        self.conditions: list | None = None
        self.live_text = live_text
        if not live_text and config.sample_steps:
            with self._guarded(0):
                self.conditions = self._encoded()

    @contextmanager
    def _guarded(self, step: int) -> Iterator[None]:
        """An error inside is said once, in an event and in the report; then there are no more pictures."""
        try:
            yield
        except self.hooks.interrupts:
            raise
        except Exception as error:
            self.failure = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
            self.hooks.event("sample failed", {"step": step, "reason": self.failure})

    def shaped(self, encoded: Encoded) -> Samples:
        """As most of the pictures are."""
        self.shape = Counter(row.shape for row in encoded.rows).most_common(1)[0][0]
        return self

    @property
    def bytes(self) -> int:
        """About what drawing once writes: PNG files of photos take some two bytes a pixel."""
        return len(self.prompts) * self.model.family.cell ** 2 * self.shape[-2] * self.shape[-1] * 2

    def watching(self, state: State, then: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The progress hook `then`, and the pictures after it."""

        def progress(now: Progress) -> None:
            then(now)
            every, asked = self.config.sample_steps, self.hooks.wanted("sample")
            if asked:
                self.failure = ""  # whoever asks wants it tried again
            if asked or every and (now.step % every == 0 or now.step >= now.total):
                self.draw(state)

        return progress

    def draw(self, state: State) -> None:
        """One picture a prompt, unless something has gone wrong before."""
        if self.failure:
            return
        started, paths = time.monotonic(), []
        with self._guarded(state.step):
            cuda = [self.model.device] if self.model.device.type == "cuda" else []
            try:
                with torch.random.fork_rng(devices=cuda), torch.no_grad(), evaluating(state.adapters), state.shown():
                    *positive, negative = self._conditions()
                    for number, (prompt, condition) in enumerate(zip(self.prompts, positive), 1):
                        self.hooks.poll()
                        pixels = self.model.sample(condition, negative, self.shape, self.config.sample_seed, self.config.sample_cfg)
                        if not pixels.isfinite().all():
                            raise LoomError(f"the picture of {prompt[:80]!r} holds values that are no numbers")
                        paths.append(self._save(pixels, prompt, state.step, number))
            finally:
                self.model.release_encoders(text_encoders=False)
            self.draws, self.seconds, self.newest = self.draws + 1, self.seconds + time.monotonic() - started, paths
            self.hooks.event("sample", {"step": state.step, "files": [path.name for path in paths], "paths": paths, "prompts": self.prompts})

    def to_come(self, step: int, total: int) -> float:
        """Seconds that the pictures after `step` will take, as those before it did."""
        if not self.config.sample_steps:
            return 0.0
        left = total // self.config.sample_steps - step // self.config.sample_steps + bool(total % self.config.sample_steps)
        return 0.0 if self.failure or not self.draws else left * self.seconds / self.draws

    def _conditions(self) -> list:
        if self.live_text:
            return self._encoded()
        if self.conditions is None:
            self.conditions = self._encoded()
            self.model.release_encoders(text_encoders=True)
        return self.conditions

    def _encoded(self) -> list:
        positive = self.model.encode_prompts(self.prompts, as_captions=not self.config.sample_prompts)
        return [*positive, *self.model.encode_prompts([self.config.sample_negative])]

    def _save(self, pixels: torch.Tensor, prompt: str, step: int, number: int) -> Path:
        """pixels (H, W, 3) in 0..1 -> samples/step000100_1.png with what it was drawn from, and TensorBoard."""
        image = Image.fromarray((pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        facts, data = PngImagePlugin.PngInfo(), io.BytesIO()
        facts.add_itxt("lora_loom", f"{prompt}\nstep {step}, seed {self.config.sample_seed}")
        image.save(data, "PNG", pnginfo=facts)
        path = self.run / "samples" / f"step{step:06d}_{number}.png"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data.getvalue())
        self.log.picture(f"samples/{number}", pixels, step)
        return path
