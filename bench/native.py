"""ComfyUI's own TrainLoraNode and LoRA Loom in one process, interleaved: seconds a step, memory, and what was learned.

`python bench/native.py` measures, `--small` tries everything out on the toy base in a minute or two. README.md says what is compared.
"""
from __future__ import annotations

import argparse
import itertools
import logging
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from bases import DTYPES, Base, load_flux, load_random, load_toy, start_comfyui
from cases import CASES, Run, encoded
from meters import Meter, Saved, Weights, products_rate, tidy
from report import heading, table, write

PICTURES = 4  # for the timing: every case trains on the same ones
TIMESTEPS = range(50, 1000, 100)  # of the held-out error, of 1000


Errors = dict[str, dict[float, list[float]]]  # {case: {learning rate: one error a seed}}
FLOW = {"attention", "plain", "compiled", "nf4", "checkpointing", "everything"}  # that train flow transformers too
LEARNERS = ("default", "attention", "everything")  # the others compute what one of these does


def measure(base: Base, run: Run, warm: int, rounds: int, chosen: list[str], say: Callable[[str], None]) -> dict[str, Meter]:
    """`rounds` times every case, `warm` of its steps not timed, the order turned by one each round, so that no case always follows the same one."""
    tidy()
    if "diffusers" in chosen:
        base.in_diffusers(run.precision)  # its own loading is nobody's time
    weights = Weights(base)
    meters = {case: Meter(weights, run.device, warm, run.steps) for case in chosen}
    for case, meter in meters.items():
        saved = Saved()
        CASES[case][1](base, replace(run, steps=2), saved.tick)
        meter.saved, meter.operations = saved.bytes, saved.operations
        say(f"{case:10} keeps {saved.bytes / 2**20:.0f} MiB for backward, computes {saved.operations / 1e12:.3f} TFLOP a step")
    for number in range(rounds):
        turn = number % len(chosen)
        for case in chosen[turn:] + chosen[:turn]:
            meter = meters[case]
            with meter:
                if left := weights.copied():
                    say(f"{left / 2**20:.0f} MiB of copied weights were still there before {case!r}")
                lora = CASES[case][1](base, run, meter.tick)
            meter.trained = sum(v.numel() for k, v in lora.items() if not k.endswith("alpha"))
            del lora
            kept = "unchanged" if weights.unchanged() else "CHANGED"
            latest = meter.seconds[-(run.steps - warm):] if run.device == "cpu" else meter.seconds[-1:]
            say(f"round {number + 1}/{rounds} {case:10} {', '.join(f'{s:.4f}' for s in latest)} s; peak {meter.peaks[-1] / 2**20:.0f} MiB; base {kept}")
            if kept != "unchanged":
                raise RuntimeError(f"{case} changed the base weights")
    return meters


def epsilon_error(base: Base, lora: dict[str, torch.Tensor] | None, latents: torch.Tensor, positive: list) -> float:
    """Mean squared error of the predicted noise at fixed (picture, noise, timestep), the LoRA applied as LoraLoader does, by ComfyUI's own forward."""
    import comfy.model_management
    import comfy.sd

    model = base.model if lora is None else comfy.sd.load_lora_for_models(base.model, None, lora, 1.0, 0.0)[0]
    tidy()
    comfy.model_management.load_models_gpu([model])
    inner = model.model
    clean, context = inner.process_latent_in(latents), torch.cat([c[0][0] for c in positive])
    errors = []
    for timestep in TIMESTEPS:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(timestep))
        sigma = inner.model_sampling.sigmas[timestep].expand(len(clean))
        noisy = clean + sigma.view(-1, 1, 1, 1) * noise
        denoised = inner.apply_model(noisy, sigma, c_crossattn=context)
        errors.append(((noisy - denoised) / sigma.view(-1, 1, 1, 1) - noise).square().mean().item())
    tidy()
    return statistics.fmean(errors)


def held_out(folder: Path, count: int) -> Path:
    """Stars in colours and on backgrounds that the twenty pictures lack."""
    from lora_loom.trainer.toy import shapes, stars

    seen = {(s.colour, s.background) for s in stars.scenes()}
    rng = random.Random(1)
    scenes = rng.sample([s for s in shapes.scenes((shapes.CONCEPT,)) if (s.colour, s.background) not in seen], count)
    return draw(folder, [(s, shapes.draw(s, rng)) for s in scenes])


