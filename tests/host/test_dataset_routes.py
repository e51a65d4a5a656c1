"""The routes of upload, listing, thumbnails and saved captions in a real ComfyUI: what they give, and what they refuse."""
from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")


workflows = pages.workflows


@pytest.fixture(scope="module")
def comfy(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("datasets") / "基 base"
    with host.Comfy(comfy_path, base, options=("--enable-cors-header",)) as server:  # with which ComfyUI itself refuses nobody
        (base / "outside").mkdir()
        Image.fromarray(data.coffee()).save(base / "outside" / "secret.png")
        yield server


def png(number: int = 0, image=None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(data.chelsea() if image is None else image).resize((90, 60 + number)).save(out, "PNG")
    return out.getvalue()


def ask(comfy, route: str, body: bytes | dict | None = None, headers: dict | None = None, **query):
    """(status, answer: JSON or bytes, headers)"""
    if isinstance(body, dict):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
    url = f"{comfy.url}/lora_loom/dataset{route}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, content, got = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, content, got = error.code, error.read(), error.headers
    return status, json.loads(content) if (got.get("Content-Type") or "").startswith("application/json") else content, got


def multipart(files: list[tuple[str, bytes]]) -> tuple[bytes, dict]:
    body = b"".join(b'--loom\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n' % (name.encode(), content)
                    for name, content in files)
    return body + b"--loom--\r\n", {"Content-Type": "multipart/form-data; boundary=loom"}


def upload(comfy, files: dict[str, bytes] | list, name: str, headers: dict | None = None):
    body, own = multipart(list(files.items()) if isinstance(files, dict) else files)
    return ask(comfy, "/upload", body, {**own, **(headers or {})}, name=name)


def put(comfy, name: str, count: int = 3) -> Path:
    folder = comfy.base / "input" / name
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number % 40))
        (folder / f"{number}.txt").write_text(f"caption {number}")
    return folder


def tree(comfy) -> set[str]:
    """Every file and folder now, among them a folder that the server is about to clear away (which `Path.glob` would stumble over)."""
    walked = (walk for folder in ("input", "outside", "output", "custom_nodes", "models") for walk in os.walk(comfy.base / folder))
    return {(Path(at) / name).relative_to(comfy.base).as_posix() for at, folders, files in walked for name in (*folders, *files)}


def test_an_upload_becomes_a_folder_that_the_node_lists(comfy):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("b/猫.png", png(1))
        archive.writestr("../evil.png", png(2))
    before = tree(comfy)
    status, answer, _ = upload(comfy, {"a.png": png(), "a.txt": "一只猫".encode(), "sub/c.png": png(3), "all.zip": inner.getvalue(), "x.html": b"<html>"}, "上传 1")
    assert status == 200 and answer["folder"] == "上传 1" and answer["files"] == 4
    assert {name: why.split(":")[0] for name, why in answer["refused"]} == {"../evil.png": "its name leads out of the folder", "x.html": "a web page"}
    assert tree(comfy) - before == {f"input/上传 1{path}" for path in ("", "/a.png", "/a.txt", "/b", "/b/猫.png", "/sub", "/sub/c.png")}
    assert "上传 1" in json.dumps(comfy.get("/object_info/LoadDataset"), ensure_ascii=False)
    assert upload(comfy, {"a.png": png()}, "上传 1")[1]["folder"] == "上传 1_2"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "C:x", "con", "x\0", ".x"])
def test_bad_names_of_folders(comfy, name):
    before = tree(comfy)
    status, answer, _ = upload(comfy, {"a.png": png()}, name)
    assert status == 400 and "name" in answer["error"] and tree(comfy) == before


