"""ComfyUI's own TrainLoraNode and LoRA Loom in one process, interleaved: seconds a step, memory, and what was learned.

`python bench/native.py` measures, `--small` tries everything out on the toy base in a minute or two. README.md says what is compared.
"""
from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import logging
import math
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"
PICTURES = 4  # for the timing: every case trains on the same ones
TIMESTEPS = range(50, 1000, 100)  # of the held-out error, of 1000
CPU = torch.device("cpu")


@dataclass
class Base:
    """MODEL, CLIP and VAE as a loader node hands them."""

    name: str
    model: object
    clip: object
    vae: object


@dataclass(frozen=True)
class Run:
    """What both trainers are told. Everything else stays at the trainer's own default, but for fp32 and batch 1."""

    folder: Path  # pictures and metadata.csv
    size: int
    rank: int
    steps: int
    rate: float
    seed: int


Tick = Callable[[int], None]  # called with 0 when the pictures are encoded, then with the number of each finished step
Trainer = Callable[[Base, Run, Tick], dict[str, torch.Tensor]]


# ---- ComfyUI and the base models ------------------------------------------------------------------------------------------------------


def start_comfyui(folder: Path) -> str:
    """ComfyUI's modules in this process, on the CPU, with `folder` for whatever it writes. Returns its version."""
    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    sys.path.insert(0, str(found))
    sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(folder)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.utils
    import comfyui_version

    logging.getLogger().setLevel(logging.WARNING)
    comfy.utils.set_progress_bar_enabled(False)
    with contextlib.suppress(ImportError):
        import comfy_extras.nodes_train

        if hasattr(comfy_extras.nodes_train, "find_modules_at_depth"):
            return comfyui_version.__version__
    sys.exit(f"ComfyUI {comfyui_version.__version__} is too old: its TrainLoraNode has no bypass_mode; set COMFYUI_PATH to a newer one")


def write_random_sd15(path: Path) -> None:
    """A checkpoint of SD1.5's shapes and key names in fp32 (4.3 GB). Random, scaled so that nothing overflows or becomes denormal."""
    import comfy.clip_model
    import comfy.ldm.models.autoencoder
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    from safetensors.torch import save_file

    family, no_init = comfy.supported_models.SD15, comfy.ops.disable_weight_init
    config = {**family.unet_config, **family.unet_extra_config, "image_size": 32, "in_channels": 4, "out_channels": 4, "num_res_blocks": [2] * 4,
              "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
              "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "legacy": False}
    autoencoder = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
                   "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": unet.UNetModel(**config, dtype=torch.float32, device="meta", operations=no_init),
            "cond_stage_model.": comfy.sd1_clip.SDClipModel(device="meta", dtype=torch.float32),
            "first_stage_model.": comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=autoencoder, embed_dim=4),
        }
    generator, tensors = torch.Generator().manual_seed(0), {}
    for prefix, part in parts.items():
        for key, like in part.state_dict().items():
            if key.startswith("logit_scale") or "text_projection" in key:  # not in SD1.5's own file
                continue
            value = torch.randn(like.shape, generator=generator)
            if like.ndim >= 2:
                value /= math.sqrt(like[0].numel())
            else:
                value = value * 0.02 + float(key.endswith("weight"))  # norms around 1, biases around 0
            tensors[prefix + key] = value
    save_file(tensors, path)


def load_sd15(folder: Path) -> Base:
    """As CheckpointLoaderSimple loads it; ComfyUI's trainer reads the file again for its own copy of the weights."""
    import comfy.sd

    path = folder / "random_sd15.safetensors"
    write_random_sd15(path)
    tidy()
    return Base("SD1.5 (random weights)", *comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3])


def load_toy() -> Base:
    from lora_loom.trainer.backbones import comfy_toy

    model, clip, vae = comfy_toy.load()
    # ComfyUI's trainer loads its own copy of the model: every loader node registers how.
    model.cached_patcher_init = (lambda disable_dynamic=False: comfy_toy.load()[0], ())
    return Base("toy base", model, clip, vae)


# ---- the two trainers -----------------------------------------------------------------------------------------------------------------


