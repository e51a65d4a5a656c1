"""What a model is asked and how its answer is judged: noise levels, targets in the model's own space, weights, distances.

Two processes answer the same calls: Diffusion (epsilon and v on a discrete schedule) and Flow (velocity on a straight line).
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .config import LossConfig
from .devices import onto


def _rows(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, 1, …), to multiply `like` by."""
    return values.view(-1, *[1] * (like.ndim - 1))


# ---------------------------------------------------------------- noise levels

def density(count: int, config: LossConfig, kind: str, generator: torch.Generator) -> torch.Tensor:
    """`count` draws in [0, 1), 1 being pure noise: uniform, logit-normal or mode (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    if kind == "logit_normal":
        return torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(count, generator=generator))
    u = torch.rand(count, generator=generator)
    if kind == "mode":
        u = 1 - u - config.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    return u


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """s·u / (1 + (s - 1)·u): more of the noisy end for s > 1 (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def resolution_shift(tokens: int) -> float:
    """exp(mu), where mu goes from 0.5 at 256 image tokens to 1.15 at 4096, as Flux.1's own sampler has it."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


# ---------------------------------------------------------------- the two processes

def snr(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio alpha_bar/(1-alpha_bar) at each timestep, (B,) (Hang et al. 2023, section 3.1).

    Above 0 also where a schedule ends in pure noise (Lin et al. 2023, arXiv:2305.08891), for weights divide by it."""
    a = alphas_cumprod[timesteps]
    return (a / (1 - a)).clamp(min=1e-8)


@dataclass(frozen=True)
class Diffusion:
    """Epsilon- or v-prediction; `times` are timesteps, integers below T. alphas_cumprod: (T,) on the latents' device."""

    alphas_cumprod: torch.Tensor
    prediction: str

    def times(self, u: torch.Tensor) -> torch.Tensor:
        return onto((u.double() * len(self.alphas_cumprod)).long().clamp(0, len(self.alphas_cumprod) - 1), self.alphas_cumprod.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """sqrt(alpha_bar)·latents + sqrt(1 - alpha_bar)·noise, all (B, C, H, W) (Ho et al. 2020, eq. 4)."""
        a = _rows(self.alphas_cumprod[times], latents)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The noise, or the velocity sqrt(alpha_bar)·noise - sqrt(1 - alpha_bar)·latents (Salimans & Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        a = _rows(self.alphas_cumprod[times], latents)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def weights(self, times: torch.Tensor, config: LossConfig) -> torch.Tensor:
        """(B,) weights of the squared error in epsilon; the same loss in v has SNR/(SNR + 1) times these.

        min_snr: min(SNR, gamma)/SNR (Hang et al. 2023, arXiv:2303.09556); debiased: 1/sqrt(SNR) (Yu et al. 2023, arXiv:2310.08442);
        p2: 1/(1 + SNR)^gamma (Choi et al. 2022, arXiv:2204.00227).
        """
        ratio = snr(self.alphas_cumprod, times)
        if config.weighting == "min_snr" and config.min_snr_gamma > 0:
            weights = ratio.clamp(max=config.min_snr_gamma) / ratio
        elif config.weighting == "debiased":
            weights = ratio.clamp(max=1000) ** -0.5
        elif config.weighting == "p2":
            weights = (1 + ratio) ** -config.p2_gamma
        else:
            return torch.ones_like(ratio)
        return weights if self.prediction == "epsilon" else weights * ratio / (ratio + 1)

    def sigma(self, times: torch.Tensor) -> torch.Tensor:
        """Noise over signal, (B,)."""
        return snr(self.alphas_cumprod, times) ** -0.5

    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        """How far into the noise, 0 to 1, (B,)."""
        return times / len(self.alphas_cumprod)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: `times` are sigmas, 0 the picture and 1 the noise (Liu et al. 2022, arXiv:2209.03003)."""

    device: torch.device

    def times(self, u: torch.Tensor) -> torch.Tensor:
        return onto(u.clamp(1e-3, 1), self.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """(1 - sigma)·latents + sigma·noise."""
        sigma = _rows(times, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The velocity, noise - latents."""
        return noise - latents

    def weights(self, times: torch.Tensor, config: LossConfig) -> torch.Tensor:
        """Ones: flow models are balanced by how their sigmas are drawn."""
        return torch.ones_like(times)

    def sigma(self, times: torch.Tensor) -> torch.Tensor:
        return times / (1 - times).clamp(min=1e-6)

    def fraction(self, times: torch.Tensor) -> torch.Tensor:
        return times


# ---------------------------------------------------------------- noise

def draw_noise(latents: torch.Tensor, config: LossConfig, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise drawn on the CPU, so that every device sees the same; with a per-channel offset (Guttenberg 2023) or
    with noise of coarser grids on top, scaled back to unit variance (Whitaker 2023, "multi-resolution noise")."""
    noise = torch.randn(latents.shape, generator=generator)
    if config.noise_offset > 0:
        noise = noise + config.noise_offset * torch.randn((*latents.shape[:2], *[1] * (latents.ndim - 2)), generator=generator)
    if config.multires_noise_discount > 0:
        height, width = latents.shape[-2:]
        for level in range(1, config.multires_noise_iterations + 1):
            factor = (2 + 2 * torch.rand((), generator=generator).item()) ** level
            size = (max(1, int(height / factor)), max(1, int(width / factor)))
            coarse = torch.randn((math.prod(latents.shape[:-2]), 1, *size), generator=generator)
            fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").view(latents.shape)
            noise = noise + fine * config.multires_noise_discount ** level
            if size == (1, 1):
                break
        noise = noise / noise.std()
    return onto(noise, latents.device, latents.dtype)


# ---------------------------------------------------------------- distances

def huber_c(times: torch.Tensor, process: Diffusion | Flow, config: LossConfig) -> torch.Tensor:
    """(B,) where the pseudo-Huber loss turns from square to straight (Khrapov et al. 2024, arXiv:2403.16728, section 3)."""
    c = config.huber_c
    if config.huber_schedule == "exponential":
        return c ** process.fraction(times)
    if config.huber_schedule == "snr":
        return (1 - c) / (1 + process.sigma(times)) ** 2 + c
    return torch.full(times.shape, c, device=times.device)


def distance(predicted: torch.Tensor, wanted: torch.Tensor, config: LossConfig, c: torch.Tensor | None = None) -> torch.Tensor:
    """Each value's squared error, or its pseudo-Huber loss 2c(sqrt(d² + c²) - c), which is d² for small d; fp32, shape of `predicted`."""
    squared = (predicted.float() - wanted.float()).square()
    if config.loss_type == "mse":
        return squared
    c = _rows(c.float(), squared)
    return 2 * c * squared / ((squared + c.square()).sqrt() + c)  # the same, without the difference of near equals


def weighted_mean(values: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch of each picture's mean times its weight (B,); a scalar. `mask` (B, 1, H, W) weighs places; its own mean is 1."""
    if mask is not None:
        values = values * mask
    return (values.mean(dim=tuple(range(1, values.ndim))) * weights).mean()