def test_uploads_that_cannot_be(comfy):
    before = tree(comfy)
    status, answer, _ = upload(comfy, {"a.html": b"<html>", "../b.png": png()}, "nothing")
    assert status == 400 and "no folder was made" in answer["error"] and len(answer["refused"]) == 2
    assert ask(comfy, "/upload", b"{}", {"Content-Type": "application/json"}, name="x")[0] == 400
    body, headers = multipart([("a.png", png())])
    assert ask(comfy, "/upload", body[:200], headers, name="x")[0] == 400  # cut off
    assert ask(comfy, "/upload", b"", headers, name="x")[0] == 400
    assert ask(comfy, "/upload", b"--other\r\n\r\n", headers, name="x")[0] == 400
    assert upload(comfy, {}, "x")[0] == 400
    with socket.create_connection(("127.0.0.1", comfy.port)) as wire:  # says that it is too large before it sends
        wire.sendall(b"POST /lora_loom/dataset/upload?name=x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=loom\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 400 " in wire.recv(200)
    with socket.create_connection(("127.0.0.1", comfy.port)) as wire:  # goes away in the middle
        wire.sendall(b"POST /lora_loom/dataset/upload?name=gone HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=loom\r\nContent-Length: 9999999\r\n\r\n" + body[:300])
        time.sleep(0.5)
    for _ in range(40):
        if tree(comfy) == before:
            break
        time.sleep(0.25)
    assert tree(comfy) == before


ROUTES = [("/upload", b"x"), ("", None), ("/thumbnail", None), ("/captions", b"{}"), ("/made", None)]


@pytest.mark.parametrize("headers,allowed", [
    ({"Sec-Fetch-Site": "cross-site"}, False), ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9999"}, False), ({"Origin": "http://evil.example"}, False),
    ({"Origin": "null"}, False), ({"Sec-Fetch-Site": "same-origin"}, True), ({"Origin": "SELF"}, True), ({}, True), ({"Origin": "https://my.proxy", "X-Forwarded-Host": "my.proxy"}, True)])
def test_other_sites_are_refused(comfy, headers, allowed):
    headers = {name: value.replace("SELF", comfy.url) for name, value in headers.items()}
    for route, body in ROUTES:
        status, answer, _ = ask(comfy, route, body, headers, folder="nowhere", name="x", size=192)
        assert (status == 403) != allowed and status in (400, 403, 200), (route, status, answer)


def test_sizes_are_upright(comfy):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60)).save(put(comfy, "turned", 1) / "photo.jpg", exif=exif)
    assert [(p["width"], p["height"]) for p in ask(comfy, "", folder="turned")[1]["pictures"]] == [(90, 60), (60, 90)]


def test_listing_in_pages(comfy):
    folder = put(comfy, "paged", 25)
    status, first, _ = ask(comfy, "", folder="paged", limit=10)
    assert status == 200 and first["total"] == 25 and first["save_as"] == "sidecar .txt"
    assert first["pictures"][2] == {"name": "2.png", "caption": "caption 2", "source": "sidecar", "width": 90, "height": 62, "bytes": (folder / "2.png").stat().st_size,
                                    "version": f"{(folder / '2.png').stat().st_mtime_ns}-{(folder / '2.png').stat().st_size}"}
    names = [p["name"] for at in (0, 10, 20) for p in ask(comfy, "", folder="paged", limit=10, offset=at, fingerprint=first["fingerprint"])[1]["pictures"]]
    assert names == [f"{n}.png" for n in range(25)]  # 2 before 10
    (folder / "2.txt").write_text("other")
    # all pages are of one moment: the one that is remembered
    assert ask(comfy, "", folder="paged", offset=0, limit=3, fingerprint=first["fingerprint"])[1]["pictures"][2]["caption"] == "caption 2"
    status, again, _ = ask(comfy, "", folder="paged", offset=0, limit=3)
    assert again["pictures"][2]["caption"] == "other" and again["fingerprint"] != first["fingerprint"]
    status, answer, _ = ask(comfy, "", folder="paged", offset=10, fingerprint=first["fingerprint"])
    assert status == 409 and answer["changed"] and "list it again" in answer["error"]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"offset": -1}, {"offset": "１"}, {"source": "anything"}, {"folder": "no such"}, {"folder": ""}):
        status, answer, _ = ask(comfy, "", **{"folder": "paged", **wrong})
        assert status == 400 and answer["error"], wrong
    (folder / "metadata.csv").write_text("nonsense\n")
    status, answer, _ = ask(comfy, "", folder="paged")
    assert status == 400 and "metadata.csv, line 1" in answer["error"]


OUT = ["../outside", "..", ".", "/etc", "..\\outside", "paths/../../outside", "paths/..", "linked", "C:\\", "a\0b", ".git", "datasets/../../outside", "%2e%2e/outside", "//etc"]


