"""Bucket sizes keep their promises at every resolution, and fitting equals scaling and cropping."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from lora_loom.trainer.data.buckets import bucket_for, bucket_sizes, fit, to_tensor
from PIL import Image
from skimage import data


@pytest.mark.parametrize("multiple", [8, 16, 32, 64])
@pytest.mark.parametrize("resolution", [64, 100, 128, 200, 512, 513, 768, 1024, 1536])
def test_sizes_keep_their_promises(resolution: int, multiple: int) -> None:
    sizes = bucket_sizes(resolution, multiple)
    side = max(multiple, int(resolution / multiple + 0.5) * multiple)
    assert (side, side) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % multiple == 0 and height % multiple == 0 and min(width, height) > 0
        assert width * height <= side * side and 0.5 <= width / height <= 2 and (height, width) in sizes
        # As large as the rule allows: one more step of the shorter side would pass the area.
        assert max(width, height) * (min(width, height) + multiple) > side * side
    assert [w / h for w, h in sizes] == sorted(w / h for w, h in sizes)


def test_known_sizes() -> None:
    assert bucket_sizes(512, 64) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768)} <= set(bucket_sizes(1024, 64))  # SDXL's own, Podell et al. 2023, appendix I
    assert bucket_sizes(64, 64) == bucket_sizes(80, 64) == [(64, 64)] and bucket_sizes(128, 64) == [(128, 128)]


@pytest.mark.parametrize("size,buckets,wanted", [
    ((512, 512), True, (512, 512)), ((6000, 4000), True, (640, 384)), ((4000, 6000), True, (384, 640)), ((6000, 4500), True, (576, 448)),
    ((6000, 100), True, (64, 64)), ((6000, 4000), False, (512, 512)), ((500, 500), True, (448, 448)), ((300, 451), False, (256, 256)),
    ((451, 300), True, (384, 256)), ((20, 30), True, (64, 64)), ((1, 5000), True, (64, 64)),
])
def test_bucket_for(size: tuple[int, int], buckets: bool, wanted: tuple[int, int]) -> None:
    assert bucket_for(*size, 512, 64, buckets) == wanted


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("resolution,multiple", [(64, 64), (512, 64), (512, 8), (1024, 64)])
def test_never_enlarged_where_avoidable(resolution: int, multiple: int, buckets: bool) -> None:
    numbers = np.random.default_rng(0).integers(1, 3000, (200, 2)).tolist()
    for width, height in numbers:
        bucket_width, bucket_height = bucket_for(width, height, resolution, multiple, buckets)
        if min(width, height) >= multiple:
            assert bucket_width <= width and bucket_height <= height
        else:
            assert (bucket_width, bucket_height) == (multiple, multiple)


def test_fit_equals_scaling_then_cropping() -> None:
    image = Image.fromarray(data.coffee())  # 600x400
    fitted, sizes = fit(image, (256, 256))
    assert sizes == (400, 600, 0, 64, 256, 256)  # scaled to 384x256, 64 cut from either side
    whole = image.resize((384, 256), Image.Resampling.LANCZOS).crop((64, 0, 320, 256))
    assert np.abs(np.asarray(fitted, np.int16) - np.asarray(whole, np.int16)).max() <= 1


@pytest.mark.parametrize("original,size", [((600, 400), (640, 384)), ((400, 600), (64, 64)), ((30, 20), (64, 64)), ((7, 20_000), (64, 64)),
                                           ((20_000, 7), (64, 64)), ((64, 64), (64, 64)), ((1, 1), (64, 128))])
def test_fit_always_gives_the_size(original: tuple[int, int], size: tuple[int, int]) -> None:
    fitted, (height, width, top, left, target_height, target_width) = fit(Image.new("RGB", original, (1, 2, 3)), size)
    assert fitted.size == size == (target_width, target_height) and (width, height) == original
    assert top >= 0 and left >= 0 and min(top, left) == 0 and fitted.getpixel((5, 5)) == (1, 2, 3)


def test_fit_leaves_a_fitting_picture_alone() -> None:
    image = Image.fromarray(data.astronaut())
    fitted, sizes = fit(image, (512, 512))
    assert np.array_equal(np.asarray(fitted), data.astronaut()) and sizes == (512, 512, 0, 0, 512, 512)


def test_to_tensor() -> None:
    pixels = to_tensor(Image.fromarray(data.coffee()))
    assert pixels.shape == (3, 400, 600) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert torch.equal((pixels * 255).round().to(torch.uint8), torch.from_numpy(data.coffee()).permute(2, 0, 1))
    assert pixels.min() >= 0 and pixels.max() <= 1
