"""The server's texts in the page's language: each has its Chinese, and the page finds it. The matching runs in Node, as web/js/messages.mjs is."""
from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lora_loom.trainer import config as settings
from lora_loom.trainer import job
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data import report
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.estimate import MIB, Memory
from lora_loom.trainer.fitting import Fitting
from lora_loom.trainer.names import check_name

ROOT = Path(job.__file__).resolve().parents[1]
TABLE = json.loads((ROOT / "web" / "js" / "messages.zh.json").read_text(encoding="utf-8"))
NAMES = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
GRAMMAR = {"", "s", "is", "are", "find", "finds", "it", "them", "has", "have", "has a caption", "have captions"}  # words that Chinese does without


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("loom_messages", ROOT / "tools" / "messages.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return {"texts": tool.found(), "others": tool.OTHERS, "every": {text for path in tool.modules() for text in tool.messages(path)}, "tool": tool}


def holes(template: str) -> list[str]:
    return [match[1] for match in HOLE.finditer(template) if match[1] is not None]


def test_every_text_has_its_chinese_and_every_chinese_its_text(found):
    missing = {text: place for text, place in found["texts"].items() if text not in TABLE}
    assert not missing, "run python tools/messages.py, and say these in Chinese in web/js/messages.zh.json"
    assert not set(TABLE) - set(found["texts"]), "no source says these any more: take them out of web/js/messages.zh.json"
    assert not found["others"] - found["every"], "tools/messages.py excepts what nobody says"
    assert len(TABLE) > 480


def test_texts_are_found_in_every_shape_that_sources_write_them_in(found, tmp_path):
    source = tmp_path / "one.py"
    source.write_text('''"""No message of a docstring."""
import logging
RULE = "takes a number of steps"
def one(n, why, name):
    """Nor of this one."""
    logging.info("nor of a log line")
    raise LoomError(f"{name!r} has {n:,} picture{'s' * (n != 1)}, {'too few' if n else 'none at all'}: " f"{RULE}" + (f" ({why} it was)" if why else ""))
''', encoding="utf-8")
    texts = found["tool"].messages(source)
    assert set(texts) == {"takes a number of steps", "{!r} has {:,} picture{|s}, {too few|none at all}: {}{}", " ({} it was)"}


def test_holes_of_a_text_and_of_its_chinese_agree():
    for english, chinese in TABLE.items():
        given, used = holes(english), {}
        for hole in holes(chinese):
            for number in re.findall(r"(?:^|\.)(\d+)", hole.split(":")[0]):
                used[int(number)] = hole
        for number, kind in enumerate(given, 1):
            choices = kind.split("|")
            if len(choices) > 1 and number not in used:
                assert {choice.strip() for choice in choices} <= GRAMMAR, (english, kind)
            elif ":" in used.get(number, ""):
                assert len(choices) == len(used[number].split(":", 1)[1].split("|")), (english, used[number])
            elif number not in used:  # only what the name that the canvas shows says already
                assert "." in str(list(used.values())), (english, number)
        assert all(0 < number <= len(given) for number in used), english
        assert CHINESE.search(chinese) or english in {"a PDF", "min-SNR gamma {:g}", "p2 gamma {:g}"}, english


def test_every_name_in_a_chinese_text_is_on_the_canvas():
    nodes = itertools.chain.from_iterable((hole for hole in holes(chinese) if hole[:1].isupper()) for chinese in TABLE.values())
    for node, _, name in {hole.partition(".") for hole in nodes}:
        assert node in NAMES, node
        assert not name or name.isdigit() or name in NAMES[node]["inputs"], f"{node}.{name}"


# ---------------------------------------------------------------- the page's matching

RUN = """
import { translator } from %s;
import { readFileSync } from "node:fs";
const { table, names, texts } = JSON.parse(readFileSync(0, "utf8")), translate = translator(table, names);
process.stdout.write(JSON.stringify(texts.map(translate)));
"""


def translated(*texts: str) -> list[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js, for the page's own code")
    program = RUN % json.dumps((ROOT / "web" / "js" / "messages.mjs").as_uri())
    given = json.dumps({"table": TABLE, "names": NAMES, "texts": texts})
    ended = subprocess.run([node, "--input-type=module", "-e", program], input=given, capture_output=True, encoding="utf-8", timeout=60, check=True)
    return json.loads(ended.stdout)


def error(action, *values) -> str:
    with pytest.raises(LoomError) as caught:
        action(*values)
    return str(caught.value)


def test_errors_of_settings_name_the_widgets_as_they_are_labelled(tmp_path):
    config = LoomConfig()
    rank, alg, steps, name, folder, pattern = translated(
        error(lambda: config.replace(adapter={"rank": 0}).validate()), error(lambda: config.replace(adapter={"algorithm": "lorra"}).validate()),
        error(lambda: config.replace(train={"steps": 0, "epochs": 0}).validate()), error(check_name, "a/b"),
        error(read_dataset, tmp_path / "the file"), error(settings.parse_target, "attn2 rnk=3"))
    assert rank == "“LoRA 设置”的“秩 (rank)”为 0，小于 1：取值范围是 1 到 512"
    assert alg.startswith("“LoRA 设置”的“算法”的 'lorra' 无法识别：可选 lora, dora") and alg.endswith("；是否想写 'lora'？")
    assert steps == "步数和轮数都是 0，没有可训练的：请把“训练 LoRA”的“步数”设为 1 或更大，或设置轮数"
    assert name.startswith("名称 'a/b' 含有 '/'：“训练 LoRA”的“名称”应是普通文件名") and name.endswith("；请去掉")
    assert folder == f"文件夹 {str(tmp_path / 'the file')!r} 不存在：请选择图片文件夹"
    assert pattern.startswith("目标层 'attn2' 后面有 'rnk=3'：")


@pytest.fixture(scope="module")
def stars():
    return read_dataset(ROOT / "assets" / "lora_loom_stars", resolution=64, min_size=0)


def test_plan_and_reports_are_whole_in_chinese(stars):
    config = LoomConfig().replace(train={"steps": 300, "epochs": 2, "validation_steps": 50, "validation_split": 0.2}, optim={"warmup_steps": 400})
    plan = job.plan(FAMILIES["sd15"], stars, config)
    memory = str(Memory(1600 * MIB, 12 * MIB, 24 * MIB, 1500 * MIB, 9000 * MIB))
    changes = Fitting(True, 2).difference(Fitting())
    remarks = "\n".join(map(str, report.about_training(stars, report.Training(batch_size=64, pictures=(40, 80)))))
    lines = translated(plan, memory, changes, remarks, stars.report())
    assert lines[0].splitlines()[2].startswith("300 步，每步 1 x 1 张图片") and "预热 400 步不短于整个训练的 300 步" in lines[0]
    assert lines[1] == "约 3,136 MiB（基础模型 1,600，LoRA 12，优化器 24，每步 1,500；后两项可用：9,000）"
    assert lines[2] == "所有块使用梯度检查点、每个小批次分成 2 份"
    assert lines[3].startswith("警告：20 张图片偏少：该预设适合 40 到 80 张") or "警告：20 张图片偏少" in lines[3]
    left = re.findall("[A-Za-z]{4,}", " ".join(lines))
    assert set(left) <= {"Stable", "Diffusion", "lora", "alpha", "rank", "attention", "adamw", "cosine", "constant", "with", "warmup", "LoRA", "metadata",
                         "lora_loom_stars", "loom", "stars", "huber", "linear", "none", "star"}, left


JOINED = {
    "Finished at step 10 of 10, smoothed loss 0.1234. Saved as my. file_2.safetensors. Best validation loss 0.1200, kept in the run's folder":
        "已完成：第 10 步，共 10 步，平滑损失 0.1234。已保存为 my. file_2.safetensors。最佳验证损失 0.1200，保存在训练的文件夹中",
    "4 variants of each picture, flip 0.5, crop 0.1": "每张图片 4 个变体，镜像 0.5、裁剪 0.1",
    "resume 'a' with other settings (rank is 8, was 16; alpha is 4, was 8): a run goes on as it began; set them back, or start a new run":
        "继续训练 'a' 时设置不同（rank 现在是 8，原来是 16；alpha 现在是 4，原来是 8）：训练要按开始时的设置继续；请改回原样，或开始新的训练",
    "folder 'x' holds no pictures, only 3 other files (y: a link that leads nowhere): put pictures into it (png jpg)":
        "文件夹 'x' 中没有图片，只有 3 个其他文件（y：链接的目标不存在）：请放入图片（png jpg）",
    "there more than once, byte for byte: a.png (as b.png), c.png (as d.png)": "重复的文件（完全相同）：a.png（与 b.png 相同）、c.png（与 d.png 相同）",
    "a program: pictures, .txt, .caption, metadata.csv and metadata.jsonl are taken": "程序：只收图片、.txt、.caption、metadata.csv 和 metadata.jsonl",
    "captioning pictures 3/20": "正在打标 3/20",
    "saved 3 captions in stars/metadata.csv; 1 emptied\nwarning: LoadDataset reads other captions for as x.png and 4 more: caption_source 'auto' takes them from elsewhere":
        "已在 stars/metadata.csv 中保存 3 条标注；清空 1 条\n警告：“加载数据集”读取的标注与这里的不同（as x.png 等，另有 4 个）：标注来源 'auto' 从别处读取",
    "Error: clip is empty: PreviewSample needs it; the checkpoint may lack one, connect CLIPLoader or VAELoader":
        "错误：CLIP 为空：“预览采样”需要它；底模文件里可能没有，请连接 CLIPLoader 或 VAELoader",
    "sampling before (prompts: 2)": "正在采样训练前（提示词：2 条）",
}


def test_what_is_joined_of_several_messages_is_translated_in_its_parts():
    assert dict(zip(JOINED, translated(*JOINED))) == JOINED


def test_a_message_of_many_parts_does_not_hold_the_page_up():
    """Each of its parts could begin or end in many places: translated() waits a minute, and every one read anew would take hours."""
    names = [f"p {i}.png" for i in range(40)]
    listed, = translated(f"none of the 40 pictures in 'x' can be read ({'; '.join(f'{name}: broken (cut off (3: bytes))' for name in names)}): replace them by intact files")
    assert listed == f"'x' 中的 40 张图片都无法读取（{'；'.join(f'{name}：已损坏（cut off (3: bytes)）' for name in names)}）：请换成完好的文件"


def test_what_is_no_text_of_ours_stays_as_it_is():
    foreign = ["RuntimeError: CUDA error: an illegal memory access was encountered", "none", "已经是中文：rank 0", "", "a photo of a cat, like x",
               "x: " * 300 + "is y. z " * 40, "line one\nline two: the end", "Expected all tensors to be on the same device. Got cpu and cuda:0"]
    assert translated(*foreign) == foreign


TYPED = "the file. as {1t} and none: a script, 'x' is empty; see 3/20"  # words of ours in a name that a user has typed


def filled(template: str, value: str) -> tuple[str, list[str]]:
    """(the text, what stands in its quoted holes)."""
    numbers, quoted = itertools.count(3), []

    def hole(match: re.Match[str]) -> str:
        kind = match[1]
        if kind is None:
            return match[0][0]
        if kind == "!r":
            quoted.append(repr(value))
            return quoted[-1]
        return kind.split("|")[0] if "|" in kind else f"{next(numbers)}{'%' * kind.endswith('%')}" if kind.startswith(":") else f"v{next(numbers)}"

    return HOLE.sub(hole, template), quoted


@pytest.mark.parametrize("value", ["cat.png", TYPED])
def test_every_text_is_recognised_and_what_a_user_typed_is_never_changed(value):
    texts = [filled(template, value) for template in TABLE]
    for (text, quoted), said, template in zip(texts, translated(*(text for text, _ in texts)), TABLE):
        assert said != text or template == "a PDF", text
        assert all(one in said for one in quoted), (text, said)