def draw(folder: Path, pictures: list) -> Path:
    """The pictures as PNG with sidecar captions."""
    folder.mkdir()
    for number, (scene, image) in enumerate(pictures):
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(scene.caption, encoding="utf-8")
    return folder


def learn(folder: Path, chosen: list[str], rates: list[float], seeds: int, steps: int, say: Callable[[str], None]) -> tuple[float, Errors]:
    """(the base's error, the cases' errors) after `steps` steps on twenty stars."""
    from lora_loom.trainer.toy import arch, stars

    class NotLoaded(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "key not loaded" in record.getMessage():
                raise RuntimeError(f"the comparison is void: {record.getMessage()}")

    logging.getLogger().addHandler(NotLoaded())
    base, pictures = load_toy(), stars.write(folder / "stars")
    latents, positive = encoded(base, held_out(folder / "held_out", 40), arch.SIZE)
    latents, weights = torch.stack(latents), Weights(base)
    before = epsilon_error(base, None, latents, positive)
    found: Errors = {case: {rate: [] for rate in rates} for case in chosen}
    for seed, rate, case in itertools.product(range(seeds), rates, chosen):
        lora = CASES[case][1](base, Run(pictures, arch.SIZE, 16, steps, rate, seed), lambda done: None)
        found[case][rate].append(epsilon_error(base, lora, latents, positive))
        say(f"error {case:10} rate {rate:g} seed {seed}: {found[case][rate][-1]:.4f}")
        if not weights.unchanged():
            raise RuntimeError(f"{case} changed the base weights")
    return before, found


def timing_table(meters: dict[str, Meter], floor: float) -> str:
    """floor: seconds that a step would take if the machine did nothing but its products, at their best rate."""
    first, on_cpu = next(iter(meters)), next(iter(meters.values())).device == "cpu"
    reference = statistics.median(meters[first].seconds)
    rival = statistics.median(meters["diffusers"].seconds) if "diffusers" in meters else None
    rows = [["case", "s/step: median (min–max)", f"times as fast as {CASES[first][0]}", "times as fast as diffusers + PEFT", "share of the floor",
             "kept for backward, MiB", "set-up and first step, s", "peak memory above the start, MiB" if on_cpu else "most reserved, base included, MiB",
             *(["base weights held twice, MiB"] if on_cpu else []), "trained values, millions"]]
    for case, m in meters.items():
        middle = statistics.median(m.seconds)
        digits, twice = 3 if on_cpu else 4, [f"{max(m.copied) / 2**20:.0f}"] if on_cpu else []
        rows.append([CASES[case][0], f"{middle:.{digits}f} ({min(m.seconds):.{digits}f}–{max(m.seconds):.{digits}f})", f"{reference / middle:.2f}",
                     f"{rival / middle:.2f}" if rival else "", f"{floor / middle:.0%}", f"{m.saved / 2**20:.0f}",
                     f"{statistics.median(m.setup):.1f}", f"{max(m.peaks) / 2**20:.0f}", *twice, f"{m.trained / 1e6:.2f}"])
    return table(*rows)


def error_table(before: float, found: Errors, rates: list[float]) -> str:
    rows = [["case", *(f"rate {rate:g}" for rate in rates), "at its best rate"]]
    for case, errors in found.items():
        medians = [statistics.median(errors[rate]) for rate in rates]
        rows.append([CASES[case][0], *(f"{m:.4f}" for m in medians), f"**{min(medians):.4f}**"])
    return table(*rows, ["no LoRA", *[""] * len(rates), f"{before:.4f}"])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where torch has it")
    parser.add_argument("--rounds", type=int, default=3, help="how often every case is timed, in turns")
    parser.add_argument("--steps", type=int, default=0, help="timed steps a round; 0: 3 on a CPU, 60 on a GPU")
    parser.add_argument("--warm", type=int, default=0, help="steps that run before them; 0: 1 on a CPU, 40 on a GPU, where CUDA graphs are recorded meanwhile")
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="pixels, of square pictures")
    parser.add_argument("--model", choices=["sd15", "sdxl", "flux"], default="sd15", help="whose shapes the base has; flux: LoRA Loom alone, for a GPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="what the timing computes in")
    parser.add_argument("--held-in", choices=["fp32", "bf16", "fp16"], default="fp32", help="what ComfyUI keeps the base's weights in")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "timing", "error"], default=[], help="leave out the other cases, or the other part")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 5e-4, 1e-3], help="learning rates tried for the error")
    parser.add_argument("--seeds", type=int, default=3, help="runs a learning rate; the table has their median")
    parser.add_argument("--error-steps", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="time the toy base instead of SD1.5: shows that everything runs, not how fast it is")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    given = parser.parse_args()
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    given.steps, given.warm = given.steps or (3 if given.device == "cpu" else 60), given.warm or (1 if given.device == "cpu" else 40)
    if min(given.rounds, given.steps, given.warm, given.batch, given.rank, given.seeds, given.error_steps) < 1:
        parser.error("--rounds, --steps, --warm, --batch, --rank, --seeds and --error-steps take 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; take --device cpu, or install a CUDA build of torch")
    if given.model == "flux" and not ("timing" in given.only and set() < {*given.only} - {"timing"} <= FLOW):
        parser.error(f"--model flux is trained by LoRA Loom alone: add --only timing and some of {' '.join(sorted(FLOW))}")
    if given.size < 64 or given.size % 64:
        parser.error(f"--size {given.size} is no multiple of 64: take 256 or 512, for example")
    return given


