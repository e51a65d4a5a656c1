"""Dynamic VRAM on a CPU: ComfyUI's own patcher and its own casting of weights, on pages of memory that stand in for a GPU's."""
from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lora_loom.trainer import attempts
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.config import AdapterConfig, LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.layers.compiled import Blocks

DEVICE = torch.device("cpu", 0)  # is not torch.device("cpu"), where weights lie


class Pages:
    """What comfy-aimdo keeps for one model: memory by address, what of it is resident, and how often each is pinned."""

    room = 10**12  # bytes that may be resident
    gives_way = False  # whether what is not pinned makes room for others; whoever still looks at it finds no numbers

    def __init__(self, size: int, device: int) -> None:
        self.mark = math.inf  # what lies behind it had to give way, and stays out until the model is loaded anew
        self.memory: dict[int, torch.Tensor] = {}
        self.serial: dict[int, int] = {}
        self.pins: Counter[int] = Counter()
        self.offset = 0

    def alloc(self, size: int) -> tuple[Pages, int, int]:
        self.offset += size
        return self, self.offset - size, size

    def fault(self, place: int, size: int) -> bytes | None:
        if place + size > self.mark:
            return None
        if place not in self.memory:
            for other in [p for p in self.memory if self.gives_way and not self.pins[p]]:
                if self.loaded_size() + size > self.room:
                    self.memory.pop(other).fill_(255)  # NaN in every dtype
            if self.loaded_size() + size > self.room:
                return None
            self.memory[place] = torch.zeros(size, dtype=torch.uint8)
            self.serial[place] = self.serial.get(place, 0) + 1
        self.pins[place] += 1
        return self.serial[place].to_bytes(4, "little")

    def unpin(self, place: int, size: int) -> None:
        self.pins[place] -= 1
        assert self.pins[place] >= 0
        if place >= self.mark and not self.pins[place]:
            self.memory.pop(place, None)

    def loaded_size(self) -> int:
        return sum(t.numel() for t in self.memory.values())

    def free_memory(self, size: float) -> int:
        gone = [place for place in self.memory if not self.pins[place]]
        return sum(self.memory.pop(place).numel() for place in gone)

    def prioritize(self) -> None:
        self.mark = math.inf

    def set_watermark(self, size: int) -> None:
        self.mark = size
        for place in [p for p in self.memory if p >= size and not self.pins[p]]:
            del self.memory[place]

    def give_way(self, size: int) -> None:
        """To something else on the device: the last pages go first, and pinned ones count without going."""
        for place in sorted(self.memory, reverse=True):
            if size > 0:
                self.mark = place
                size -= 0 if self.pins[place] else self.memory.pop(place).numel()

    @property
    def pinned(self) -> int:
        return sum(count > 0 for count in self.pins.values())