def test_nothing_outside_the_folders_is_served(comfy):
    folder = put(comfy, "paths", 1)
    secret = comfy.base / "outside" / "secret.png"
    os.symlink(comfy.base / "outside", comfy.base / "input" / "linked")
    os.symlink(secret, folder / "link.png")
    os.symlink(comfy.base / "outside", folder / "sub")
    (comfy.base / "input" / "loose.png").write_bytes(png())
    (folder / ".hidden.png").write_bytes(png())
    try:
        for name in OUT:
            for route, query in (("", {}), ("/thumbnail", {"name": "secret.png", "size": 192}), ("/made", {})):
                status, answer, _ = ask(comfy, route, folder=name, **query)
                assert status == 400 and "error" in answer and "secret" not in json.dumps(answer.get("pictures", "")), (route, name, answer)
            status, answer, _ = ask(comfy, "/captions", {"folder": name, "fingerprint": "", "save_as": "metadata.csv", "captions": {"secret.png": "x"}})
            assert status == 400, name
        for name in ["link.png", "sub/secret.png", "../loose.png", "../../outside/secret.png", str(secret), "..\\loose.png", "0.txt", ".hidden.png", "", "0.png/", "./0.png", "no.png", "0.png\0", "sub"]:
            status, answer, _ = ask(comfy, "/thumbnail", folder="paths", name=name, size=192)
            assert status == 400 and "is not in paths" in answer["error"], (name, answer)
        assert [p["name"] for p in ask(comfy, "", folder="paths")[1]["pictures"]] == ["0.png"]
        assert {p.name for p in (comfy.base / "outside").iterdir()} == {"secret.png"}
    finally:
        (comfy.base / "input" / "linked").unlink()
        (comfy.base / "input" / "loose.png").unlink()


def test_thumbnails_are_small_kept_and_told_apart(comfy):
    folder = put(comfy, "thumbs", 2)
    Image.fromarray(data.astronaut()).save(folder / "写真.jpg")
    status, small, headers = ask(comfy, "/thumbnail", folder="thumbs", name="写真.jpg", size=192, v=1)
    assert status == 200 and headers["Content-Type"] == "image/webp" and "immutable" in headers["Cache-Control"] and headers["X-Content-Type-Options"] == "nosniff"
    assert max(Image.open(io.BytesIO(small)).size) == 192 and len(small) < 30_000
    assert ask(comfy, "/thumbnail", folder="thumbs", name="写真.jpg", size=192)[2]["Cache-Control"] == "private, no-cache"
    kept = comfy.base / "temp" / "lora_loom_thumbnails"
    assert len(list(kept.iterdir())) == 1
    assert ask(comfy, "/thumbnail", headers={"If-None-Match": headers["ETag"]}, folder="thumbs", name="写真.jpg", size=192)[0] == 304
    Image.fromarray(data.coffee()).save(folder / "写真.jpg")
    status, other, new = ask(comfy, "/thumbnail", headers={"If-None-Match": headers["ETag"]}, folder="thumbs", name="写真.jpg", size=192)
    assert status == 200 and other != small and new["ETag"] != headers["ETag"]
    for wrong in ({"size": 200}, {"size": "x"}, {"size": 0}, {"size": "-1"}, {"name": "1.txt"}):
        assert ask(comfy, "/thumbnail", **{"folder": "thumbs", "name": "0.png", "size": 192, **wrong})[0] == 400
    (folder / "broken.png").write_bytes(b"no picture")
    status, answer, _ = ask(comfy, "/thumbnail", folder="thumbs", name="broken.png", size=192)
    assert status == 400 and "broken.png" in answer["error"]


