"""Profiles: parameters are refused in one sentence before any work; pocket opens no connection."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys

import pytest
from tiny import tiny_folder

from course_lib import CourseError
from course_lib.core import offline
from course_lib.inputs import profiles
from course_lib.inputs.profiles import PROFILES, apply_overrides, load_profile
from course_lib.kit.course import committed_course, setup
from course_lib.kit.tables import side_by_side


@pytest.fixture(autouse=True)
def restore(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.delenv("COURSE_SET", raising=False)
    environment = dict(os.environ)
    yield
    offline.allow_network()
    os.environ.clear()
    os.environ.update(environment)


def model_folder(path, *, leave_out=""):
    shutil.copytree(tiny_folder("smollm2"), path, ignore=lambda *_: [leave_out])
    return path


def smollm2_folders(path, monkeypatch, in_hub_cache=()):
    """A models folder as `course model get smollm2` leaves it, and what the hub's cache has."""
    import huggingface_hub

    monkeypatch.setenv("COURSE_MODELS", str(path))
    (path / "smollm2").mkdir()
    for name in ("instruct", "without-template"):
        model_folder(path / "smollm2" / name)

    def found(name, *_):
        return "some/path" if name in in_hub_cache else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", found)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_pinned_and_whole(name):
    profile = load_profile(name)
    assert profile.name == name and {"base", "small", "large"} <= set(profile.models)
    for model in profile.models.values():
        if not model.startswith("pocket/"):
            assert re.fullmatch("[0-9a-f]{40}", profile.revisions[model]), model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"PROFILE": "pockets"}, "PROFILE is 'pockets'.*'pocket', 'laptop', 'gpu'.*mean 'pocket'"),
        ({"EFFORT": "lively"}, "EFFORT is 'lively'.*'live', 'full'"),
        ({"SEED": -1}, "SEED is -1.*0 to"),
        ({"SEED": "0"}, "SEED is '0'.*whole number"),
        ({"SEED": True}, "SEED is True.*whole number"),
        ({"examples": (9999, 8, 4096)}, "EXAMPLES is 9999.*8 to 4096"),
        ({"rate": ("high", 0.0, 1.0)}, "RATE is 'high'.*number"),
        ({"method": ("lara", ["lora", "full"])}, "METHOD is 'lara'.*'lora', 'full'.*mean 'lora'"),
        ({"base_model": "/no/such/folder"}, "base_model is '/no/such/folder', which is no folder"),
    ],
)
def test_wrong_parameters_are_one_sentence(arguments, words):
    with pytest.raises(CourseError, match=words) as error:
        setup(notebook="01", **arguments)
    assert "\n" not in str(error.value)


def test_course_knows_its_run():
    course = setup("pocket", "full", 7, notebook="01", examples=(16, 8, 4096), name="x")
    assert course.seeds == [7, 8, 9, 10, 11] and course.full and course.truth_known
    assert course.knobs == {"examples": 16, "name": "x"}
    assert course.parameters["EXAMPLES"] == 16
    assert setup(notebook="01").seeds == [0]