@pytest.fixture
def dynamic(comfy_modules: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """ComfyUI with dynamic VRAM: the toy base as MODEL, CLIP, VAE, and the pages of the MODEL once it was loaded."""
    for name in ("comfy_aimdo.model_vbar", "comfy.pinned_memory"):
        pytest.importorskip(name, reason="older ComfyUIs know no dynamic VRAM")
    import comfy.model_management as manage
    import comfy.model_patcher
    import comfy.pinned_memory
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    from lora_loom.trainer.backbones import comfy as backbone
    from lora_loom.trainer.backbones import comfy_toy

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI knows no dynamic VRAM")
    monkeypatch.setattr(manage, "is_device_cpu", lambda device: torch.device(device) == torch.device("cpu"))
    monkeypatch.setattr(manage, "get_torch_device", lambda: DEVICE)
    monkeypatch.setattr(manage, "ensure_pin_registerable", lambda *_, **__: True)
    monkeypatch.setattr(comfy.pinned_memory, "get_pin", lambda *_, **__: None)
    monkeypatch.setattr(comfy.pinned_memory, "pin_memory", lambda *_, **__: False)
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", lambda *_, **__: SimpleNamespace(size=0, truncate=lambda *_, **__: None))
    monkeypatch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", Pages)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda place: place[0].fault(*place[1:]))
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda place: place and place[0].unpin(*place[1:]))
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda a, b: None not in (a, b) and a == b)
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda place, device: place[0].memory[place[1]])
    with torch.inference_mode(), monkeypatch.context() as patch:
        patch.setattr(comfy.model_patcher, "ModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        model, _, _ = comfy_toy.load()
    monkeypatch.setattr(manage, "get_torch_device", lambda: torch.device("cpu"))
    with torch.inference_mode():
        plain, clip, vae = comfy_toy.load()
    assert model.is_dynamic()
    yield SimpleNamespace(model=model, plain=plain, clip=clip, vae=vae, open=backbone.open_model, pages=lambda: model.model.dynamic_vbars[DEVICE])
    manage.current_loaded_models[:] = [loaded for loaded in manage.current_loaded_models if loaded.model is not model]
    gc.collect()


CAPTIONS = ["a red circle", "a blue square"]


def gradients(loom: object, look: Callable[[], None] = lambda: None, precision: str = "fp32", checkpointing: int = 0, **options: object) -> dict[str, torch.Tensor]:
    """Of every adapter, after one step on fixed numbers; `look` is called in the middle."""
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditioning = loom.encode_captions(CAPTIONS)
    training = loom.training(precision, False, checkpointing, largest=(2, 4, 8, 8), **options)
    with torch.inference_mode(False), training, adapted(loom, AdapterConfig(rank=4), 0) as adapters, torch.enable_grad():
        loom.predict(noisy, torch.tensor([10, 700]), Batch(noisy, CAPTIONS, conditioning), conditioning).square().mean().backward()
        look()
        return {f"{a.key}.{name}": p.grad.clone() for a in adapters for name, p in a.named().items()}


def layers(patcher: object) -> list[torch.nn.Module]:
    return [m for m in patcher.model.diffusion_model.modules() if hasattr(m, "comfy_cast_weights") and m._parameters.get("weight") is not None]


def left(patcher: object) -> list[tuple]:
    """What is in a layer; small weights are brought in anew at every load."""
    return [(id(m), m.comfy_cast_weights, sorted(m.__dict__), *(id(p) for p in m._parameters.values() if hasattr(m, "_v"))) for m in layers(patcher)]


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], relative: float) -> bool:
    assert found.keys() == wanted.keys()
    return all((found[k] - wanted[k]).norm() <= relative * wanted[k].norm() + 1e-9 for k in wanted)


def test_weights_that_fit_are_held(dynamic: SimpleNamespace) -> None:
    """Every layer asks for its weight once, for the whole run; then all is as it was, and the pages are ComfyUI's again."""
    loom, seen = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae), []
    wanted = gradients(dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae))
    gradients(loom)
    before = left(dynamic.model)

    def look() -> None:
        every = layers(dynamic.model)
        pages = {id(m) for m in every if hasattr(m, "_v")}
        seen.append((dynamic.pages().pinned, len(pages), any(m.comfy_cast_weights for m in every)))
        assert all(m.weight.data_ptr() == m._v_weight.data_ptr() and not m.weight.is_inference() for m in every if id(m) in pages)

    assert close(gradients(loom, look), wanted, 1e-6)
    (pinned, paged, casting), = seen
    assert pinned == paged > 50 and not casting
    assert left(dynamic.model) == before and dynamic.pages().pinned == 0
    assert all(m.comfy_cast_weights for m in layers(dynamic.model))


def test_what_has_no_room_stays_on_demand(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pages, "room", 6 * 2**20)
    loom, seen = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae), []
    found = gradients(loom, lambda: seen.append((dynamic.pages().pinned, sum(m.comfy_cast_weights for m in layers(dynamic.model)))))
    (pinned, on_demand), = seen
    assert pinned > 0 < on_demand and dynamic.pages().pinned == 0
    assert close(found, gradients(dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae)), 1e-6)


@pytest.mark.parametrize("checkpointing", [0, 1])
@pytest.mark.parametrize("room", [2**20, 6 * 2**20], ids=["one layer", "half"])
def test_weights_that_do_not_fit_are_paged_at_every_use(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, room: int, checkpointing: int) -> None:
    """Asked for in forward and again in backward, looked at only while they are pinned; what finds no room at all comes through a buffer."""
    import comfy.ops

    cast, asked = comfy.ops.cast_bias_weight, Counter()

    def paged(layer: torch.nn.Module, *given: torch.Tensor, **options: object) -> tuple:
        asked[hasattr(layer, "_v")] += 1
        return cast(layer, *given, **(options | {"device": DEVICE} if hasattr(layer, "_v") else options))

    monkeypatch.setattr(Pages, "room", room)
    monkeypatch.setattr(Pages, "gives_way", True)
    loom = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae)
    loom.can_offload = True  # so that nothing is held
    with monkeypatch.context() as patch:
        patch.setattr(comfy.ops, "cast_bias_weight", paged)
        found = gradients(loom, checkpointing=checkpointing, offload=True)
    pages = dynamic.pages()
    assert asked[True] > 1.5 * len(pages.serial) > 60 and max(pages.serial.values()) > 1 and not pages.pinned and pages.loaded_size() <= room
    assert close(found, gradients(dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae)), 1e-5)


