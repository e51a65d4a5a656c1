"""The toy base's architecture as data: Stable Diffusion 1.5's in small. Read by both backbones and by the script.

One safetensors file holds it all in diffusers' names under `unet.`, `text_encoder.` and `vae.`.
"""
from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).with_name("toy_base.safetensors")
NAME = "toy_base"
SIZE = 64  # pixels; latents are 8 x 8

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64, "attention_head_dim": 4,  # the number of heads, as in SD1.5's own config
}
TEXT = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 64,
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
}
VAE = {"latent_channels": 4, "scaling_factor": 1.0}  # AutoencoderTiny's other defaults are TAESD's
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
}