def native(bypass: bool, base: Base, run: Run, tick: Tick) -> dict[str, torch.Tensor]:
    """TrainLoraNode with its own defaults, on pictures encoded as VAEEncode and CLIPTextEncode do it."""
    from comfy_extras import nodes_train

    latents, positive = encoded(base, run.folder, run.size)

    class Ticks:  # ComfyUI's own progress bar leaves out steps
        def __init__(self, total: int) -> None:
            self.done = 0

        def update(self, value: int) -> None:
            self.done += value
            tick(self.done)

    given = dict(
        model=base.model, batch_size=1, grad_accumulation_steps=1, steps=run.steps, learning_rate=run.rate, rank=run.rank, optimizer="AdamW",
        loss_function="MSE", seed=run.seed, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=bypass)
    tick(0)
    torch.manual_seed(run.seed)  # the node draws its adapters and timesteps from the global generator, which it does not seed
    before, nodes_train.ProgressBar = nodes_train.ProgressBar, Ticks
    try:
        output = nodes_train.TrainLoraNode.execute(
            latents=[{"samples": z[None]} for z in latents], positive=positive, **{name: [value] for name, value in given.items()})
    finally:
        nodes_train.ProgressBar = before
    return output.args[0]


def ours(targets: str, base: Base, run: Run, tick: Tick) -> dict[str, torch.Tensor]:
    """What the node TrainLoRA runs, with LoRAConfig's defaults but for rank, targets and fp32."""
    from lora_loom.trainer import job
    from lora_loom.trainer.backbones.comfy import ComfyModel
    from lora_loom.trainer.config import LoomConfig
    from lora_loom.trainer.data.folder import read_dataset

    config = LoomConfig().replace(
        adapter={"rank": run.rank, "alpha": float(run.rank), "targets": targets}, optim={"learning_rate": run.rate},
        train={"steps": run.steps, "batch_size": 1, "precision": "fp32", "seed": run.seed}, output={"name": "bench", "save_dtype": "fp32"})

    def progress(now: job.Progress) -> None:
        if now.phase == "train":
            tick(now.step)
        elif now.step == now.total:
            tick(0)

    dataset = read_dataset(run.folder, resolution=run.size, min_size=0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        return job.train(ComfyModel(base.model, base.clip, base.vae), dataset, config, loras_folder=out / "loras", runs_folder=out / "runs",
                         hooks=job.Hooks(progress=progress)).lora


CASES: dict[str, tuple[str, Trainer]] = {
    "default": ("TrainLoraNode, defaults", partial(native, False)),
    "bypass": ("TrainLoraNode, bypass_mode", partial(native, True)),
    "attention": ("LoRA Loom, attention", partial(ours, "attention")),
    "everything": ("LoRA Loom, all linear+conv", partial(ours, "all linear+conv")),
}


def encoded(base: Base, folder: Path, size: int) -> tuple[list[torch.Tensor], list]:
    """(latents as VAEEncode gives them, CONDITIONING as CLIPTextEncode gives it), one a picture."""
    from lora_loom.trainer.data.buckets import fit, to_tensor
    from lora_loom.trainer.data.folder import open_picture, read_dataset

    pictures = read_dataset(folder, resolution=size, min_size=0).pictures
    pixels = torch.stack([to_tensor(fit(open_picture(p.path), (size, size))[0]) for p in pictures])
    latents = torch.cat([base.vae.encode(part.movedim(1, -1)) for part in pixels.split(4)])
    return list(latents), [base.clip.encode_from_tokens_scheduled(base.clip.tokenize(p.caption)) for p in pictures]


# ---- what is measured -----------------------------------------------------------------------------------------------------------------


def tidy() -> None:
    """Every case starts alike: nothing of the one before is loaded, cached or kept by the allocator."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def private_bytes() -> int:
    """Resident memory without mapped files: the checkpoint's page cache is nobody's cost."""
    info = psutil.Process().memory_info()
    return info.rss - getattr(info, "shared", 0)


class Weights:
    """The base UNet's parameters as they were: are they still, and does anybody hold the same values a second time?"""

    def __init__(self, base: Base) -> None:
        self.root = base.model.model.diffusion_model
        self.before = self._state()
        self.own = {p.untyped_storage().data_ptr() for p in self.root.parameters()}
        self.heads: dict[tuple, list[torch.Tensor]] = {}
        for p in self.root.parameters():
            self.heads.setdefault(tuple(p.shape), []).append(self._head(p))

    def _state(self) -> dict[str, tuple[int, int]]:
        return {name: (p.data_ptr(), zlib.crc32(p.detach().contiguous().view(torch.uint8).numpy())) for name, p in self.root.named_parameters()}

    @staticmethod
    def _head(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1)[:64].float().clone()

    def unchanged(self) -> bool:
        """Same storages, same bytes."""
        return self._state() == self.before

    def copied(self) -> int:
        """Bytes of other live storages that hold a parameter's values, in whatever dtype."""
        found: dict[int, int] = {}
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and tuple(thing.shape) in self.heads and thing.device == CPU:
                storage = thing.untyped_storage()
                if storage.data_ptr() in self.own or storage.nbytes() == 0:
                    continue
                head = self._head(thing)
                if any(torch.allclose(head, own, rtol=1e-2, atol=1e-4) for own in self.heads[tuple(thing.shape)]):
                    found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())


