"""Train the toy base from scratch: `python -m lora_loom.trainer.toy.make_base` (an hour or so on two CPU cores).

First the autoencoder on drawn shapes and colour fields, then UNet and text encoder together on its latents. The
200 held-out (colour, shape, background) triples of `shapes.split` are never drawn. Ends with the measured score.
"""
from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from . import arch, shapes
from .tokens import tokenize


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def drawn(pool: list[shapes.Scene], count: int, rng: random.Random) -> tuple[list[Image.Image], list[str]]:
    """Pictures and captions of random scenes of the pool in random sizes."""
    chosen = [shapes.Scene(s.colour, s.shape, s.background, rng.choice(list(shapes.SIZES))) for s in rng.choices(pool, k=count)]
    return [shapes.draw(s, rng) for s in chosen], [s.caption for s in chosen]


def fields(count: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth random colour fields with hard edges, (B, 3, S, S): they keep the autoencoder general."""
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, (arch.SIZE, arch.SIZE), mode="bicubic", align_corners=True).clamp(-1, 1)
    cut = F.interpolate(torch.rand(count, 1, 6, 6, generator=generator) - 0.5, (arch.SIZE, arch.SIZE), mode="bicubic") > 0
    return torch.where(cut, smooth, smooth.flip(0))


def train_vae(steps: int, batch: int, pool, device: str, log) -> AutoencoderTiny:
    """L1 with a pull to zero mean and unit variance per latent channel, and a little latent noise for smoothness."""
    vae = AutoencoderTiny(**arch.VAE).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.2e-3, total_steps=steps, pct_start=0.1)
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    for step in range(steps):
        images, _ = drawn(pool, batch - batch // 8, rng)
        x = torch.cat([to_tensor(images), fields(batch // 8, generator)]).to(device)
        if step < 0.92 * steps:  # quarter-size crops cost a quarter, and convolutions do not mind
            top, left = rng.randint(0, arch.SIZE // 2), rng.randint(0, arch.SIZE // 2)
            x = x[..., top:top + arch.SIZE // 2, left:left + arch.SIZE // 2]
        z = vae.encoder(x)
        noisy = z + 0.05 * torch.randn(z.shape, generator=generator).to(device)
        y = vae.decoder(noisy)
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 0.05 * (mean.square().mean() + (std - 1).square().mean())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log(f"vae {step:5d}  l1 {F.l1_loss(y, x).item():.4f}  std {std.mean().item():.3f}")
    return vae.eval()


@torch.no_grad()
def sample(unet, text, vae, captions: list[str], steps: int = 20, cfg: float = 3.0, seed: int = 0) -> list[Image.Image]:
    """DDIM with classifier-free guidance, through diffusers' own scheduler, on the VAE's device."""
    device = next(vae.parameters()).device
    unet, text = unet.to(device), text.to(device)
    scheduler = DDIMScheduler(**arch.SCHEDULER)
    scheduler.set_timesteps(steps)
    context = text(tokenize(captions).to(device))[0]
    empty = text(tokenize([""] * len(captions)).to(device))[0]
    x = torch.randn((len(captions), 4, 8, 8), generator=torch.Generator().manual_seed(seed)).to(device)
    for t in scheduler.timesteps:
        e, c = unet(torch.cat([x, x]), t, torch.cat([empty, context])).sample.chunk(2)
        x = scheduler.step(e + cfg * (c - e), t, x).prev_sample
    pixels = vae.decode(x).sample.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


def score(unet, text, vae, scenes: list[shapes.Scene], **options) -> tuple[float, list[Image.Image]]:
    images = sample(unet, text, vae, [s.caption for s in scenes], **options)
    return sum(shapes.right(i, s) for i, s in zip(images, scenes)) / len(scenes), images


def train_unet(vae, steps: int, batch: int, pictures: int, pool, device: str, log, save):
    """epsilon-prediction on cached latents, 10 % of the captions dropped, an EMA of the weights kept as the result."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(**arch.UNET).to(device)
    text = CLIPTextModel(CLIPTextConfig(**arch.TEXT)).to(device)
    getattr(text, "text_model", text).embeddings.token_embedding.weight.data.normal_(0, 0.3)  # a word never trained still says something
    images, captions = drawn(pool, pictures, random.Random(3))
    with torch.no_grad():
        latents = torch.cat([vae.encoder(to_tensor(images[i:i + 64]).to(device)) for i in range(0, pictures, 64)])
    log(f"{pictures} latents: mean {latents.mean().item():.3f}, std {latents.std().item():.3f}")
    tokens, empty = tokenize(captions).to(device), tokenize([""]).to(device)
    scheduler = DDIMScheduler(**arch.SCHEDULER)
    alphas = scheduler.alphas_cumprod.to(device)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    averaged = copy.deepcopy(unet).eval(), copy.deepcopy(text).eval()
    generator = torch.Generator().manual_seed(4)
    started, running = time.time(), 0.0
    for step in range(steps):
        index = torch.randint(pictures, (batch,), generator=generator)
        z, ids = latents[index], tokens[index].clone()
        ids[(torch.rand(batch, generator=generator) < 0.1).to(device)] = empty[0]
        t = torch.randint(1000, (batch,), generator=generator).to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        predicted = unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, text(ids)[0]).sample
        loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, live in zip(averaged, (unet, text)):
                for m, p in zip(mean.parameters(), live.parameters()):
                    if p.grad is not None:
                        m.lerp_(p, 1 - decay)
        running = 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            log(f"unet {step:5d}  loss {running / (1 - 0.98 ** (step + 1)):.4f}  {(time.time() - started) / (step + 1):.3f} s/step")
        if step % 1000 == 999:
            save(*averaged)
    return averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=arch.WEIGHTS)
    parser.add_argument("--vae-steps", type=int, default=1600)
    parser.add_argument("--vae-from", type=Path, help="take the autoencoder from this file instead of training it")
    parser.add_argument("--unet-steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=10000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    log = lambda line: print(line, flush=True)  # noqa: E731
    torch.manual_seed(0)
    trained, held_out = shapes.split()
    if options.vae_from:
        vae = AutoencoderTiny(**arch.VAE)
        vae.load_state_dict({k[4:]: v.float() for k, v in load_file(options.vae_from).items() if k.startswith("vae.")})
        vae = vae.to(options.device).eval()
    else:
        vae = train_vae(options.vae_steps, 16, trained, options.device, log)
    with torch.no_grad():
        images, _ = drawn(held_out, 64, random.Random(5))
        x = to_tensor(images).to(options.device)
        back = vae.decoder(vae.encoder(x)).clamp(-1, 1)
    log(f"autoencoder: L1 {F.l1_loss(back, x).item():.4f} of 2 on 64 drawn pictures")

    def write(parts: dict[str, torch.nn.Module]) -> None:
        tensors = {f"{name}.{k}": v.to(torch.float16).contiguous().cpu() for name, part in parts.items() for k, v in part.state_dict().items()
                   if not k.endswith("position_ids")}
        # transformers 5 dropped the prefix that every checkpoint in the wild has
        tensors = {k.replace("text_encoder.", "text_encoder.text_model.") if k.startswith("text_encoder.") and ".text_model." not in k else k: v
                   for k, v in tensors.items()}
        save_file(tensors, options.out, metadata={"lora_loom.arch": json.dumps({"unet": arch.UNET, "text_encoder": arch.TEXT, "vae": arch.VAE})})

    def save(unet, text) -> None:
        write({"unet": unet, "text_encoder": text, "vae": vae})
        share, images = score(unet, text, vae, held_out[:50])
        log(f"saved {options.out.name}: {share:.0%} of 50 held-out captions right")
        sheet = Image.new("RGB", (640, 320))
        for i, image in enumerate(images):
            sheet.paste(image, (i % 10 * 64, i // 10 * 64))
        sheet.save(options.out.with_suffix(".png"))

    if not options.vae_from:
        write({"vae": vae})
    unet, text = train_unet(vae, options.unet_steps, options.batch, options.pictures, trained, options.device, log, save)
    save(unet, text)
    share, _ = score(unet, text, vae, held_out)
    log(f"{share:.1%} of {len(held_out)} captions never seen together in training are right")


if __name__ == "__main__":
    main()