def test_the_server_answers_while_thumbnails_are_made(comfy):
    folder = comfy.base / "input" / "large"
    folder.mkdir()
    for number in range(6):
        Image.effect_noise((4000, 3000 + number), 50).save(folder / f"{number}.png")
    threads = [threading.Thread(target=ask, args=(comfy, "/thumbnail"), kwargs={"folder": "large", "name": f"{n}.png", "size": 768}) for n in range(6)]
    for thread in threads:
        thread.start()
    waits = []
    while any(thread.is_alive() for thread in threads):
        clock = time.perf_counter()
        comfy.get("/queue")
        waits.append(time.perf_counter() - clock)
    assert len(waits) > 3 and sorted(waits)[len(waits) // 2] < 1.0, waits  # seconds; decoding one takes as long, and there are two cores


def test_saving_refuses_what_it_has_not_shown(comfy):
    folder = put(comfy, "saving", 3)
    listing = ask(comfy, "", folder="saving")[1]
    mine = {"folder": "saving", "source": "auto", "fingerprint": listing["fingerprint"], "save_as": "metadata.csv", "captions": {"1.png": "一, two"}}
    status, answer, _ = ask(comfy, "/captions", mine)
    assert status == 200 and "saved 1 caption in saving/metadata.csv" in answer["report"]
    assert (folder / "metadata.csv").read_text("utf-8") == 'filename,prompt\n1.png,"一, two"\n'
    status, refused, _ = ask(comfy, "/captions", {**mine, "captions": {"0.png": "x"}})  # with the fingerprint of before
    assert status == 409 and refused["changed"] is True and "nothing was saved" in refused["error"]
    assert ask(comfy, "/captions", {**mine, "fingerprint": answer["fingerprint"], "captions": {"0.png": "x"}})[0] == 200  # what the last answer said is enough
    assert (folder / "metadata.csv.bak").read_text("utf-8").endswith('"一, two"\n')
    now = ask(comfy, "", folder="saving")[1]["fingerprint"]
    for wrong in ({"captions": {"9.png": "x"}}, {"captions": {"../x.png": "x"}}, {"captions": ["x"]}, {"captions": {"0.png": 3}}, {"save_as": "nothing"}, {"save_as": "../x"},
                  {"source": "x"}, {"folder": 3}, {"captions": {"0.png": "x" * 30_000}}):
        status, answer, _ = ask(comfy, "/captions", {**mine, "fingerprint": now, **wrong})
        assert status == 400 and answer["error"], wrong
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        assert ask(comfy, "/captions", body)[0] == 400
    assert ask(comfy, "", folder="saving")[1]["fingerprint"] == now


def load(folder: str) -> dict:
    node = workflows.node
    return {"1": node("LoadDataset", folder=folder, resolution=64, min_size=32, caption_source="auto", trigger_word="", repeats=1, flip=False, buckets=True),
            "2": node("PreviewAny", source=["1", 2])}


def test_saved_captions_run_the_graph_again(comfy):
    put(comfy, "again", 3)
    first = comfy.run(load("again"))
    assert first.ending == "execution_success" and "1" in first.executed, first.error
    assert comfy.run(load("again")).executed == []
    listing = ask(comfy, "", folder="again")[1]
    for save_as in ("sidecar .txt", "metadata.csv"):
        answer = ask(comfy, "/captions", {"folder": "again", "fingerprint": listing["fingerprint"], "save_as": save_as, "captions": {"0.png": save_as}})[1]
        listing = {"fingerprint": answer["fingerprint"]}
        assert "1" in comfy.run(load("again")).executed and comfy.run(load("again")).executed == []


def test_what_auto_caption_made_is_offered_until_the_folder_changes(comfy):
    host.by_path("loom_test_captioners", host.PACK / "tests" / "test_captioners.py").write_model(comfy.base / "models" / "open_clip" / "tiny")
    folder = put(comfy, "made", 2)
    node = workflows.node
    prompt = {**load("made"), "3": node("AutoCaption", dataset=["1", 0], method="clip_tags", model="tiny", labels="cat, dog", max_tags=1, prefix="made", suffix="", existing="replace",
                                        save_as="nothing"), "4": node("PreviewAny", source=["3", 2])}
    assert ask(comfy, "/made", folder="made")[1] == {"captions": {}}
    outcome = comfy.run(prompt)
    assert outcome.ending == "execution_success", outcome.error
    made = ask(comfy, "/made", folder="made")[1]["captions"]
    assert made.keys() == {"0.png", "1.png"} and all(caption.startswith("made, ") for caption in made.values())
    assert (folder / "0.txt").read_text() == "caption 0"  # nothing was written
    (folder / "0.txt").write_text("edited since")
    assert ask(comfy, "/made", folder="made")[1] == {"captions": {}}