@pytest.mark.parametrize("short", ["memory", "asked for"])
def test_nothing_is_held_where_room_is_wanted(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, short: str) -> None:
    import comfy.model_management as manage

    loom, seen = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae), []
    if short == "memory":
        little = 20 * 2**20 + manage.extra_reserved_memory()
        monkeypatch.setattr(manage, "get_free_memory", lambda *_, torch_free_too=False: (little, little) if torch_free_too else little)
    else:
        loom.can_offload = True
    gradients(loom, lambda: seen.append(dynamic.pages().pinned), offload=short != "memory")
    assert seen == [0]


def test_a_lora_that_is_stacked_on_the_model_is_in_what_is_held(dynamic: SimpleNamespace) -> None:
    import comfy.sd

    generator, lora = torch.Generator().manual_seed(1), {}
    names = [n for n, m in dynamic.plain.model.diffusion_model.named_modules() if n.endswith(("to_q", "to_out.0"))]
    for name in names:
        out, into = dynamic.plain.model.diffusion_model.get_submodule(name).weight.shape
        lora[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(2, into, generator=generator)
    stacked, wanted = (comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)[0] for model in (dynamic.model, dynamic.plain))
    seen: list[int] = []
    found = gradients(dynamic.open(stacked, dynamic.clip, dynamic.vae), lambda: seen.append(dynamic.pages().pinned))
    assert seen[0] > 50
    assert close(found, gradients(dynamic.open(wanted, dynamic.clip, dynamic.vae)), 1e-4)
    assert not close(found, gradients(dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae)), 1e-2)


def test_an_error_gives_the_pages_back(dynamic: SimpleNamespace) -> None:
    loom = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae)
    gradients(loom)
    before = left(dynamic.model)

    def fail() -> None:
        assert dynamic.pages().pinned
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        gradients(loom, fail)
    assert left(dynamic.model) == before and dynamic.pages().pinned == 0


def test_an_interrupt_while_pages_come_in(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as manage

    loom = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae)
    gradients(loom)

    def interrupted() -> None:
        if dynamic.pages().pinned == 5:
            raise manage.InterruptProcessingException

    monkeypatch.setattr(manage, "throw_exception_if_processing_interrupted", interrupted)
    with pytest.raises(manage.InterruptProcessingException):
        gradients(loom)
    assert dynamic.pages().pinned == 0 and all(m.comfy_cast_weights for m in layers(dynamic.model))


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_held_blocks_can_be_compiled(dynamic: SimpleNamespace, precision: str, share: float) -> None:
    blocks, seen = Blocks("eager"), []

    def look() -> None:
        seen.append((dict(blocks.kinds), blocks.compilations, blocks.failed))

    blocks.on = True
    found = gradients(dynamic.open(dynamic.model, dynamic.clip, dynamic.vae), look, precision, blocks=blocks)
    (kinds, compilations, failed), = seen
    assert kinds and compilations and not failed
    wanted = gradients(dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae), precision=precision)
    joined = [torch.cat([values[k].flatten() for k in sorted(wanted)]) for values in (found, wanted)]  # B is 0 at the start, and so is A's gradient
    assert (joined[0] - joined[1]).norm() <= share * joined[1].norm()


CONFIG = LoomConfig().replace(
    adapter={"rank": 4}, train={"steps": 3, "precision": "fp32", "batch_size": 2, "seed": 1}, samples={"sample_prompts": ("a red circle",), "sample_steps": 2},
    output={"save_dtype": "fp32"})


def run(dynamic: SimpleNamespace, name: str, dataset: Dataset, config: LoomConfig, folder: Path, **hooks: Callable) -> Result:
    """A run on that MODEL, as ComfyUI executes nodes."""
    loom = dynamic.open(getattr(dynamic, name), dynamic.clip, dynamic.vae)
    with torch.inference_mode():
        return train(loom, dataset, config, loras_folder=folder / name / "loras", runs_folder=folder / name / "runs", hooks=Hooks(**hooks))