def test_seed_gives_the_same_bits():
    import torch

    drawn = []
    for seed in (3, 3, 4):
        setup(SEED=seed, notebook="01")
        drawn.append(torch.rand(5).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_model_folder_names_what_is_missing(part, tmp_path):
    folder = model_folder(tmp_path / "m", leave_out=part)
    with pytest.raises(CourseError, match=part.split(".")[-1]):
        apply_overrides(load_profile("pocket"), {"base_model": str(folder)})


def test_new_base_takes_the_old_ones_roles(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "m")
    monkeypatch.setenv("COURSE_SET", json.dumps({"base_model": str(folder)}))
    course = setup(notebook="01")
    assert course.model("base") == course.model("medium") == str(folder.resolve())
    assert course.model("small") == "pocket/s" and course.models("early") == []
    assert course.revision() is None and course.context == 256


def test_hub_ids_only_where_there_is_a_network():
    hub = {"base_model": "Qwen/Qwen3-4B-Base"}
    assert apply_overrides(load_profile("gpu"), hub).models["base"] == "Qwen/Qwen3-4B-Base"
    with pytest.raises(CourseError, match="takes no hub ids"):
        apply_overrides(load_profile("pocket"), hub)


def test_laptop_without_a_hub_has_one_model_in_two_roles(tmp_path, monkeypatch, capsys):
    smollm2_folders(tmp_path, monkeypatch)
    offline.block_network()  # what is here is found out without a connection
    profile = apply_overrides(load_profile("laptop"), {})
    assert {role: path.rpartition("smollm2")[2] for role, path in profile.models.items()} == {
        "base": os.sep + "without-template",
        "instruct": os.sep + "instruct",
        "medium": os.sep + "without-template",
    }
    monkeypatch.setattr(profiles, "available_memory_gb", lambda: 99.0)
    course = setup("laptop", notebook="01")
    assert "without the chat template" in capsys.readouterr().out
    assert course.models("large") == [] and course.models("medium") == [course.model("base")]
    assert "same weights" in str(side_by_side([{"base, raw": "so on"}]))
    assert "same weights" not in str(side_by_side([{"prompt": "so on"}]))
    setup(notebook="01")
    assert "same weights" not in str(side_by_side([{"base, raw": "so on"}]))


def test_laptop_takes_what_is_given_and_what_the_hubs_cache_has(tmp_path, monkeypatch):
    hub = load_profile("laptop").models
    smollm2_folders(tmp_path, monkeypatch, in_hub_cache=(hub["base"], hub["instruct"]))
    cached = apply_overrides(load_profile("laptop"), {})
    assert cached.models == {r: m for r, m in hub.items() if r != "large"}
    assert cached.stand_in == ""
    given = apply_overrides(load_profile("laptop"), {"large_model": hub["large"]})
    assert given.models == hub  # to be downloaded, as the user asks
    own = model_folder(tmp_path / "own")
    given = apply_overrides(load_profile("laptop"), {"base_model": str(own)})
    assert given.models["small"] == given.models["base"] == str(own.resolve())
    assert given.stand_in == ""


def test_laptop_without_any_model_says_how_to_get_one(tmp_path, monkeypatch):
    smollm2_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path / "none"))
    with pytest.raises(CourseError, match="run `course model get smollm2`") as error:
        setup("laptop", notebook="01")
    assert "\n" not in str(error.value)


def test_too_little_memory_names_the_setting_that_fits(tmp_path, monkeypatch):
    smollm2_folders(tmp_path, monkeypatch)
    monkeypatch.setattr(profiles, "available_memory_gb", lambda: 1.0)
    with pytest.raises(CourseError, match=r"needs 8 GB.*1\.0 GB are free; use PROFILE = 'pocket'"):
        setup("laptop", notebook="01")


def test_committed_results_are_shown_on_a_machine_that_can_train_nothing(monkeypatch):
    monkeypatch.setattr(profiles, "available_memory_gb", lambda: 0.1)
    course = committed_course("01", "full", {"examples": 16})
    assert course.replay and course.full and course.knobs == {"examples": 16}


def test_pocket_refuses_the_network_and_allows_its_own_ports():
    setup(notebook="01")
    attempts = [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=0.1),
        lambda: socket.getaddrinfo("huggingface.co", 443),
        lambda: socket.gethostbyname("huggingface.co"),
        lambda: socket.socket().connect(("192.0.2.1", 80)),
        lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    ]
    for attempt in attempts:
        with pytest.raises(CourseError, match="opens no network connection"):
            attempt()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
    socket.socketpair()[0].close()
    offline.allow_network()
    with pytest.raises(OSError):  # the real call again, to a port where nobody listens
        socket.create_connection(("127.0.0.1", 9), timeout=0.2)


def test_hub_client_is_refused_too():
    code = (
        "from course_lib.kit.course import setup; setup(notebook='01')\n"
        "from transformers import AutoConfig\n"
        "try:\n    AutoConfig.from_pretrained('Qwen/Qwen3-0.6B')\n"
        "except Exception as error:\n    print(type(error).__name__)"
    )
    environment = os.environ | {"HF_HOME": os.environ["COURSE_BUILD"]}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.strip() in ("OSError", "LocalEntryNotFoundError", "CourseError"), done


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_kept_for_the_next_tensor():
    code = """if True:
        import resource
        import numpy as np
        from course_lib.core.machine import keep_freed_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                blocks = [np.full(2**20, 1.0) for _ in range(8)]  # 8 MB each
                del blocks
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        usual = faults()
        keep_freed_memory()
        faults()
        print(usual, faults())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 10
