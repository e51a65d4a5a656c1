"""`lora-loom caption`: AutoCaption's methods and options without a canvas."""
from __future__ import annotations

import argparse
import dataclasses
import glob
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .devices import best_device
from .errors import LoomError

METHODS = ("clip_tags", "coca", "wd14", "vision_llm")  # those of captioners/methods.py, which imports torch
_KINDS = {"group_max_tags": (int, "N", "clip_tags: at most so many labels of a group (3)"),
          "group_threshold": (float, "P", "clip_tags: leave out labels less likely than this in their group (0.1)"),
          "instruction": (str, "TEXT", "vision_llm: what to write; a Florence-2 task such as <CAPTION>, or the beginning of BLIP's caption"),
          "max_length": (int, "N", "coca, vision_llm: at most so many tokens a caption (256)"),
          "general_threshold": (float, "P", "wd14: leave out general tags less likely than this (0.35)"),
          "character_threshold": (float, "P", "wd14: leave out characters less likely than this (0.85)")}


def add_parser(commands) -> None:
    caption = commands.add_parser("caption", help="write captions for a folder of pictures")
    caption.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder with the pictures")
    where = caption.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="FILE.csv", help="table to write; a plain metadata.csv goes into DIR (the default)")
    where.add_argument("--sidecar", action="store_true", help="write a .txt beside every picture instead")
    caption.add_argument("--method", choices=METHODS, default="clip_tags", help="labels that fit (clip_tags, the default), a sentence (coca), Danbooru tags "
                         "(wd14), a text as instructed (vision_llm: Florence-2, BLIP, Qwen-VL, LLaVA, JoyCaption)")
    caption.add_argument("--model", type=Path, required=True, metavar="MODELDIR", help="folder of the method's model, or its .safetensors or .onnx file")
    caption.add_argument("--labels", default="", metavar="FILE|TEXT", help="clip_tags: words to choose from, as a text file or with commas; @medium and the "
                         "like are lists that come along (all of them)")
    caption.add_argument("--max-tags", type=int, default=8, metavar="N", help="at most so many tags a picture, the likeliest (8)")
    for name, (kind, metavar, text) in _KINDS.items():
        caption.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    caption.add_argument("--no-character-tags", dest="character_tags", action="store_false", default=None, help="wd14: name no characters")
    caption.add_argument("--rating-tags", action="store_true", default=None, help="wd14: add the rating")
    caption.add_argument("--prefix", default="", help="put before every caption")
    caption.add_argument("--suffix", default="", help="put after every caption")
    caption.add_argument("--ban", default="", metavar="FILE|TEXT", help="tags to leave out, with commas; of texts, sentences with these words")
    caption.add_argument("--replace", default="", metavar="FILE|TEXT", help='replacements, one a line: "grey => gray"')
    caption.add_argument("--existing", choices=("keep", "replace", "append"), default="keep", help="what becomes of captions that exist (keep)")
    caption.add_argument("--device", default="auto", help="auto, cpu or cuda")
    caption.set_defaults(command=caption_command)


def caption_command(options: argparse.Namespace) -> int:
    from .captioners import methods
    from .captioners.captioning import caption_dataset, check_save_as
    from .captioners.labels import parse_groups
    from .captioners.options import CaptionOptions
    from .captioners.wording import Wording, parse_ban, parse_replace
    from .data.folder import read_dataset

    if not options.model.exists():  # before thousands of pictures are read
        wanted = methods.method(options.method)
        raise LoomError(f"model {str(options.model)!r} does not exist: {options.method} takes {wanted.wants}, from {wanted.source}")
    output = table_path(options.output, options.input)
    wording = Wording(options.prefix, options.suffix, options.existing, options.max_tags, parse_ban(file_or_text(options.ban)),
                      parse_replace(file_or_text(options.replace)))
    told = {name: getattr(options, name) for name in (*_KINDS, "character_tags", "rating_tags") if getattr(options, name) is not None}
    told = CaptionOptions(labels=file_or_text(options.labels), **told)
    parse_groups(told.labels)
    device = best_device(options.device)
    dataset = read_dataset(options.input, min_size=0)
    save_as = "sidecar .txt" if options.sidecar else "metadata.csv"
    check_save_as(dataset, save_as)
    print(f"{len(dataset.pictures)} pictures in {options.input}, {sum(bool(p.caption) for p in dataset.pictures)} have a caption", flush=True)
    print("".join(f"left out: {name}: {reason}\n" for name, reason in dataset.left_out), end="")
    show = lambda done, total: print(f"\rcaptioning {done}/{total}", end="\n" if done == total else "", flush=True)
    with (table_beside(dataset, None if options.sidecar else output) as target,
          methods.opened(lambda: methods.method(options.method).load(options.model, device, told)) as captioner):
        _, report = caption_dataset(target, captioner, wording, save_as=save_as, progress=show, whole=True)
    print("".join(f"{line}\n" for line in report.splitlines() if not line.startswith("saved")), end="")
    print(f"captions: {'a .txt beside every picture in ' + str(options.input) if options.sidecar else output}")
    return 0


def file_or_text(given: str) -> str:
    """What the text file of that name holds, or the words themselves."""
    from .data.captions import read_text

    if given and "\n" not in given and Path(given).suffix.lower() in (".txt", ".csv", ".md"):
        return read_text(Path(given), given)[0]
    return given


def table_path(output: Path | None, folder: Path) -> Path:
    """Where the table goes: a bare file name goes into the pictures' folder, for that is where training looks for it."""
    if output is None or output == Path("metadata.csv"):
        return folder / "metadata.csv"
    if output.suffix.lower() != ".csv":
        raise LoomError(f"--output {str(output)!r} does not end in .csv: give a path such as captions/metadata.csv, or --sidecar for .txt files")
    return output


@contextmanager
def table_beside(dataset, output: Path | None):
    """The dataset so changed that its metadata.csv is written to `output`, with the same care: whole, and old texts kept as .bak.

    caption_dataset saves in the dataset's own folder, also where it is interrupted; so that folder is a temporary one here.
    """
    if output is None or output.absolute() == (dataset.folder / "metadata.csv").absolute():
        yield dataset
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".lora_loom_") as name:
            folder = Path(name)
            for old in map(Path, glob.glob(glob.escape(str(output)) + "*")):
                if old.name == output.name or old.name.startswith(f"{output.name}.bak"):
                    shutil.copy2(old, folder / ("metadata.csv" + old.name[len(output.name):]))
            try:
                yield dataclasses.replace(dataset, folder=folder)
            finally:
                for made in sorted(folder.iterdir(), reverse=True):  # the .bak first, the table last
                    os.replace(made, output.with_name(output.name + made.name[len("metadata.csv"):]))
    except OSError as error:
        raise LoomError(f"--output {str(output)!r} cannot be written ({error.strerror or error}): give another path") from error