def alike(mine: Result, other: Result) -> None:
    for key, value in other.lora.items():
        torch.testing.assert_close(mine.lora[key], value, rtol=1e-4, atol=1e-6)


def test_a_run_with_samples(dynamic: SimpleNamespace, circles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While ComfyUI's sampler draws, the pages are ComfyUI's; what is trained on afterwards lies where it lay before."""
    import comfy.sample

    sample, drawing, training, places = comfy.sample.sample, [], [], []

    def watched(patcher: object, *args: object, **options: object) -> torch.Tensor:
        drawing.append(dynamic.pages().pinned if patcher is dynamic.model else 0)
        return sample(patcher, *args, **options)

    def poll() -> None:
        if DEVICE in dynamic.model.model.dynamic_vbars and dynamic.pages().pinned > 50:
            training.append(dynamic.pages().pinned)
            places.append([m.weight.data_ptr() for m in layers(dynamic.model) if hasattr(m, "_v")])

    monkeypatch.setattr(comfy.sample, "sample", watched)
    dataset = read_dataset(circles("a {} circle (round)"), resolution=64, min_size=32)
    plain, paged = run(dynamic, "plain", dataset, CONFIG, tmp_path), run(dynamic, "model", dataset, CONFIG, tmp_path, poll=poll)
    assert len(drawing) == 6 and not any(drawing) and len({*training}) == 1 and len(training) >= 3
    assert all(p == places[0] for p in places) and dynamic.pages().pinned == 0
    alike(paged, plain)
    assert paged.samples and [p.read_bytes() for p in paged.samples] == [p.read_bytes() for p in plain.samples]
    with torch.inference_mode():
        positive = dynamic.clip.encode_from_tokens_scheduled(dynamic.clip.tokenize("a red circle"))
        latents = torch.zeros(1, 4, 8, 8)
        drawn = [sample(patcher, comfy.sample.prepare_noise(latents, 1), 2, 2.0, "euler", "normal", positive, positive, latents, disable_pbar=True, seed=1)
                 for patcher in (dynamic.plain, dynamic.model)]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("when", ["while it draws", "while it trains"])
def test_pages_that_had_to_give_way_come_back(
        dynamic: SimpleNamespace, circles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The room is free again after the sample: all is held as before, and the sampler itself found all of it."""
    import comfy.sample

    blocks, sample, seen, there = Blocks("eager"), comfy.sample.sample, [], []
    monkeypatch.setattr(attempts, "Blocks", lambda: blocks)

    def drawn(patcher: object, *args: object, **options: object) -> torch.Tensor:
        there.append(dynamic.pages().loaded_size())
        found = sample(patcher, *args, **options)
        if blocks.compilations and when == "while it draws":
            dynamic.pages().give_way(3 * 2**20)
        return found

    def progress(now: Progress) -> None:
        if now.phase == "train":
            if when == "while it trains":
                dynamic.pages().give_way(3 * 2**20)
            seen.append((dynamic.pages().pinned, blocks.on))

    monkeypatch.setattr(comfy.sample, "sample", drawn)
    dataset = read_dataset(circles("a {} circle (round)"), resolution=64, min_size=32)
    run(dynamic, "model", dataset, CONFIG.replace(train={"compile": "always", "steps": 7}), tmp_path, progress=progress)
    assert len({*seen}) == 1 and seen[0][0] > 50 and seen[0][1] and not blocks.failed
    assert len(there) == 5 and len({*there}) == 1  # a base picture, and those of steps 2, 4, 6 and 7


def test_what_gives_way_counts_as_free(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other models' pages, and this one's own where the base model is to be off the device."""
    import comfy.model_management as manage

    loom = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae)
    gradients(loom)
    own = dynamic.pages().loaded_size()
    assert own > 10 * 2**20
    other = SimpleNamespace(is_dynamic=lambda: True, load_device=DEVICE, _vbar_get=lambda: SimpleNamespace(loaded_size=lambda: 7 * 2**20))
    monkeypatch.setattr(manage, "get_free_memory", lambda *_, torch_free_too=False: (2**30, 2**30) if torch_free_too else 2**30)
    base = dynamic.model.loaded_size()
    for elsewhere, more in (([], 0), ([SimpleNamespace(model=other)], 7 * 2**20)):
        with monkeypatch.context() as patch:
            patch.setattr(manage, "current_loaded_models", [*manage.current_loaded_models, *elsewhere])
            assert loom.memory() == (base, 2**30 + more)
            loom._away = True
            assert loom.memory() == (0, 2**30 + more + own)
            loom._away = False


def test_a_budget_below_a_model_whose_pages_are_resident(dynamic: SimpleNamespace, circles: Callable[..., Path], tmp_path: Path) -> None:
    loom = dynamic.open(dynamic.model, dynamic.clip, dynamic.vae)
    gradients(loom)  # as after a picture was made
    loom.can_offload, said, there = True, [], []
    config = CONFIG.replace(train={"memory_budget": 0.008, "steps": 4})  # a sample every second step
    assert dynamic.pages().loaded_size() > 0.008 * 2**30
    with torch.inference_mode():
        train(loom, read_dataset(circles("a {} circle (round)"), resolution=64, min_size=32), config, loras_folder=tmp_path / "loras",
              runs_folder=tmp_path / "runs", hooks=Hooks(event=lambda name, facts: said.append(facts.get("change")),
                                                         progress=lambda now: now.phase == "train" and there.append(dynamic.pages().loaded_size())))
    assert "base model kept off the device" in said
    assert len(there) == 4 and all(0 < size < 0.008 * 2**30 for size in there) and dynamic.pages().mark == math.inf


def test_prompts_are_encoded_beside_a_model_that_is_trained(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that somebody asks for in the middle: the text encoder comes back, and must not drive out what has adapters in it."""
    import comfy.model_management as manage

    loom, seen, load = dynamic.open(dynamic.plain, dynamic.clip, dynamic.vae), [], manage.load_models_gpu
    known = lambda: any(loaded.model is dynamic.plain for loaded in manage.current_loaded_models)

    def loading(models: list, *args: object, **options: object) -> None:
        seen.append(known())
        load(models, *args, **options)

    def look() -> None:
        monkeypatch.setattr(manage, "load_models_gpu", loading)
        loom.encode_prompts(["a circle"])

    gradients(loom, look)
    assert seen == [False] and known()
    loom.encode_prompts(["a circle"])
    assert seen == [False, True]


def test_pages_that_do_not_come_back_after_a_sample(dynamic: SimpleNamespace, circles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else took the room meanwhile: the run goes on with what there is, and without what counts on all of it."""
    import comfy.sample

    blocks, sample, seen, said = Blocks("eager"), comfy.sample.sample, [], []
    monkeypatch.setattr(attempts, "Blocks", lambda: blocks)

    def taking(patcher: object, *args: object, **options: object) -> torch.Tensor:
        if patcher is dynamic.model and blocks.compilations:
            Pages.room = 4 * 2**20
            dynamic.pages().free_memory(1e30)
        return sample(patcher, *args, **options)

    def progress(now: Progress) -> None:
        if now.phase == "train":
            seen.append((dynamic.pages().pinned, blocks.on))

    def event(name: str, facts: dict) -> None:
        said.extend([facts["change"]] if name == "compiling" else [])

    dataset = read_dataset(circles("a {} circle (round)"), resolution=64, min_size=32)
    config = CONFIG.replace(train={"compile": "always", "steps": 5})
    plain = run(dynamic, "plain", dataset, config.replace(train={"compile": "never"}), tmp_path)
    monkeypatch.setattr(Pages, "room", Pages.room)
    monkeypatch.setattr(comfy.sample, "sample", taking)
    paged = run(dynamic, "model", dataset, config, tmp_path, progress=progress, event=event)
    pins, on = zip(*seen)
    assert on == (True, True, False, False, False) and 0 < pins[-1] < pins[0] and said == ["blocks are no longer compiled: memory ran out"] and dynamic.pages().pinned == 0
    alike(paged, plain)


def test_the_panel_counts_pages_too(dynamic: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.memory_management
    import comfy.model_management as manage
    import comfy_aimdo.control
    from lora_loom.nodes import live

    monkeypatch.setattr(manage, "get_torch_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(manage, "get_total_memory", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(comfy_aimdo.control, "get_total_vram_usage", lambda: 70)
    for paging, used in ((True, 70), (False, 30)):
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", paging)
        assert live._memory() == {"device": "GPU", "used": used, "total": 100}