def timing(given: argparse.Namespace, cases: list[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    from lora_loom.trainer.toy import shapes, stars

    rng, size = random.Random(0), shapes.SIZE if given.small else given.size
    pictures = draw(folder / "pictures", [(s, shapes.draw(s, rng).resize((size, size))) for s in stars.scenes(max(PICTURES, given.batch))])
    toy, run = load_toy(), Run(pictures, size, given.rank, given.warm + given.steps, 5e-4, 0, given.precision, given.batch, given.device)
    for case in cases if given.model != "flux" else ():  # imports and first allocations belong to nobody's time
        CASES[case][1](toy, replace(run, size=shapes.SIZE, steps=2), lambda done: None)
    if given.model == "flux":
        base = load_flux(given.held_in, given.small)
    else:
        base = toy if given.small else load_random(folder, given.model, given.held_in)
    meters = measure(base, run, given.warm, given.rounds, cases, say)
    held = "" if given.held_in == given.precision else f", base held in {given.held_in}"
    said = f"{given.device}, batch {given.batch}, {given.precision}{held}, rank {given.rank}, rounds: {given.rounds}, timed steps a round: {given.steps}"
    rate = products_rate(DTYPES[given.precision], given.device)
    work = (meters.get("attention") or next(iter(meters.values()))).operations
    floor = (f"Floor of a step that trains the attention layers: {work / 1e12:.3f} TFLOP at {rate / 1e12:.3f} TFLOP/s, this machine's best products, "
             f"make {work / rate:.{2 if given.device == 'cpu' else 4}f} s.")
    return [f"**{base.name}**, {size}x{size}, {said}", floor, timing_table(meters, work / rate)]


def learning(given: argparse.Namespace, cases: list[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    learners = [c for c in cases if c in LEARNERS or c in given.only]
    before, found = learn(folder, learners, given.rates, given.seeds, given.error_steps, say)
    return [f"**Held-out epsilon error**, toy base, {given.error_steps} steps on twenty stars, batch 1, fp32, rank 16, median over seeds: {given.seeds}",
            error_table(before, found, given.rates)]


def main() -> None:
    given = options()
    cases = [c for c in CASES if c in given.only] or list(CASES)
    parts = [p for p in ("timing", "error") if p in given.only] or ["timing", "error"]
    say = partial(print, file=sys.stderr, flush=True)
    warnings.filterwarnings("ignore", "In CPU autocast")  # TrainLoraNode asks for fp32 autocast at every step
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, torch.inference_mode():  # as ComfyUI executes nodes
        comfyui = start_comfyui(Path(temporary), *([f"--{given.held_in}-unet"] if given.held_in != "fp32" else []), device=given.device)
        report = heading("python bench/native.py", f"ComfyUI {comfyui}")
        if "timing" in parts:
            report += timing(given, cases, Path(temporary), say)
            tidy()
        if "error" in parts:
            report += learning(given, cases, Path(temporary), say)
    write(report, given.write)


if __name__ == "__main__":
    main()
