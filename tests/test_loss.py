"""The loss against diffusers: noise, velocity and min-SNR weights as its schedulers and example scripts compute them."""
from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from lora_loom.trainer import loss as losses

SCHEDULERS = {
    "sd": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "linear": DDPMScheduler(beta_schedule="linear"),
}


@pytest.fixture(params=SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> DDPMScheduler:
    return SCHEDULERS[request.param]


@pytest.fixture
def drawn(scheduler: DDPMScheduler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise, and timesteps that hold both ends of the schedule."""
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(8, 4, 6, 5, generator=generator) for _ in range(2))
    middle = torch.randint(1, 999, (6,), generator=generator)
    return latents, noise, torch.cat([torch.tensor([0, 999]), middle])


def example_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """As in diffusers' examples/text_to_image/train_text_to_image_lora.py."""
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    return weights / snr if prediction == "epsilon" else weights / (snr + 1)


def test_snr_at_every_timestep(scheduler: DDPMScheduler) -> None:
    every = torch.arange(1000)
    torch.testing.assert_close(losses.snr(scheduler.alphas_cumprod, every), compute_snr(scheduler, every), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_at_every_timestep(scheduler: DDPMScheduler, gamma: float, prediction: str) -> None:
    every = torch.arange(1000)
    ours = losses.min_snr_weights(scheduler.alphas_cumprod, every, gamma, prediction)
    torch.testing.assert_close(ours, example_weights(scheduler, every, gamma, prediction), rtol=1e-4, atol=0)
    assert ours.shape == (1000,) and 0 < ours.min() and ours.max() <= 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_gamma_0_weighs_all_alike(scheduler: DDPMScheduler, prediction: str) -> None:
    timesteps = torch.tensor([0, 500, 999])
    assert losses.min_snr_weights(scheduler.alphas_cumprod, timesteps, 0.0, prediction).tolist() == [1, 1, 1]


def test_noisy_latents(scheduler: DDPMScheduler, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    ours = losses.add_noise(latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps), rtol=0, atol=1e-6)


def test_targets(scheduler: DDPMScheduler, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    velocity = losses.target(latents, noise, scheduler.alphas_cumprod, timesteps, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps), rtol=0, atol=1e-6)
    assert torch.equal(losses.target(latents, noise, scheduler.alphas_cumprod, timesteps, "epsilon"), noise)


def test_weighted_mse_by_hand() -> None:
    predicted = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    wanted = torch.zeros(2, 1, 2, 2)
    # (1 + 4 + 9 + 16) / 4 = 7.5 and 4 / 4 = 1; (7.5 * 0.5 + 1 * 2) / 2
    assert losses.weighted_mse(predicted, wanted, torch.tensor([0.5, 2.0])).item() == pytest.approx(2.875, abs=0)


def test_weighted_mse_equals_the_example_and_sums_in_fp32(drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    weights = example_weights(SCHEDULERS["sd"], timesteps, 5.0, "epsilon")
    loss = torch.nn.functional.mse_loss(latents, noise, reduction="none")
    expected = (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
    torch.testing.assert_close(losses.weighted_mse(latents, noise, weights), expected)
    low = losses.weighted_mse(latents.bfloat16(), noise.bfloat16(), weights)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, losses.weighted_mse(latents.bfloat16().float(), noise.bfloat16().float(), weights), rtol=0, atol=0)


def test_the_gradient_is_the_weighted_error(drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    predicted = latents.clone().requires_grad_()
    weights = losses.min_snr_weights(SCHEDULERS["sd"].alphas_cumprod, timesteps, 5.0, "epsilon")
    losses.weighted_mse(predicted, noise, weights).backward()
    expected = 2 * (latents - noise) * weights.view(-1, 1, 1, 1) / latents.numel()
    torch.testing.assert_close(predicted.grad, expected)
