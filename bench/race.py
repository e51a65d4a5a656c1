"""Seconds until the toy base draws the new thing: ComfyUI's own TrainLoraNode and LoRA Loom's node, in one process.

`python bench/race.py` lets each trainer begin anew for each number of steps, scores its LoRA by the demo's marks, and stops where they are met. The clock runs
from encoded pictures to the LoRA; scoring is nobody's time. `--write` appends the table to bench/RESULTS.md. Needs a ComfyUI.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from bases import Base, load_toy, start_comfyui
from cases import Run, native, ours
from meters import tidy
from PIL import Image
from report import at_least, heading, table, write

PRESENT, STILL = 0.8, 0.9  # the demo's marks
STEPS = (50, 100, 150, 200, 300, 400, 600, 800, 1200)


def runners() -> dict[str, tuple[str, object, tuple[float, ...]]]:
    """{case: (its name, trainer, learning rates)}."""
    from lora_loom.trainer.toy import demo, shapes

    told = demo.CONFIG.to_dict()
    mine = {"train": {"batch_size": told["train"]["batch_size"], "precision": "auto"}, "loss": told["loss"], "trigger_word": shapes.CONCEPT}
    alone = {"train": {"batch_size": 4, "precision": "auto"}, "loss": {**told["loss"], "preservation": 0.0, "preservation_words": []}}
    return {
        "default": ("TrainLoraNode, defaults", partial(native, {}), (5e-4, 1e-3, 3e-3)),
        "bypass": ("TrainLoraNode, bypass_mode", partial(native, {"bypass_mode": True}), (5e-4, 1e-3, 3e-3)),
        "batch": ("TrainLoraNode, bypass_mode, batch 4", partial(native, {"bypass_mode": True, "batch_size": 4}), (1e-3, 3e-3)),
        "ours": ("LoRA Loom, as the demo trains", partial(ours, "all linear+conv", mine), (2e-3,)),
        "alone": ("LoRA Loom, the same without preservation", partial(ours, "all linear+conv", alone), (2e-3,)),
    }


class Judge:
    """Draws by ComfyUI's own forward, with the LoRA applied as LoraLoader does, and reads the pictures."""

    def __init__(self, base: Base) -> None:
        from lora_loom.trainer.toy import demo, shapes

        self.base, self.stars, others = base, *demo.prompts()
        self.others = [scene for image, scene in zip(self.drawn(others, None), others) if shapes.right(image, scene)]

    def __call__(self, lora: dict[str, torch.Tensor]) -> tuple[float, float]:
        """(share of the new stars that are drawn as stars, share of other captions that are still drawn right)."""
        from lora_loom.trainer.toy import demo, shapes

        present = sum(demo._is_star(image) for image in self.drawn(self.stars, lora)) / len(self.stars)
        return present, sum(shapes.right(image, scene) for image, scene in zip(self.drawn(self.others, lora), self.others)) / len(self.others)

    def drawn(self, scenes: list, lora: dict[str, torch.Tensor] | None) -> list[Image.Image]:
        """One picture a scene: Euler's method on the demo's number of steps, with its guidance."""
        import comfy.model_management
        import comfy.samplers
        import comfy.sd
        from lora_loom.trainer.toy import demo

        model = self.base.model if lora is None else comfy.sd.load_lora_for_models(self.base.model, None, lora, 1.0, 0.0)[0]
        tidy()
        comfy.model_management.load_models_gpu([model])
        texts = lambda captions: torch.cat([self.base.clip.encode_from_tokens(self.base.clip.tokenize(text)) for text in captions])
        inner, context, empty = model.model, texts([s.caption for s in scenes]), texts([""] * len(scenes))
        sigmas = comfy.samplers.calculate_sigmas(inner.model_sampling, "normal", demo.SAMPLING_STEPS)
        x = torch.randn(len(scenes), 4, 8, 8, generator=torch.Generator().manual_seed(demo.SEED)) * sigmas[0]
        for sigma, following in zip(sigmas, sigmas[1:]):
            without, wanted = inner.apply_model(torch.cat([x, x]), sigma.expand(2 * len(x)), c_crossattn=torch.cat([empty, context])).chunk(2)
            denoised = without + demo.CFG * (wanted - without)
            x = denoised + (x - denoised) / sigma * following
        pixels = self.base.vae.decode(inner.process_latent_out(x))
        tidy()
        return [Image.fromarray(p) for p in pixels.clamp(0, 1).mul(255).round().byte().numpy()]


def timed(trainer, base: Base, run: Run) -> tuple[float, dict[str, torch.Tensor]]:
    """(seconds from encoded pictures to the last step, the LoRA)."""
    began: list[float] = []
    tidy()
    lora = trainer(base, run, lambda done: began.append(time.perf_counter()) if done in (0, run.steps) else None)
    return began[-1] - began[0], lora


def race(base: Base, judge: Judge, folder: Path, case: str, most: int, given: list[float]) -> list[list[str]]:
    """A row for each learning rate: steps and seconds until stars are drawn, and until all else is drawn as before too."""
    from lora_loom.trainer.toy import arch

    name, trainer, rates = runners()[case]
    rows = []
    for rate in given or rates:
        met: dict[str, str] = {}
        best = (0.0, 0.0, 0)
        for steps in (s for s in STEPS if s <= most):
            seconds, lora = timed(trainer, base, Run(folder, arch.SIZE, 16, steps, rate, 0))
            present, still = judge(lora)
            print(f"{case} rate {rate:g}, {steps} steps in {seconds:.1f} s: stars {present:.0%}, others {still:.0%}", file=sys.stderr, flush=True)
            best = max(best, (min(present / PRESENT, still / STILL), present, still))
            if present >= PRESENT:
                met.setdefault("stars", f"{steps} steps, {seconds:.1f} s")
            if present >= PRESENT and still >= STILL:
                met["both"] = f"{steps} steps, {seconds:.1f} s"
                break
        rows.append([name, f"{rate:g}", met.get("stars", f"not in {most}"), met.get("both", f"not in {most}"), f"{best[1]:.0%}, {best[2]:.0%}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["default", "bypass", "batch", "ours", "alone"], default=[])
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="learning rates, instead of each case's own")
    parser.add_argument("--steps", type=at_least(50), default=800, help="at most; the first score is after 50")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "In CPU autocast")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, torch.inference_mode():  # as ComfyUI executes nodes
        report = heading("python bench/race.py", f"ComfyUI {start_comfyui(Path(temporary))}")
        from lora_loom.trainer.toy import stars

        base, folder = load_toy(), stars.write(Path(temporary) / "stars")
        judge = Judge(base)
        rows = [row for case in (given.only or runners()) for row in race(base, judge, folder, case, given.steps, given.rates)]
        head = ["case", "learning rate", "until stars are drawn as stars", "until all else is drawn as before, too", "stars and others at its best"]
        about = (f"**Time to the demo's score**, toy base, twenty stars, rank 16, fp32; marks: at least {PRESENT:.0%} of {len(judge.stars)} stars in new "
                 f"colours, and {STILL:.0%} of {len(judge.others)} other captions")
        write([*report, about, table(head, *rows)], given.write)


if __name__ == "__main__":
    main()
