"""The loss against diffusers: noise, velocity and min-SNR weights as its schedulers and example scripts compute them."""
from __future__ import annotations

import math

import numpy
import pytest
import scipy.stats
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from lora_loom.trainer import loss as losses
from lora_loom.trainer.config import LossConfig

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


def diffusion(scheduler: DDPMScheduler, prediction: str = "epsilon") -> losses.Diffusion:
    return losses.Diffusion(scheduler.alphas_cumprod, prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_at_every_timestep(scheduler: DDPMScheduler, gamma: float, prediction: str) -> None:
    every = torch.arange(1000)
    ours = diffusion(scheduler, prediction).weights(every, LossConfig(min_snr_gamma=gamma))
    torch.testing.assert_close(ours, example_weights(scheduler, every, gamma, prediction), rtol=1e-4, atol=0)
    assert ours.shape == (1000,) and 0 < ours.min() and ours.max() <= 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("config", [LossConfig(min_snr_gamma=0.0), LossConfig(weighting="none")])
def test_no_weighting_weighs_all_alike(scheduler: DDPMScheduler, prediction: str, config: LossConfig) -> None:
    assert diffusion(scheduler, prediction).weights(torch.tensor([0, 500, 999]), config).tolist() == [1, 1, 1]


def test_debiased_and_p2_weights_by_their_formulas(scheduler: DDPMScheduler) -> None:
    every = torch.arange(1000)
    snr = compute_snr(scheduler, every)
    torch.testing.assert_close(diffusion(scheduler).weights(every, LossConfig(weighting="debiased")), 1 / snr.clamp(max=1000).sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(diffusion(scheduler).weights(every, LossConfig(weighting="p2", p2_gamma=0.5)), 1 / (1 + snr).sqrt(), rtol=1e-4, atol=0)


def test_a_schedule_that_ends_in_pure_noise() -> None:
    """As models with zero terminal SNR have it: the last weight is a number too, and the others are those of diffusers."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    every = torch.arange(1000)
    assert scheduler.alphas_cumprod[-1] == 0
    for prediction in ("epsilon", "v_prediction"):
        for weighting in ("min_snr", "debiased", "p2"):
            assert diffusion(scheduler, prediction).weights(every, LossConfig(weighting=weighting)).isfinite().all()
    ours = diffusion(scheduler, "v_prediction").weights(every, LossConfig(min_snr_gamma=5.0))
    torch.testing.assert_close(ours, example_weights(scheduler, every, 5.0, "v_prediction"), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "p2"])
def test_the_weighted_loss_is_the_same_in_epsilon_and_in_v(scheduler: DDPMScheduler, drawn: tuple[torch.Tensor, ...], weighting: str) -> None:
    """One guess of the clean latents, said in both spaces: the weighted errors are equal, so that a weighting means one thing."""
    latents, noise, timesteps = drawn
    guess = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    a = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1).double()
    epsilon = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    errors = []
    for prediction, said in (("epsilon", epsilon), ("v_prediction", a.sqrt() * epsilon - (1 - a).sqrt() * guess)):
        process = diffusion(scheduler, prediction)
        squared = (said - process.target(latents, noise, timesteps)).square().flatten(1).mean(1)
        errors.append(squared * process.weights(timesteps, LossConfig(weighting=weighting)))
    torch.testing.assert_close(errors[0], errors[1], rtol=2e-3, atol=1e-9)


def test_noisy_latents(scheduler: DDPMScheduler, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    torch.testing.assert_close(diffusion(scheduler).add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps), rtol=0, atol=1e-6)


def test_targets(scheduler: DDPMScheduler, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    velocity = diffusion(scheduler, "v_prediction").target(latents, noise, timesteps)
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps), rtol=0, atol=1e-6)
    assert torch.equal(diffusion(scheduler).target(latents, noise, timesteps), noise)


def test_flow_is_that_of_diffusers(drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, _ = drawn
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow, sigmas = losses.Flow(torch.device("cpu")), scheduler.sigmas[[0, 10, 200, 400, 600, 800, 990, 999]]
    timesteps = scheduler.timesteps[[0, 10, 200, 400, 600, 800, 990, 999]]
    noisy = flow.add_noise(latents, noise, sigmas)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, timesteps, noise), rtol=0, atol=1e-6)
    # an Euler step by the target from the noisy latents to sigma 0 ends at the clean ones
    torch.testing.assert_close(noisy - sigmas.view(-1, 1, 1, 1) * flow.target(latents, noise, sigmas), latents, rtol=0, atol=1e-5)
    assert flow.weights(sigmas, LossConfig()).tolist() == [1] * 8
    u = torch.linspace(0.001, 1, 1000).flip(0)
    torch.testing.assert_close(losses.shifted(u, 3.0), scheduler.sigmas[:1000], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- how noise levels are drawn

def mode_cdf(x: numpy.ndarray, scale: float = 1.29) -> numpy.ndarray:
    """By counting the inverse: f is monotone, so that P(f(u) <= x) = 1 - f's inverse at x, u = 1 being f = 0."""
    u = numpy.linspace(0, 1, 200_001)
    f = 1 - u - scale * (numpy.cos(numpy.pi / 2 * u) ** 2 - 1 + u)
    return 1 - numpy.interp(x, f[::-1], u[::-1])


@pytest.mark.parametrize(("kind", "config", "cdf"), [
    ("uniform", LossConfig(), lambda x: x),
    ("logit_normal", LossConfig(), lambda x: scipy.stats.norm.cdf(numpy.log(x / (1 - x)))),
    ("logit_normal", LossConfig(logit_mean=-0.5, logit_std=0.7), lambda x: scipy.stats.norm.cdf(numpy.log(x / (1 - x)), -0.5, 0.7)),
    ("mode", LossConfig(), mode_cdf),
])
def test_densities_are_their_formulas(kind: str, config: LossConfig, cdf) -> None:
    drawn = losses.density(20_000, config, kind, torch.Generator().manual_seed(3)).double().numpy()
    assert scipy.stats.kstest(drawn, cdf).pvalue > 0.01
    wrong = numpy.clip(drawn * 0.97, 1e-9, 1)
    assert scipy.stats.kstest(wrong, cdf).pvalue < 1e-3  # the test can fail


@pytest.mark.parametrize(("kind", "theirs", "options"), [
    ("logit_normal", "logit_normal", {"logit_mean": 0.3, "logit_std": 0.8}), ("mode", "mode", {"mode_scale": 1.29}),
])
def test_densities_are_those_of_diffusers(kind: str, theirs: str, options: dict) -> None:
    ours = losses.density(20_000, LossConfig(**options), kind, torch.Generator().manual_seed(4))
    reference = compute_density_for_timestep_sampling(theirs, 20_000, **options, generator=torch.Generator().manual_seed(5))
    assert scipy.stats.ks_2samp(ours.numpy(), reference.numpy()).pvalue > 0.01


def test_the_shifts() -> None:
    assert losses.resolution_shift(256) == pytest.approx(math.exp(0.5)) and losses.resolution_shift(4096) == pytest.approx(math.exp(1.15))
    u = losses.density(20_000, LossConfig(), "uniform", torch.Generator().manual_seed(6))
    inverse = lambda x: x / (3 - 2 * x)  # of 3u / (1 + 2u)
    assert scipy.stats.kstest(losses.shifted(u, 3.0).double().numpy(), inverse).pvalue > 0.01


def test_every_timestep_can_be_drawn(scheduler: DDPMScheduler) -> None:
    times = diffusion(scheduler).times(torch.rand(50_000, generator=torch.Generator().manual_seed(7)))
    assert times.unique().tolist() == list(range(1000))
    assert diffusion(scheduler).times(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


# ---------------------------------------------------------------- noise

def test_plain_noise_is_standard_and_the_offset_shifts_whole_channels() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    plain = losses.draw_noise(latents, LossConfig(), torch.Generator().manual_seed(8))
    assert plain.std().item() == pytest.approx(1, abs=0.01) and plain.mean((2, 3)).std().item() == pytest.approx(1 / 16, rel=0.1)
    offset = losses.draw_noise(latents, LossConfig(noise_offset=0.5), torch.Generator().manual_seed(8))
    shift = offset - plain
    assert (shift - shift.mean((2, 3), keepdim=True)).abs().max() < 1e-5 and shift.mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.1)


def test_multires_noise_has_unit_variance_and_more_of_the_low_frequencies() -> None:
    latents = torch.zeros(16, 4, 32, 32)
    plain, multires = (losses.draw_noise(latents, config, torch.Generator().manual_seed(9))
                       for config in (LossConfig(), LossConfig(multires_noise_discount=0.5)))
    assert multires.std().item() == pytest.approx(1, abs=1e-4)
    coarse = [torch.nn.functional.avg_pool2d(noise, 8).var().item() for noise in (plain, multires)]
    assert coarse[0] == pytest.approx(1 / 64, rel=0.2) and coarse[1] > 5 * coarse[0]


# ---------------------------------------------------------------- distances

def test_huber_is_the_square_for_small_errors_and_straight_for_large_ones() -> None:
    d = torch.tensor([[1e-3, 1.0, 100.0]])
    huber = losses.distance(d, torch.zeros_like(d), LossConfig(loss_type="huber"), torch.tensor([0.1]))
    assert huber[0, 0].item() == pytest.approx(1e-6, rel=1e-3) and huber[0, 2].item() == pytest.approx(2 * 0.1 * (100 - 0.1), rel=1e-3)
    expected = 2 * 0.1 ** 2 * (math.sqrt(1 + (1.0 / 0.1) ** 2) - 1)  # as in the paper: delta^2 (sqrt(1 + (d/delta)^2) - 1), twice
    assert huber[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_huber_schedules(scheduler: DDPMScheduler) -> None:
    process, times = diffusion(scheduler), torch.tensor([0, 500, 999])
    at = lambda schedule: losses.huber_c(times, process, LossConfig(huber_schedule=schedule, huber_c=0.1))
    assert at("constant").tolist() == pytest.approx([0.1] * 3)
    assert at("exponential").tolist() == pytest.approx([1, 0.1 ** 0.5, 0.1 ** 0.999], rel=1e-5)
    sigma = ((1 - scheduler.alphas_cumprod[times]) / scheduler.alphas_cumprod[times]).sqrt()
    torch.testing.assert_close(at("snr"), 0.9 / (1 + sigma) ** 2 + 0.1, rtol=1e-4, atol=0)


def test_the_mean_by_hand() -> None:
    values = torch.tensor([[[[1.0, 4.0], [9.0, 16.0]]], [[[0.0, 0.0], [0.0, 4.0]]]])
    # (1 + 4 + 9 + 16) / 4 = 7.5 and 4 / 4 = 1; (7.5 * 0.5 + 1 * 2) / 2
    assert losses.weighted_mean(values, torch.tensor([0.5, 2.0])).item() == pytest.approx(2.875, abs=0)
    mask = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert losses.weighted_mean(values, torch.ones(2), mask).item() == pytest.approx((1 + 1) / 2, abs=0)


def test_the_loss_equals_the_example_and_sums_in_fp32(drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    weights = example_weights(SCHEDULERS["sd"], timesteps, 5.0, "epsilon")
    loss = torch.nn.functional.mse_loss(latents, noise, reduction="none")
    expected = (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
    ours = lambda a, b: losses.weighted_mean(losses.distance(a, b, LossConfig()), weights)
    torch.testing.assert_close(ours(latents, noise), expected)
    low = ours(latents.bfloat16(), noise.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, ours(latents.bfloat16().float(), noise.bfloat16().float()), rtol=0, atol=0)
