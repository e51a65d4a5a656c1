"""Where captions come from: metadata.csv, metadata.jsonl, a text file beside the picture, or the folder's name.

Knows nothing of images: it takes an index {name relative to the folder: path} and gives text.
"""
from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import LoomError

SOURCES = ("auto", "metadata", "sidecar", "embedded", "folder name", "none")
METADATA = ("metadata.csv", "metadata.jsonl")
SIDECARS = (".txt", ".caption")
NAME_COLUMNS = ("filename", "file_name")
CAPTION_COLUMNS = ("prompt", "text", "caption")
MOST_REPEATS = 1000
COMMAS = "[,\uff0c\u3001]"  # what parts tags and words, Chinese commas too
_GB2312 = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xa3\xb0-\xf7][\xa1-\xfe])*")
KOHYA = re.compile(r"(\d+)_(.*\S.*)", re.DOTALL)  # kohya-ss/sd-scripts names folders <repeats>_<class words>


def listed(names: list[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def key(name: str) -> str:
    """A file name as it is compared: posix slashes and composed characters, for macOS stores an accent as a character of its own."""
    name = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    return name[2:] if name.startswith("./") else name


def read_text(path: Path, label: str) -> tuple[str, tuple[str, ...]]:
    """(text, warnings) of a UTF-8 file with or without a byte order mark; UTF-16 with one; else GBK (as GB18030) with a warning.

    Raises LoomError where the file cannot be read or is none of these.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LoomError(f"{label} cannot be read ({error.strerror}): check that it exists and may be read") from error
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if not _by_chance(raw, text):
            return text, ()
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("gb18030"), (f"{label} is not UTF-8; it was read as GBK. Save it as UTF-8 if its text looks wrong",)
    except UnicodeDecodeError:
        raise LoomError(f"{label} is neither UTF-8 nor GBK text: save it as UTF-8") from None


def _by_chance(raw: bytes, text: str) -> bool:
    """Whether `raw` is UTF-8 by chance alone: a few characters of GBK can be, each as one of two bytes. Then there are words of several
    scripts, and nothing but GB2312, the common part of GBK."""
    if any(c > "\u07ff" for c in text) or not _GB2312.fullmatch(raw):
        return False
    scripts = lambda word: {unicodedata.name(c, "?").split()[0] for c in word if unicodedata.category(c)[0] in "LM"} - {"COMBINING", "MODIFIER"}
    return any(len(scripts(word)) > 1 for word in re.findall(r"[^\x00-\x7f]+", unicodedata.normalize("NFKC", text)))


def _csv_rows(text: str, label: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, caption) of every row."""
    table = _csv_table(text, label)
    name_column, caption_column = caption_columns(next(table)[1])
    for line, row in table:
        yield line, row[name_column], row[caption_column]


def caption_columns(header: list[str]) -> tuple[int, int]:
    """Where a table has the pictures' names, and their captions; -1 where nowhere."""
    known = [cell.strip().lower() for cell in header]
    return tuple(next((known.index(column) for column in wanted if column in known), -1) for wanted in (NAME_COLUMNS, CAPTION_COLUMNS))


def _csv_table(text: str, label: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty; the first names the columns, in any order, with any others beside them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    columns, line = 0, 1
    try:
        for row in reader:
            # A quoted caption may span lines: a record is named by the line that it starts on.
            here, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            while len(row) > columns > 0 and not row[-1].strip():
                row.pop()  # spreadsheets pad rows with empty cells
            if not columns and min(caption_columns(row)) < 0:
                raise LoomError(f"{label}, line {here} is {','.join(row)[:80]!r}: the first line must name the columns, separated by "
                                "commas, for example filename,prompt")
            columns = columns or len(row)
            if len(row) != columns:
                raise LoomError(f"{label}, line {here} has {len(row)} fields, but the first line names {columns}: "
                                "put captions that hold commas in double quotes")
            yield here, row
    except csv.Error as error:
        raise LoomError(f"{label}, line {line} is no valid CSV ({error}): close every double quote, "
                        'and write "" for one inside a caption') from None
    if not columns:
        raise LoomError(f"{label}, line 1 is empty: the first line must name the columns, for example filename,prompt")


def _jsonl_rows(text: str, label: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, caption) of every line, as Hugging Face's ImageFolder writes them."""
    example = 'a line is like {"file_name": "cat.png", "text": "a cat"}'
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LoomError(f"{label}, line {number} is no valid JSON ({error}): {example}") from None
        if not isinstance(row, dict):
            raise LoomError(f"{label}, line {number} is {line.strip()[:80]!r}, not an object: {example}")
        name = next((row[c] for c in ("file_name", "filename") if c in row), None)
        caption_key = next((c for c in ("text", "prompt", "caption") if c in row), None)
        if not isinstance(name, str) or caption_key is None:
            missing = "text, prompt or caption" if isinstance(name, str) else "file_name (as text)"
            raise LoomError(f"{label}, line {number} has no {missing}: {example}")
        caption = "" if row[caption_key] is None else row[caption_key]
        if not isinstance(caption, str):
            raise LoomError(f"{label}, line {number} has the caption {caption!r}, which is not text: {example}")
        # JSON can spell half a surrogate pair, which no file can hold.
        yield number, name, caption.encode("utf-8", "replace").decode()


def read_metadata(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """({name: caption}, warnings) of a metadata.csv or metadata.jsonl. Raises LoomError naming the file and the line."""
    text, warnings = read_text(path, path.name)
    captions: dict[str, str] = {}
    twice = []
    for line, name, caption in (_jsonl_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(text, path.name):
        name = key(name)
        if not name:
            raise LoomError(f"{path.name}, line {line} names no picture: write the picture's file name in front of its caption")
        if name in captions:
            twice.append(name)
        captions[name] = caption.strip()
    if twice:
        warnings += (f"{path.name} names {len(twice)} pictures more than once, the last line counts: {listed(twice)}",)
    return captions, warnings


def read_table(path: Path) -> list[list[str]]:
    """A metadata.csv's rows with all their cells, the names of the columns first. Raises LoomError as `read_metadata`."""
    return [row for _, row in _csv_table(read_text(path, path.name)[0], path.name)]


def from_metadata(path: Path, names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Captions by the pictures' own names. Letters' case may differ, for the file may come from Windows; names without a picture are a warning."""
    rows, warnings = read_metadata(path)
    exact = {key(name): name for name in names}
    loose = {key(name).casefold(): name for name in names}
    found, missing = {}, []
    for name, caption in rows.items():
        picture = exact.get(name) or loose.get(name.casefold())
        if picture is None:
            missing.append(name)
        else:
            found[picture] = caption
    if missing:
        warnings += (f"{path.name} names {len(missing)} pictures that are not in the folder: {listed(missing)}",)
    return found, warnings


def from_sidecars(files: dict[str, Path], names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Captions from cat.txt, else cat.caption, beside cat.png; pictures without one are left out of the answer."""
    loose = {name.casefold(): path for name, path in files.items()}
    found, warnings = {}, []
    for name in names:
        for suffix in SIDECARS:
            beside = str(PurePosixPath(name).with_suffix(suffix))
            path = files.get(beside) or loose.get(beside.casefold())
            if path is not None:
                text, notes = read_text(path, beside)
                found[name] = text.strip()
                warnings += notes
                break
    if len(warnings) > 3:  # a folder of thousands is all GBK or none of it
        warnings = [f"{len(warnings)} caption files are not UTF-8; they were read as GBK. The first: {warnings[0]}"]
    return found, tuple(dict.fromkeys(warnings))


def from_folder_names(folder: Path, names: list[str], kohya_only: bool) -> dict[str, str]:
    """Captions from the nearest folder called 10_black_cat: "black cat". Without `kohya_only`, else from the picture's own folder."""
    found = {}
    for name in names:
        match, own = _kohya(folder, name)
        words = match.group(2) if match else "" if kohya_only else own
        if words.replace("_", " ").strip():
            found[name] = " ".join(words.replace("_", " ").split())
    return found


def folder_repeats(folder: Path, names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """({name: how often it counts}, warnings) by the nearest folder called 10_black_cat, as kohya's trainers read it."""
    found, odd = {}, {}
    for name in names:
        match, _ = _kohya(folder, name)
        count = int(match.group(1)[:9]) if match and len(match.group(1)) <= 9 else 0
        if 1 <= count <= MOST_REPEATS:
            found[name] = count
        elif match:
            odd[match.group(0)] = None
    return found, (f"the number in front of {listed(list(odd))} is not between 1 and {MOST_REPEATS} and gives no repeats",) if odd else ()


def _kohya(folder: Path, name: str) -> tuple[re.Match[str] | None, str]:
    """(the match of the nearest folder of that kind, the name of the picture's own folder)"""
    parents = [part for part in reversed(PurePosixPath(name).parts[:-1])] + [folder.name]
    return next((m for m in map(KOHYA.fullmatch, parents) if m), None), parents[0]
