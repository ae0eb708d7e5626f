"""Stages: made once, remade when anything they depend on changed, damaged, or was interrupted."""

import errno
import multiprocessing
import time

import pytest

from course_lib import CourseError
from course_lib.core.cache import find_damage, stage


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    return tmp_path


class Maker:
    def __init__(self, text="weights"):
        self.calls, self.text = 0, text

    def __call__(self, folder):
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(self.text, encoding="utf-8")


def test_made_once_and_again_when_config_or_input_changes(tmp_path):
    make, model = Maker(), tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1", encoding="utf-8")
    first = stage("sft", {"lr": 1}, make, inputs=[model])
    assert stage("sft", {"lr": 1}, make, inputs=[model]) == first and make.calls == 1
    assert stage("sft", {"lr": 2}, make, inputs=[model]) != first
    (model / "weights").write_text("2", encoding="utf-8")
    assert stage("sft", {"lr": 1}, make, inputs=[model]) != first
    assert make.calls == 3


def test_source_of_the_code_is_part_of_the_key():
    def one():
        return 1

    def two():
        return 2

    assert stage("x", {}, Maker(), code=[one]) != stage("x", {}, Maker(), code=[two])


@pytest.mark.parametrize("harm", ["change", "delete", "manifest"])
def test_damaged_entry_is_noticed_and_made_again(harm, capsys):
    make = Maker()
    entry = stage("sft", {}, make)
    file = entry / "sub" / "a.txt"
    if harm == "change":
        file.write_text("weightz", encoding="utf-8")
    elif harm == "delete":
        file.unlink()
    else:
        (entry / "manifest.json").write_text("{", encoding="utf-8")
    assert find_damage(entry)
    assert stage("sft", {}, make) == entry
    assert make.calls == 2 and file.read_text(encoding="utf-8") == "weights"
    assert "damaged" in capsys.readouterr().err
    assert find_damage(entry) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_stage_leaves_nothing_and_can_be_made(error, build):
    def broken(folder):
        (folder / "half").write_text("x", encoding="utf-8")
        raise error

    with pytest.raises(error):
        stage("sft", {}, broken)
    assert [p for p in (build / "cache").iterdir() if p.is_dir()] == []
    assert (stage("sft", {}, Maker()) / "sub" / "a.txt").exists()


def test_full_disk_is_one_sentence():
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CourseError, match=r"disk is full.*course clean"):
        stage("sft", {}, full)


def _slow(folder):
    (folder / "log").write_text("made", encoding="utf-8")
    with (folder.parent / "calls").open("a", encoding="utf-8") as calls:
        calls.write("x")
    time.sleep(0.5)


def _stage_slow():
    stage("slow", {}, _slow)


def test_two_processes_make_one_entry_once(build):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_stage_slow) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (build / "cache" / "calls").read_text(encoding="utf-8") == "x"
