"""Stages: made once, and again when what they depend on has changed, be it settings or code."""

import errno
import json
import linecache
import multiprocessing
import time

import pytest
from safetensors import SafetensorError

from course_lib import CourseError
from course_lib.core import cache
from course_lib.core.cache import content_hash, find_damage, stage, used_code

RECIPES = "course_lib.experiments.recipes"


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    return tmp_path


def made(config=None, inputs=(), text="weights"):
    """The entry of a stage, and whether it was made just now."""
    with stage("sft", config or {}, inputs) as entry:
        if entry.new:
            (entry.folder / "sub").mkdir()
            (entry.folder / "sub" / "a.txt").write_text(text, encoding="utf-8")
    return entry.folder, entry.new


# ---- an entry ----------------------------------------------------------------------------------


def test_made_once_and_found_again(build):
    folder, new = made({"lr": 1}, [[{"prompt": "Why?"}]])
    assert new and folder.parent == build / "cache" and folder.name.startswith("sft-")
    assert made({"lr": 1}, [[{"prompt": "Why?"}]]) == (folder, False)
    assert (folder / "sub" / "a.txt").read_text(encoding="utf-8") == "weights"


def test_made_again_when_a_setting_or_an_input_changes(tmp_path):
    model, file = tmp_path / "model", tmp_path / "rows.json"
    model.mkdir()
    (model / "weights").write_text("1", encoding="utf-8")
    file.write_text("[]", encoding="utf-8")

    def folder(lr=1, rows=({"prompt": "Why?"},), hub="Qwen/Qwen3-0.6B"):
        return made({"lr": lr}, [str(model), file, list(rows), hub])[0]

    found = [folder(), folder(lr=2), folder(rows=[{"prompt": "How?"}]), folder(hub="Qwen/Qwen3-4B")]
    (model / "weights").write_text("2", encoding="utf-8")
    found.append(folder())
    file.write_text("[1]", encoding="utf-8")
    found.append(folder())
    assert len(set(found)) == len(found) and folder() == found[-1]


def test_a_text_too_long_for_a_path_is_a_text():
    assert content_hash("word " * 2000) != content_hash("word " * 2001)


def test_of_a_folder_the_content_counts_and_not_its_name(tmp_path):
    for name, text in (("one", "same"), ("two", "same"), ("other", "different")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(text, encoding="utf-8")
    one, two, other = (content_hash(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other


def test_how_long_a_stage_took_does_not_count(monkeypatch):
    """A model that was trained again, to the same weights, makes nothing after it anew."""
    hashes = []
    for number, weights in enumerate(("same", "same", "different")):
        with stage("sft", {"number": number}) as entry:
            (entry.folder / "weights").write_text(weights, encoding="utf-8")
            entry.write("history.json", [{"loss": 1.0, "seconds": number}])
        manifest = json.loads((entry.folder / "manifest.json").read_text(encoding="utf-8"))
        (entry.folder / "manifest.json").write_text(json.dumps(manifest | {"seconds": number}))
        hashes.append(content_hash(entry.folder))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("harm", ["change", "delete", "manifest"])
def test_a_damaged_entry_is_noticed_and_made_again(harm, capsys):
    folder, _ = made()
    file = folder / "sub" / "a.txt"
    if harm == "change":
        file.write_text("weightz", encoding="utf-8")
    elif harm == "delete":
        file.unlink()
    else:
        (folder / "manifest.json").write_text("{", encoding="utf-8")
    assert find_damage(folder)
    assert made(text="weights again") == (folder, True)
    assert file.read_text(encoding="utf-8") == "weights again"
    assert "damaged" in capsys.readouterr().err
    assert find_damage(folder) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_interrupted_stage_leaves_nothing_and_can_be_made(error, build):
    with pytest.raises(error), stage("sft", {}) as entry:
        (entry.folder / "half").write_text("x", encoding="utf-8")
        raise error
    assert [p for p in (build / "cache").iterdir() if p.is_dir()] == []
    folder, new = made()
    assert new and not (folder / "half").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, ""),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence(error):
    with pytest.raises(CourseError, match=r"disk is full.*course clean"), stage("sft", {}):
        raise error


def make_slowly():
    with stage("slow", {}) as entry:
        if entry.new:
            (entry.folder / "log").write_text("made", encoding="utf-8")
            with (entry.folder.parent / "calls").open("a", encoding="utf-8") as calls:
                calls.write("x")
            time.sleep(0.5)


def test_two_processes_make_one_entry_once(build):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make_slowly) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (build / "cache" / "calls").read_text(encoding="utf-8") == "x"


# ---- the code that a recipe uses ---------------------------------------------------------------


@pytest.fixture(scope="module")
def remade():
    """`remade(module, old, new)`: whose models an edit of the library's source makes anew.

    No file is touched: the cache reads the edited text in the place of the file.
    """
    from course_lib.experiments import recipes  # here: the two processes above need no torch

    makers = {
        "SFT": recipes.instruct_model,
        "reward": recipes.reward_model,
        "PPO": recipes.ppo_policy,
        "DPO": recipes.dpo_policy,
    }

    def code():
        cache.import_closure.cache_clear()
        cache._imports.cache_clear()
        return [used_code(maker.__code__, vars(recipes)) for maker in makers.values()]

    read, before = cache.source_of, code()

    def edit(module, old, new):
        assert old in read(module)

        def edited(name):
            return read(name).replace(old, new, 1) if name == module else read(name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "source_of", edited)
            pairs = zip(makers, before, code(), strict=True)
        return {name for name, old, new in pairs if old != new}

    yield edit
    code()


def test_an_edited_function_of_the_module_counts_for_those_that_call_it(remade):
    edit = '"""(model, tokenizer) of what', 'print()\n    """(model, tokenizer) of what'
    assert remade(RECIPES, *edit) == {"reward", "PPO", "DPO"}  # load_policy: SFT has none yet


def test_an_edited_loop_counts_for_those_that_it_trains(remade):
    assert remade("course_lib.algorithms.dpo", "history, start = [], ", "start, history = 0, ") == {
        "DPO"
    }


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("course_lib.algorithms.logprobs", "def token_logprobs(", "def token_logprobs(_, "),
        ("course_lib.inputs.models", "def load_model(", "def load_model(_, "),
    ],
)
def test_an_edit_counts_for_all_that_import_it_however_far_away(remade, module, old, new):
    assert remade(module, old, new) == {"SFT", "reward", "PPO", "DPO"}


