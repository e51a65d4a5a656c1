"""The flat YAML: every key arrives where it belongs, and every mistake names itself, the rule and the remedy."""
import dataclasses
import json
import re
import struct
from pathlib import Path

import pytest
import yaml
from lora_loom.trainer import config as config_module
from lora_loom.trainer import presets
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.augment import Augmentation
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.yaml_config import KEYS, describe, load_job

FULL = """
train_data_dir: pictures
metadata_path: captions/metadata.csv
base_model: model.safetensors
lora_rank: 8
lora_alpha: 4
lora_dropout: 0.1
module_dropout: 0.2
init_lora: old.safetensors
algorithm: dora
lora_target_modules: attention+ff
train_text_encoder: yes
learning_rate: 2e-4
text_encoder_lr: 3e-5
optimizer: AdamW
lr_scheduler: cosine
lr_warmup_steps: 10
weight_decay: 0.02
max_grad_norm: 0.5
min_snr_gamma: 4
noise_offset: 0.03
caption_dropout: 0.2
preservation: 1.5
preservation_words: [mug, cup]
epochs: 7
batch_size: 2
gradient_accumulation_steps: 3
gradient_checkpointing: true
plain_layers: true
memory_budget: 5.5
base_precision: nf4
compile: never
mixed_precision: bf16
seed: 42
resolution: 768
min_size: 256
caption_source: metadata
trigger_word: 织机
repeats: 5
flip: true
buckets: false
more_resolutions: [512, 1024]
upscale: true
augment_flip: 0.5
random_crop: 0.1
rotation: 5
brightness: 0.2
contrast: 0.25
hue: 30
augment_variants: 6
augment_seed: 3
shuffle_caption: true
keep_tokens: 2
tag_dropout: 0.1
caption_variants: 4
cache: false
output_dir: results
output_name: my_织机
save_steps: 50
sample_every_n_steps: 25
sample_prompts: [a mug, 一只杯子]
sample_negative_prompt: blurry
sample_seed: 9
sample_cfg: 4
keep_checkpoints: 3
ema_decay: 0.99
loss_weighting: debiased
p2_gamma: 2
loss_type: huber
huber_c: 0.2
huber_schedule: exponential
multires_noise_discount: 0.3
multires_noise_iterations: 4
input_perturbation: 0.1
timestep_sampling: logit_normal
logit_mean: -0.5
logit_std: 0.8
mode_scale: 1
timestep_shift: constant
shift: 2.5
unmasked_weight: 0.2
validation_steps: 100
validation_split: 0.2
masks: alpha
resume: old_run
save_minutes: 3
lr_num_cycles: 2
adam_beta1: 0.8
adam_beta2: 0.95
save_precision: bf16
log_dir: logs
device: cpu
task_type: text-to-image
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "metadata.csv").write_text("filename,prompt\n", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(checkpoint(768))
    (tmp_path / "old.safetensors").touch()
    return tmp_path


def checkpoint(width, layer="model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"):
    """A safetensors header as a checkpoint has it, without the weights: nothing else may be read."""
    header = json.dumps({layer: {"dtype": "F16", "shape": [640, width], "data_offsets": [0, 1280 * width]}}).encode()
    return struct.pack("<Q", len(header)) + header


def job_of(folder, text="", head="train_data_dir: pictures\nbase_model: toy_base\n"):
    path = folder / "run.yaml"
    path.write_text(head + text, encoding="utf-8")
    return load_job(path)


def _saved(folder, text):
    path = folder / "described.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(folder, text, **head):
    with pytest.raises(LoomError) as caught:
        job_of(folder, text, **head)
    return str(caught.value)


def test_every_key_arrives(folder):
    job = job_of(folder, FULL, head="")
    assert (job.data, job.metadata) == (folder / "pictures", folder / "captions" / "metadata.csv")
    assert job.base_model == str(folder / "model.safetensors")
    assert job.resume == "old_run"
    assert (job.output_dir, job.log_dir, job.device) == (folder / "results", folder / "logs", "cpu")
    assert job.dataset == {"resolution": 768, "min_size": 256, "caption_source": "metadata", "trigger_word": "织机",
                           "repeats": 5, "flip": True, "buckets": False, "masks": "alpha", "more_resolutions": (512, 1024), "upscale": True,
                           "augment": Augmentation(0.5, 0.1, 5.0, 0.2, 0.25, 30.0, 6, 3)}
    assert job.config.to_dict() == {
        "adapter": {"algorithm": "dora", "rank": 8, "alpha": 4.0, "dropout": 0.1, "module_dropout": 0.2, "targets": "attention+ff", "target_modules": [],
                    "train_text_encoder": True, "init_lora": str(folder / "old.safetensors")},
        "optim": {"optimizer": "adamw", "learning_rate": 2e-4, "text_encoder_lr": 3e-5, "scheduler": "cosine", "warmup_steps": 10,
                  "cycles": 2, "weight_decay": 0.02, "beta1": 0.8, "beta2": 0.95, "max_grad_norm": 0.5, "ema_decay": 0.99},
        "loss": {"weighting": "debiased", "p2_gamma": 2.0, "loss_type": "huber", "huber_c": 0.2, "huber_schedule": "exponential", "multires_noise_discount": 0.3,
                 "multires_noise_iterations": 4, "input_perturbation": 0.1, "timestep_sampling": "logit_normal", "logit_mean": -0.5, "logit_std": 0.8,
                 "mode_scale": 1.0, "timestep_shift": "constant", "shift": 2.5, "unmasked_weight": 0.2, "min_snr_gamma": 4.0, "noise_offset": 0.03, "caption_dropout": 0.2, "preservation": 1.5, "preservation_words": ["mug", "cup"]},
        "data": {"shuffle_tags": True, "keep_tokens": 2, "tag_dropout": 0.1, "caption_variants": 4, "cache": False},
        "train": {"steps": 0, "epochs": 7, "batch_size": 2, "gradient_accumulation_steps": 3, "precision": "bf16",
                  "gradient_checkpointing": True, "memory_budget": 5.5, "base_precision": "nf4", "compile": "never", "plain_layers": True, "seed": 42,
                  "validation_steps": 100, "validation_split": 0.2, "pictures": [10, 20]},
        "samples": {"sample_steps": 25, "sample_prompts": ["a mug", "一只杯子"], "sample_negative": "blurry", "sample_seed": 9, "sample_cfg": 4.0},
        "output": {"name": "my_织机", "save_steps": 50, "keep_checkpoints": 3, "save_minutes": 3.0, "save_dtype": "bf16"},
    }


def test_the_table_points_at_fields_that_exist():
    tree = LoomConfig().to_dict()
    for key in KEYS:
        owner, name = key.where.split(".")
        assert owner in ("run", "dataset") or name in (tree.get(owner) or vars(Augmentation())), key
    assert len({key.name for key in KEYS}) == len({key.where for key in KEYS}) == len(KEYS)


def test_the_least_is_enough_and_has_the_shipped_defaults(folder):
    job = job_of(folder)
    assert job.config == LoomConfig() and job.config.train.steps == 1000
    assert (job.dataset["resolution"], job.dataset["min_size"]) == (64, 64)  # the toy base's own size
    assert (job.output_dir, job.log_dir, job.metadata, job.device) == (folder / "output", None, None, "auto")


@pytest.mark.parametrize("width, family, resolution", [(768, "sd15", 512), (1024, "sd2", 512), (2048, "sdxl", 1024)])
def test_the_family_and_its_resolution_come_from_headers_alone(folder, width, family, resolution):
    (folder / "model.safetensors").write_bytes(checkpoint(width))
    (folder / "pipeline" / "unet").mkdir(parents=True)
    (folder / "pipeline" / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width}))
    if family == "sdxl":
        (folder / "pipeline" / "text_encoder_2").mkdir()
    for base in ("model.safetensors", "pipeline"):
        job = job_of(folder, head=f"train_data_dir: pictures\nbase_model: {base}\n")
        assert job.family.id == family
        assert (job.dataset["resolution"], job.dataset["min_size"]) == (resolution, 512)


@pytest.mark.parametrize("text", ["", FULL, "preset: illustration style\nepochs: 3\n", "lora_target_modules: [to_q, 'attn2.*to_k$']\n"])
def test_describe_is_a_configuration_of_the_same_job(folder, text):
    job = job_of(folder, text, head="") if text is FULL else job_of(folder, text)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "again.yaml").write_text(describe(job), encoding="utf-8")
    assert load_job(folder / "elsewhere" / "again.yaml") == job


def test_steps_and_epochs(folder):
    train = job_of(folder, "epochs: 4\n").config.train
    assert (train.steps, train.epochs) == (0, 4)
    job = job_of(folder, "epochs: 4\nmax_train_steps: 20\n")
    assert (job.config.train.steps, job.config.train.epochs) == (20, 0)
    assert "epochs 4 is not used: max_train_steps 20 decides" in describe(job)
    assert job_of(folder, "epochs: 4\nmax_train_steps: 0\n").config.train.epochs == 4
    assert "nothing to train" in error_of(folder, "max_train_steps: 0\n")


def test_a_preset_is_the_start_and_keys_win(folder):
    job = job_of(folder, "preset: illustration style\nlora_rank: 4\nlora_alpha: 4\n")
    assert job.config == presets.merge(presets.load("illustration style"), {"adapter": {"rank": 4, "alpha": 4}})
    sd15 = job_of(folder, "preset: illustration style\n", head="train_data_dir: pictures\nbase_model: model.safetensors\n")
    assert job.config.adapter.targets == "attention+ff" and sd15.config.adapter.targets == "all linear+conv"  # as that family wants it
    (folder / "mine.yaml").write_text("values: {adapter: {rank: 5}}\nfamilies: {toy: {adapter: {alpha: 2}}}", encoding="utf-8")
    own = job_of(folder, "preset: mine.yaml\n")
    assert (own.config.adapter.rank, own.config.adapter.alpha) == (5, 2.0) and load_job(_saved(folder, describe(own))).config == own.config
    assert job.config.train.steps == presets.load("illustration style")["train"]["steps"]
    assert "counts 8-fold" not in describe(job) and job.notes == ()
    assert "lora_alpha is 32, not 4" in describe(job_of(folder, "preset: illustration style\nlora_rank: 4\n"))
    assert job_of(folder, "preset: illustration style\nlora_target_modules: all linear\n").config.adapter.targets == "all linear"


@pytest.mark.parametrize("written, meant", [
    ("attention+ff", {"targets": "attention+ff"}),
    ("[all linear]", {"targets": "all linear"}),
    ("to_q", {"target_modules": (r"(^|\.)to_q$",)}),
    ("[to_q, to_out.0]", {"target_modules": (r"(^|\.)to_q$", r"(^|\.)to_out\.0$")}),
    (r"['\.attn2\.to_(k|v)$']", {"target_modules": (r"\.attn2\.to_(k|v)$",)}),
])
def test_target_modules(folder, written, meant):
    adapter = job_of(folder, f"lora_target_modules: {written}\n").config.adapter
    assert adapter == dataclasses.replace(config_module.AdapterConfig(), **meant)


@pytest.mark.parametrize("written, meant", [("no", "fp32"), ("fp32", "fp32"), ("'no'", "fp32"), ("BF16", "bf16"), ("auto", "auto")])
def test_mixed_precision(folder, written, meant):
    assert job_of(folder, f"mixed_precision: {written}\n").config.train.precision == meant


@pytest.mark.parametrize("text, parts", [
    ("lora_rnak: 8", ["'lora_rnak'", "unknown", "did you mean 'lora_rank'", "lora-loom train --keys"]),
    ("quantize: true", ["'quantize' in", "is unknown: `lora-loom train --keys`"]),
    ("lr_shceduler: cosine", ["'lr_shceduler'", "did you mean 'lr_scheduler'"]),
    ("zzz: 1", ["'zzz'", "unknown", "lora-loom train --keys"]),
    ("lora_rank: 0", ["lora_rank 0 is below 1: lora_rank takes 1 to 512"]),
    ("lora_rank: 1.5", ["lora_rank is 1.5", "whole number"]),
    ("lora_rank: .inf", ["lora_rank is inf", "whole number"]),
    ("lora_rank: many", ["lora_rank is 'many'", "whole number"]),
    ("lora_rank: [8]", ["lora_rank is [8]", "whole number"]),
    ("learning_rate: .nan", ["learning_rate is nan", "not a number"]),
    ("learning_rate: fast", ["learning_rate is 'fast'", "must be a number"]),
    ("learning_rate: 2", ["learning_rate 2", "above 1"]),
    ("train_text_encoder: maybe", ["train_text_encoder is 'maybe'", "true or false"]),
    ("optimizer: AdamW4bit", ["optimizer 'adamw4bit'", "one of adamw", "did you mean 'adamw"]),
    ("scheduler: cosin", ["scheduler 'cosin'", "did you mean 'cosine'"]),
    ("algorithm: locon", ["algorithm 'locon'", "lora, dora"]),
    ("mixed_precision: fp16", ["mixed_precision 'fp16'", "bf16"]),
    ("save_precision: int8", ["save_precision 'int8'", "fp16, bf16, fp32"]),
    ("task_type: text-generation", ["task_type 'text-generation'", "text-to-image"]),
    ("device: gpu", ["device 'gpu'", "auto, cpu, cuda"]),
    ("caption_source: sidcar", ["caption_source 'sidcar'", "did you mean 'sidecar'"]),
    ("resolution: 8", ["resolution 8", "64 to 4096"]),
    ("repeats: 0", ["repeats 0", "1 to"]),
    ("preset: persn", ["preset 'persn'", "did you mean 'person'"]),
    ("preset: gone.yaml", ["preset 'gone.yaml'", "not a file"]),
    ("lora_target_modules: []", ["lora_target_modules []", "attention"]),
    ("lora_target_modules: ['to_(q']", ["'to_(q'", "regular expression"]),
    ("lora_target_modules: [to_q, attention]", ["'attention'", "alone"]),
    ("output_name: ../evil", ["output_name '../evil'", "'/'"]),
    ("output_name: con", ["output_name 'con'", "reserved by Windows"]),
    ("metadata_path: captions.txt", ["metadata_path 'captions.txt'", ".csv or .jsonl"]),
    ("metadata_path: gone.csv", ["metadata_path 'gone.csv'", "not a file"]),
    ("seed: -1", ["seed -1", "below 0"]),
    ("epochs: 1\nepochs: 2", ["run.yaml: key 'epochs' is given twice, in lines 3 and 4: keep one"]),
    ("scheduler: cosine\nlr_scheduler: linear", ["lr_scheduler", "another name of scheduler"]),
    ('log_dir: "C:\\new"', ["log_dir", "control character", "single quotes"]),
    ('log_dir: "C:\\Users"', ["line 3", "single quotes"]),
    ("a: [", ["not YAML", "line"]),
])
def test_mistakes_name_key_value_and_rule(folder, text, parts):
    message = error_of(folder, text + "\n")
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_faulty_preset_is_named_with_what_is_wrong_in_it(folder):
    (folder / "mine.yaml").write_text("values: {adapter: {rnak: 4}}\n", encoding="utf-8")
    message = error_of(folder, "preset: mine.yaml\n")
    assert all(part in message for part in ("preset 'mine.yaml'", "'rnak'", "did you mean 'rank'")), message


def test_a_run_that_goes_on_asks_for_no_init_lora(folder):
    assert all(part in error_of(folder, "init_lora: gone.safetensors\n") for part in ("init_lora 'gone.safetensors'", "not a file"))
    (folder / "run.yaml").write_text("train_data_dir: pictures\nbase_model: toy_base\ninit_lora: gone.safetensors\nresume: my_lora\n", encoding="utf-8")
    assert load_job(folder / "run.yaml").resume == "my_lora"


@pytest.mark.parametrize("head, parts", [
    ("", ["it must hold lines such as"]),
    ("- 1\n", ["it must hold lines such as"]),
    ("base_model: toy_base\n", ["train_data_dir is missing", "run.yaml", "required"]),
    ("train_data_dir: pictures\n", ["base_model is missing"]),
    ("train_data_dir: pictures\nbase_model:\n", ["base_model is missing"]),
    ("train_data_dir: nowhere\nbase_model: toy_base\n", ["train_data_dir 'nowhere'", "not a folder"]),
    ("train_data_dir: pictures\nbase_model: some/model-v1-5\n", ["base_model 'some/model-v1-5'", "nothing is downloaded", "toy_base"]),
    ("train_data_dir: pictures\nbase_model: captions\n", ["base_model 'captions'", "unet/config.json"]),
    ("train_data_dir: pictures\nbase_model: old.ckpt\n", ["base_model 'old.ckpt'", ".safetensors"]),
    ("train_data_dir: pictures\nbase_model: cut.safetensors\n", ["base_model 'cut.safetensors'", "copy it again"]),
    ("train_data_dir: pictures\nbase_model: junk.safetensors\n", ["base_model 'junk.safetensors'", "copy it again"]),
    ("train_data_dir: pictures\nbase_model: flux.safetensors\n", ["base_model 'flux.safetensors'", "SD1.5, SD2.x and SDXL"]),
])
def test_what_is_missing_is_named(folder, head, parts):
    (folder / "old.ckpt").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(checkpoint(768)[:40])
    (folder / "junk.safetensors").write_bytes(b"\xff" * 100)
    (folder / "flux.safetensors").write_bytes(checkpoint(3072, "double_blocks.0.img_attn.qkv.weight"))
    message = error_of(folder, "", head=head)
    assert all(part in message for part in parts), message


def test_files_from_other_systems(folder):
    text = "train_data_dir: pictures\nbase_model: toy_base\ntrigger_word: 织机\n"
    (folder / "bom.yaml").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_job(folder / "bom.yaml").dataset["trigger_word"] == "织机"
    (folder / "gbk.yaml").write_bytes(text.encode("gbk"))
    with pytest.raises(LoomError, match="not UTF-8.*save it as UTF-8"):
        load_job(folder / "gbk.yaml")
    with pytest.raises(LoomError, match="cannot be read"):
        load_job(folder / "absent.yaml")


def test_only_plain_data_is_read(folder):
    assert "not YAML" in error_of(folder, "seed: !!python/object/apply:os.getcwd []\n")


def test_a_saved_nested_config_is_refused_by_name(folder):
    message = error_of(folder, yaml.safe_dump({"adapter": {"rank": 4}}))
    assert "'adapter'" in message and "unknown" in message


@pytest.mark.parametrize("readme, pictures", [("README.md", "pictures"), ("README.zh-CN.md", "图片")])
def test_the_readmes_example_is_right_and_they_name_every_key(folder, readme, pictures):
    text = (Path(__file__).resolve().parents[1] / readme).read_text(encoding="utf-8")
    (folder / pictures).mkdir(exist_ok=True)
    (folder / "metadata.csv").write_text("filename,prompt\n", encoding="utf-8")
    (folder / "v1-5-pruned.safetensors").write_bytes(checkpoint(768))
    assert job_of(folder, re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1], head="").preset == "person"
    assert [key.name for key in KEYS if not re.search(rf"\b{key.name}\b", text)] == []
    assert all(name in text for name in presets.names())


def test_every_setting_has_a_key() -> None:
    settings = {f"{part}.{name}" for part, values in LoomConfig().to_dict().items() for name in values} - {
        "adapter.targets",  # lora_target_modules sets both
        "train.pictures"}  # a preset's own
    assert settings <= {key.where for key in KEYS}
