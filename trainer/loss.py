"""The training loss of epsilon- and v-prediction models, in the model's own target space."""
from __future__ import annotations

import torch


def snr(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio alpha_bar/(1-alpha_bar) at each timestep, (B,) (Hang et al. 2023, section 3.1)."""
    a = alphas_cumprod[timesteps]
    return a / (1 - a)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """sqrt(alpha_bar)·latents + sqrt(1 - alpha_bar)·noise, all (B, C, H, W) (Ho et al. 2020, eq. 4)."""
    a = alphas_cumprod[timesteps].view(-1, *[1] * (latents.ndim - 1))
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, prediction: str) -> torch.Tensor:
    """What the model should say: the noise, or the velocity sqrt(alpha_bar)·noise - sqrt(1 - alpha_bar)·latents (Salimans & Ho 2022)."""
    if prediction == "epsilon":
        return noise
    a = alphas_cumprod[timesteps].view(-1, *[1] * (latents.ndim - 1))
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def min_snr_weights(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """min(SNR, gamma)/SNR for epsilon, min(SNR, gamma)/(SNR + 1) for v, (B,); ones where gamma is 0 (Hang et al. 2023, arXiv:2303.09556)."""
    if gamma <= 0:
        return torch.ones_like(alphas_cumprod[timesteps])
    ratio = snr(alphas_cumprod, timesteps)
    divisor = ratio if prediction == "epsilon" else ratio + 1
    return ratio.clamp(max=gamma) / divisor


def weighted_mse(predicted: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of each picture's mean squared error times its weight; a scalar in fp32."""
    return ((predicted.float() - wanted.float()).square().mean(dim=tuple(range(1, predicted.ndim))) * weights).mean()