@dataclass
class Meter:
    """A case's figures over all rounds. `tick` notes the steps; memory is sampled from a thread while the meter is entered."""

    weights: Weights | None = None
    seconds: list[float] = field(default_factory=list)  # one a step, without each round's first
    setup: list[float] = field(default_factory=list)  # from encoded pictures to the end of the first step
    peaks: list[int] = field(default_factory=list)  # bytes above what was resident when the case began, from encoded pictures on
    copied: list[int] = field(default_factory=list)
    trained: int = 0

    def tick(self, done: int) -> None:
        now = time.perf_counter()
        if done == 0:
            self._peak, self._began = private_bytes(), now
        elif done == 1:
            self.setup.append(now - self._began)
            if self.weights:
                self.copied.append(self.weights.copied())
        else:
            self.seconds.append(now - self._last)
        self._last = time.perf_counter()

    def __enter__(self) -> Meter:
        tidy()
        self._baseline = self._peak = private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peaks.append(self._peak - self._baseline)


def measure(base: Base, run: Run, rounds: int, chosen: list[str], say: Callable[[str], None]) -> dict[str, Meter]:
    """`rounds` times every case, the order turned by one each round, so that no case always follows the same one."""
    tidy()
    weights = Weights(base)
    meters = {case: Meter(weights) for case in chosen}
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
            latest = meter.seconds[-(run.steps - 1):]
            say(f"round {number + 1}/{rounds} {case:10} {', '.join(f'{s:.3f}' for s in latest)} s; peak {meter.peaks[-1] / 2**20:.0f} MiB; base {kept}")
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


def learn(folder: Path, chosen: list[str], rates: list[float], seeds: int, steps: int, say: Callable[[str], None]) -> tuple[float, dict[str, dict[float, list[float]]]]:
    """(the base's error, {case: {learning rate: one error a seed}}) after `steps` steps on twenty stars."""
    from lora_loom.trainer.toy import arch, stars

    class NotLoaded(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "not loaded" in record.getMessage():
                raise RuntimeError(f"the comparison is void: {record.getMessage()}")

    logging.getLogger().addHandler(NotLoaded())
    base, pictures = load_toy(), stars.write(folder / "stars")
    latents, positive = encoded(base, held_out(folder / "held_out", 40), arch.SIZE)
    latents, weights = torch.stack(latents), Weights(base)
    found: dict[str, dict[float, list[float]]] = {case: {rate: [] for rate in rates} for case in chosen}
    for seed, rate, case in itertools.product(range(seeds), rates, chosen):
        lora = CASES[case][1](base, Run(pictures, arch.SIZE, 16, steps, rate, seed), lambda done: None)
        found[case][rate].append(epsilon_error(base, lora, latents, positive))
        say(f"error {case:10} rate {rate:g} seed {seed}: {found[case][rate][-1]:.4f}")
        if not weights.unchanged():
            raise RuntimeError(f"{case} changed the base weights")
    return epsilon_error(base, None, latents, positive), found


# ---- the report -----------------------------------------------------------------------------------------------------------------------


def table(*rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])])