def test_comments_docstrings_and_layout_do_not_count(remade):
    for module in (RECIPES, "course_lib.algorithms.sft"):
        assert remade(module, '"""', '"""Edited. ') == set()
        assert remade(module, "\n\n\ndef ", "\n\n\n# edited\n\n\ndef ") == set()
    assert remade(RECIPES, '    """The folder (or hub id)', '    """A folder (or id)') == set()


def test_a_constant_counts_where_it_is_used(remade):
    assert remade(RECIPES, "PTX_TOKENS = 512, 128", "PTX_TOKENS = 512, 64") == {"PPO"}
    assert remade(RECIPES, "NUM_SCALE = 32", "NUM_SCALE = 64") == {"reward", "PPO"}
    assert remade("course_lib.experiments.answers", "TRUTH_UNIT = 2.5", "TRUTH_UNIT = 3") == {
        "reward",
        "PPO",
        "DPO",
    }


def test_a_variable_that_bears_the_name_of_a_function_does_not_count(remade):
    """`instruct_model` has a list `rendered`; the function of that name is not for it."""
    assert "rendered = [" in cache.source_of(RECIPES)
    assert remade(RECIPES, "def rendered(\n", "def rendered(\n    more, ") == set()


def test_an_import_inside_a_function_counts_and_one_for_types_does_not(remade):
    late = (
        "def train_sft(",
        "def late():\n    from course_lib.world import judge\n\n\ndef train_sft(",
    )
    assert remade("course_lib.algorithms.sft", *late) == {"SFT", "reward", "PPO", "DPO"}
    types = "    from course_lib.kit.course import Course", "    from course_lib.kit import tables"
    assert remade(RECIPES, *types) == set()


# ---- the code that a notebook's cell uses ------------------------------------------------------


CELL = """
with stage("own", {"n": 3}) as entry:
    if entry.new:
        entry.write("value.json", double(3))
"""
DOUBLE = "def double(x):\n    return plain(x, 2)\n"
PLAIN = "def plain(x, y):\n    return x * y\n"


@pytest.fixture
def notebook(monkeypatch):
    """`notebook(*cells)`: whether the last one's stage is made anew, run as IPython runs cells."""
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))

    def run(*cells):
        names = {"__name__": "__main__", "stage": stage}
        for number, source in enumerate(cells):
            name = f"/tmp/ipykernel_1/{number}-{hash(source)}.py"
            linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
            exec(compile(source, name, "exec"), names)
        return names["entry"].new

    return run


def test_a_stage_in_a_notebook_depends_on_its_cell_and_the_functions_that_this_uses(notebook):
    assert notebook(PLAIN, DOUBLE, CELL)
    assert not notebook("other = 1", PLAIN, DOUBLE, CELL)
    assert not notebook(PLAIN, DOUBLE.replace("2)", "2)  # twice"), CELL + "\n# edited")
    assert notebook(PLAIN, DOUBLE, CELL.replace("double(3)", "double(3) + 1"))
    assert notebook(PLAIN, DOUBLE.replace("2", "4"), CELL)
    assert notebook(PLAIN.replace("*", "**"), DOUBLE, CELL)


def test_a_stage_in_a_notebook_depends_on_the_modules_that_its_cell_uses(notebook, monkeypatch):
    start = "from course_lib.core import stats"
    cell = CELL.replace("double(3)", "stats.wilson(1, 3)")
    assert notebook(start, cell) and not notebook(start, cell)
    read = cache.source_of
    monkeypatch.setattr(
        cache, "source_of", lambda m: read(m) + "X = 1\n" * (m == "course_lib.core.stats")
    )
    assert notebook(start, cell)
