"""One .safetensors file of full size, in the original layout: the command line's backbone and ComfyUI read the same model from it."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.yaml_values import find_base_model

SPEC = importlib.util.spec_from_file_location("loom_bench_bases", Path(__file__).resolve().parents[2] / "bench" / "bases.py")
bases = importlib.util.module_from_spec(SPEC)


def test_a_whole_sd15_file(comfy_modules: ModuleType, tmp_path: Path) -> None:
    import sys

    import comfy.sd
    from lora_loom.trainer.backbones.comfy import open_model

    sys.modules[SPEC.name] = bases
    SPEC.loader.exec_module(bases)
    path = tmp_path / "random_sd15.safetensors"
    bases.write_random_sd15(path, torch.float16)
    assert find_base_model(str(path), tmp_path)[1].id == "sd15"
    ours = backbone.load(str(path), "cpu", "fp32")
    assert ours.family.id == "sd15" and ours.prediction == "epsilon"
    with torch.inference_mode():
        theirs = open_model(*comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3])
    caption = "a red star on a blue background"
    contexts = [model.encode_captions([caption])[0] for model in (ours, theirs)]
    torch.testing.assert_close(contexts[0].context.detach(), contexts[1].context, rtol=1e-3, atol=1e-3)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.encode_images(pixels), theirs.encode_images(pixels), rtol=1e-2, atol=1e-3)
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([500])
    answers = []
    for model in (ours, theirs):
        with torch.inference_mode(False), torch.no_grad(), model.training("fp32", False, False):
            answers.append(model.predict(noisy, timesteps, Batch(noisy, [caption]), [contexts[0]]))
    assert answers[0].std() > 1e-3
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)