def timing_table(meters: dict[str, Meter]) -> str:
    first = statistics.median(next(iter(meters.values())).seconds)
    rows = [["case", "s/step: median (min–max)", f"times faster than {CASES[next(iter(meters))][0]}", "set-up and first step, s", "peak memory above the start, MiB",
             "base weights held twice, MiB", "trained values, millions"]]
    for case, m in meters.items():
        middle = statistics.median(m.seconds)
        rows.append([CASES[case][0], f"{middle:.3f} ({min(m.seconds):.3f}–{max(m.seconds):.3f})", f"{first / middle:.2f}", f"{statistics.median(m.setup):.1f}",
                     f"{max(m.peaks) / 2**20:.0f}", f"{max(m.copied) / 2**20:.0f}", f"{m.trained / 1e6:.2f}"])
    return table(*rows)


def error_table(before: float, found: dict[str, dict[float, list[float]]], rates: list[float]) -> str:
    rows = [["case", *(f"rate {rate:g}" for rate in rates), "at its best rate"]]
    for case, errors in found.items():
        medians = [statistics.median(errors[rate]) for rate in rates]
        rows.append([CASES[case][0], *(f"{m:.4f}" for m in medians), f"**{min(medians):.4f}**"])
    return table(*rows, ["no LoRA", *[""] * len(rates), f"{before:.4f}"])


def machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        name = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name"))
    return f"{name}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}; torch uses {torch.get_num_threads()} threads"


def commit() -> str:
    got = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return got.stdout.strip() or "unknown"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often every case is timed, in turns")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round; one more runs before them")
    parser.add_argument("--size", type=int, default=256, help="pixels, of square pictures")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "timing", "error"], default=[], help="leave out the other cases, or the other part")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 5e-4, 1e-3], help="learning rates tried for the error")
    parser.add_argument("--seeds", type=int, default=3, help="runs a learning rate; the table has their median")
    parser.add_argument("--error-steps", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="time the toy base instead of SD1.5: shows that everything runs, not how fast it is")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    given = parser.parse_args()
    if min(given.rounds, given.steps, given.seeds, given.error_steps) < 1:
        parser.error("--rounds, --steps, --seeds and --error-steps take 1 or more")
    return given


def main() -> None:
    given, command = options(), " ".join(["python bench/native.py", *sys.argv[1:]])
    cases = [c for c in CASES if c in given.only] or list(CASES)
    parts = [p for p in ("timing", "error") if p in given.only] or ["timing", "error"]
    say = partial(print, file=sys.stderr, flush=True)
    report = [f"### {time.strftime('%Y-%m-%d %H:%M')}", f"`{command}`"]
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():  # as ComfyUI executes nodes
        folder = Path(temporary)
        comfyui = start_comfyui(folder)
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "peft", "diffusers"))
        report.append(f"{machine()}. Python {platform.python_version()}, {packages}, ComfyUI {comfyui}, LoRA Loom {commit()}")
        from lora_loom.trainer.toy import shapes, stars

        rng = random.Random(0)
        size = shapes.SIZE if given.small else given.size
        pictures = draw(folder / "pictures", [(s, shapes.draw(s, rng).resize((size, size))) for s in stars.scenes(PICTURES)])
        if "timing" in parts:
            toy = load_toy()
            for case in cases:  # imports and first allocations belong to nobody's time
                CASES[case][1](toy, Run(pictures, shapes.SIZE, 8, 2, 5e-4, 0), lambda done: None)
            base = toy if given.small else load_sd15(folder)
            meters = measure(base, Run(pictures, size, 8, given.steps + 1, 5e-4, 0), given.rounds, cases, say)
            report += [f"**{base.name}**, {size}x{size}, batch 1, fp32, rank 8, {given.rounds} rounds of {given.steps} steps", timing_table(meters)]
            del base, toy
            tidy()
        if "error" in parts:
            before, found = learn(folder, cases, given.rates, given.seeds, given.error_steps, say)
            report += [f"**Held-out ε-error**, toy base, {given.error_steps} steps on twenty stars, batch 1, fp32, rank 16, median of {given.seeds} seeds",
                       error_table(before, found, given.rates)]
    text = "\n\n".join(report) + "\n"
    print(text)
    if given.write:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write("\n" + text)


if __name__ == "__main__":
    main()
