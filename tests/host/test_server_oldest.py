"""A smaller round on the oldest ComfyUI that the pack takes: COMFYUI_OLDEST_PATH, with its frontend packages in COMFYUI_OLDEST_SITE."""
from __future__ import annotations

from pathlib import Path

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")

same = host.by_path("loom_test_server", Path(__file__).with_name("test_server.py"))


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory):
    path, site = host.oldest()
    with host.Comfy(path, same.prepare(tmp_path_factory.mktemp("oldest") / "base"), site) as server:
        yield server


def test_it_is_the_oldest(comfy):
    assert comfy.get("/system_stats")["system"]["comfyui_version"].startswith("0.3.")


def test_nodes_are_as_designed(comfy):
    same.check_nodes(comfy.get("/object_info"))


test_toy_workflow_runs_then_is_fully_cached = same.test_toy_workflow_runs_then_is_fully_cached
test_the_file_equals_the_live_model = same.test_the_file_equals_the_live_model
test_the_model_output_outlives_unloading = same.test_the_model_output_outlives_unloading
test_cancel_keeps_what_was_learned = same.test_cancel_keeps_what_was_learned
test_captions_by_a_local_model = same.test_captions_by_a_local_model


@pytest.mark.parametrize("case", ["name leads out", "only broken pictures", "no such folder", "not a number", "no vae"])
def test_bad_input_gives_one_message_and_a_good_run_follows(comfy, case):
    same.test_bad_input_gives_one_message_and_a_good_run_follows(comfy, case)
