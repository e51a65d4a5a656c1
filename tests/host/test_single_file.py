"""One .safetensors file of full size, in the original layout: the command line's backbone and ComfyUI read the same model from it."""
from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.yaml_values import find_base_model

SPEC = importlib.util.spec_from_file_location("loom_bench_bases", Path(__file__).resolve().parents[2] / "bench" / "bases.py")
bases = importlib.util.module_from_spec(SPEC)
heavy = pytest.mark.skipif(os.environ.get("LORA_LOOM_HEAVY") != "1", reason="takes minutes and up to 16 GB: LORA_LOOM_HEAVY=1 runs it")
CAPTION = "a red star on a blue background"


def answers(model) -> list[torch.Tensor]:
    """What a model makes of a caption (context, and SDXL's pooled row), of a picture, and of noise."""
    context = model.encode_captions([CAPTION])[0]
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([500])
    with torch.inference_mode(False), torch.no_grad(), model.training("fp32", False, False):
        answer = model.predict(noisy, timesteps, Batch(noisy, [CAPTION], sizes=[(64, 64, 0, 0, 64, 64)]), [context])
    rows = [context.context] if context.pooled is None else [context.context, context.pooled]
    return [t.detach().clone() for t in (*rows, model.encode_images(pixels), answer)]


@pytest.mark.parametrize(("family", "v_prediction"), [
    ("sd15", False), pytest.param("sd2", True, marks=heavy), pytest.param("sd2", False, marks=heavy), pytest.param("sdxl", False, marks=heavy)])
def test_a_whole_file(comfy_modules: ModuleType, tmp_path: Path, family: str, v_prediction: bool) -> None:
    import comfy.sd
    from lora_loom.trainer.backbones.comfy import open_model

    sys.modules[SPEC.name] = bases
    SPEC.loader.exec_module(bases)
    path = tmp_path / f"random_{family}.safetensors"
    bases.write_random(path, family, torch.float16, v_prediction)
    assert find_base_model(str(path), tmp_path)[1].id == family
    ours = backbone.load(str(path), "cpu", "fp32")
    assert ours.family.id == family and ours.prediction == ("v_prediction" if v_prediction else "epsilon")
    found = answers(ours)
    del ours  # two of SDXL would not fit
    gc.collect()
    with torch.inference_mode():
        theirs = open_model(*comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3])
        wanted = answers(theirs)
    assert theirs.family.id == family and theirs.prediction == ("v_prediction" if v_prediction else "epsilon")
    assert found[-1].std() > 1e-3
    for mine, comfys in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, comfys, rtol=1e-2, atol=1e-3)
