"""Inputs that once went wrong, most of them without a word, and what is right: one test a case.

The numbers are those of the course's list of such cases. A model folder is refused in one sentence
that names what is wrong, before any work, or it is read as it is meant.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_run import write_stub
from tiny import CHAT, QWEN_TEMPLATE, SMOL_TEMPLATE
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course_lib import ROOT, CourseError
from course_lib.algorithms.chat import CHATML, PLAIN_CHAT, check_chat, render_chat, render_prompt
from course_lib.cli.notebooks import find_notebooks, parse_settings, split_settings
from course_lib.cli.run import load_outcome, make_plan, notebook_key
from course_lib.inputs.models import (
    add_lora,
    load_model,
    load_reward_model,
    load_tokenizer,
    num_parameters,
)
from course_lib.inputs.profiles import apply_overrides, load_profile
from course_lib.inputs.rows import instruction_rows, read_rows
from course_lib.kit.course import Course, setup

POCKET = load_profile("pocket")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("COURSE_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.delenv("COURSE_SET", raising=False)


# ---- model folders: 1, 9-17, 32, 33, 41 --------------------------------------------------------


def edit(file: Path, **changes) -> None:
    """Change entries of a JSON file; None removes one."""
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def rename(change):
    """A case that saves the weights (name -> tensor) as `change` makes them."""

    def case(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return case


def sharded(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for part, some in ((1, names[:9]), (2, names[9:])):
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({name: weights[name] for name in some}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(some, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut(size: int):
    def case(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return case


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 796464\n"
    (folder / "model.safetensors").write_text(text, encoding="utf-8")


def more_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["first", "second", "third"])
    tokenizer.save_pretrained(folder)


def template(text: str):
    return lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def named_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    both = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "x"}]
    edit(folder / "tokenizer_config.json", chat_template=both)


def template_folder(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x", encoding="utf-8")


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


ONLY_TWO = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('roles') }}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
DROPS_TOOLS = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'tool' %}"
)
REFUSED = {
    "1 compiled": (
        rename(lambda weights: {f"_orig_mod.{n}": w for n, w in weights.items()}),
        r"has unknown weights.*'_orig_mod\.model.*save the model inside the wrapper",
    ),
    "1 parallel": (
        rename(lambda weights: {f"module.{n}": w for n, w in weights.items()}),
        r"has unknown weights.*'module\.model",
    ),
    "1 missing": (
        rename(lambda weights: {n: w for n, w in weights.items() if "layers.1.mlp" not in n}),
        r"lacks weights \(3, such as 'model\.layers\.1\.mlp\.down_proj",
    ),
    "1 unknown": (
        rename(lambda weights: weights | {"model.extra.weight": torch.ones(2)}),
        r"has unknown weights \(1, such as 'model\.extra",
    ),
    "9 pointer": (pointer, "pointer of Git LFS.*git lfs pull"),
    "9 half": (cut(400_000), "not whole.*400,000 bytes.*speaks of 796,464"),
    "9 header": (cut(100), "not whole.*header cannot be read"),
    "10": (shard_missing, r"has no model-00002-of-00002\.safetensors;"),
    "11": (more_tokens, "ids up to 2050.*2048 embeddings"),
    "12": (config(vocab_size=2051), r"another shape.*\(2048, 80\), by the config \(2051, 80\)"),
    "14 raises": (template(ONLY_TWO), "fails with.*roles.*system, user, assistant; use one that"),
    "14 drops": (template(DROPS_TOOLS), "leaves out the message of the role 'tool'"),
    "15": (
        lambda folder: edit(folder / "tokenizer_config.json", eos_token=None),
        "has no EOS token.*set `eos_token`",
    ),
    "17": (config(model_type="gpt2"), "of type 'gpt2'; expected one of llama, qwen2, qwen3"),
    "32 model": (config(auto_map={"AutoConfig": "code.Config"}), "auto_map.*never run"),
    "32 tokenizer": (
        lambda folder: edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B"]}),
        "auto_map.*never run",
    ),
    "33 model": (pickled, r"no model\.safetensors \(pytorch_model\.bin is a pickle"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "data" / "models" / "s", tmp_path / "model"))


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_folder_is_refused_in_one_sentence_before_any_work(case, folder):
    make, words = REFUSED[case]
    make(folder)
    with pytest.raises(CourseError, match=words) as error:
        apply_overrides(POCKET, {"base_model": str(folder)})
    assert "\n" not in str(error.value)
    if not case.startswith("11"):  # which neither weights nor tokenizer can know alone
        with pytest.raises(CourseError):
            load_model(str(folder)), load_tokenizer(str(folder))


@pytest.mark.parametrize("make", [sharded, named_templates, template_folder])
def test_10_13_shards_and_several_chat_templates_are_read(make, folder):
    make(folder)
    assert apply_overrides(POCKET, {"base_model": str(folder)}).models["base"] == str(folder)
    assert load_tokenizer(str(folder)).chat_template.strip() == CHATML.strip()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_model(str(folder))(ids).logits, load_model("pocket/s")(ids).logits)


def adapter_folder(folder: Path, base: str = "pocket/s") -> Path:
    model = add_lora(load_model("pocket/s"), r=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    model.save_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path=base)
    return folder


def test_16_an_adapter_is_read_with_its_base(tmp_path, monkeypatch):
    folder = adapter_folder(tmp_path / "adapter")
    monkeypatch.setenv("COURSE_SET", json.dumps({"base_model": str(folder)}))
    course = setup(notebook="01")
    model, tokenizer = course.load()
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(model(ids).logits, load_model("pocket/s")(ids).logits)
    assert tokenizer.chat_template and course.context == 512
    assert num_parameters(model, trainable=True) == num_parameters(load_model("pocket/s"))


def test_16_33_an_adapter_that_does_not_fit_or_is_pickled_is_refused(tmp_path):
    folder = adapter_folder(tmp_path / "adapter", base="pocket/m")
    cases = {"lacks weights.*layers.3": lambda: None}
    cases["has no hub ids|takes no hub ids"] = lambda: edit(
        folder / "adapter_config.json", base_model_name_or_path="owner/name"
    )
    cases["of type 'IA3'; expected one of LORA"] = lambda: edit(
        folder / "adapter_config.json", base_model_name_or_path="pocket/s", peft_type="IA3"
    )

    def pickled_adapter():
        edit(folder / "adapter_config.json", peft_type="LORA")
        torch.save({}, folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()

    cases[r"no adapter_model\.safetensors \(adapter_model\.bin is a pickle"] = pickled_adapter
    for words, make in cases.items():
        make()
        with pytest.raises(CourseError, match=words) as error:
            apply_overrides(POCKET, {"base_model": str(folder)})
        assert "\n" not in str(error.value)


def test_41_all_roles_are_checked_first_and_no_text_of_an_error_is_read(folder, tmp_path):
    for wrong in ({"base_model": "pocket/xl"}, {"large_model": "pocket/zzz"}):
        with pytest.raises(CourseError, match=r"is not in .*there: l, m"):
            apply_overrides(POCKET, wrong)
    rename(lambda weights: {n: w * float("nan") for n, w in weights.items()})(folder)
    with pytest.raises(CourseError, match="not finite"):
        load_model(str(folder))
    named = folder.rename(tmp_path / "model-401-gated")
    cut(50)(named)
    with pytest.raises(CourseError, match="not whole"):
        load_model(str(named))
    with pytest.raises(CourseError, match=r"no config\.json"):
        load_reward_model(tmp_path)


# What makes an object of a config that is already in memory, and reads no file.
NO_FILE = {
    ("course_lib/algorithms/reward.py", "from_config"): "a head on a loaded policy's own config",
    ("course_lib/pretraining/pretrain.py", "from_config"): "a new model of the course's own sizes",
    ("course_lib/inputs/models.py", "from_config"): "the door itself",
    ("course_lib/inputs/models.py", "from_pretrained"): "the door itself",
}
TRL_CELLS = {"SFTTrainer", "RewardTrainer", "DPOTrainer", "Rendered"}


def test_32_there_is_one_loading_door():
    sources = {p: p.read_text(encoding="utf-8") for p in (ROOT / "course_lib").rglob("*.py")}
    sources |= {p: p.read_text(encoding="utf-8") for p in ROOT.glob("tests/benchmarks/*.py")}
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    found = set()
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            name = getattr(node, "attr", None)
            if name in ("from_pretrained", "from_config", "torch_load", "from_pretrained_multi"):
                found.add((path.relative_to(ROOT).as_posix(), name))
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            if called in TRL_CELLS:  # a model's name would be loaded by TRL
                first = node.args[0]
                assert isinstance(first, ast.Name | ast.Call), ast.unparse(node)
            assert called not in ("torch.load", "pickle.load", "pickle.loads"), path
    assert found == set(NO_FILE)


# ---- prompts and masks: 4, 5 -------------------------------------------------------------------

ANSWERS = [
    "Yes.",
    " Yes, it is.",
    "\nNo.\n\nNo: never.",
    "12 pens:\n- one",
    "It's so. ",
    "",
    "ok\n",
]
WORDS = ["Assistant: Yes. It is so.", "User: Is it?", "system Be brief. 12 pens"] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]"]


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers that treat blanks differently: bytes, words, and pieces as Llama has them."""
    bpe = Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=kind == "pieces"))
    alphabet = []
    if kind == "bytes":
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    elif kind == "drops blanks":
        bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "pieces":  # a blank is put before every text, and tokens cross words
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        bpe.normalizer = normalizers.Sequence(steps)
        bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    elif kind == "crosses":  # a token may hold the end of a prompt and the start of an answer
        bpe.pre_tokenizer = None
    alphabet = sorted({*alphabet, *map(chr, range(33, 127)), "▁", " ", "\n", "Ċ"})
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=SPECIAL[1:3],
    )


NEWLINE_LEARNED = CHATML.replace("{% endgeneration %}", "{{ '\n' }}{% endgeneration %}").replace(
    "{% endif %}{{ '\n' }}{% endfor %}", "{{ '\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"plain": PLAIN_CHAT, "chatml": CHATML, "smol": SMOL_TEMPLATE, "qwen": QWEN_TEMPLATE}


@pytest.mark.parametrize("kind", ["bytes", "drops blanks", "pieces", "crosses"])
@pytest.mark.parametrize("name", [*TEMPLATES, "newline learned"])
def test_4_5_prompts_begin_their_rows_and_masks_equal_the_answers(kind, name):
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = TEMPLATES.get(name) or NEWLINE_LEARNED
    check_chat(tokenizer)
    end = "<|endoftext|>" if name == "plain" else "<|im_end|>"
    for answer in ANSWERS:
        for before in (CHAT[:2], [*CHAT[:2], {"role": "assistant", "content": "12."}, CHAT[1]]):
            row = render_chat(tokenizer, [*before, {"role": "assistant", "content": answer}])
            prompt = render_prompt(tokenizer, before)
            ids, mask = row["input_ids"], row["completion_mask"]
            assert len(ids) == len(mask) and ids[: len(prompt)] == prompt
            learned = [i for i, m in zip(ids, mask, strict=True) if m]
            answers = [m["content"] for m in before if m["role"] == "assistant"] + [answer]
            said = "".join(f"{text}{end}" for text in answers)
            blanks = r"[\s▁]"  # which some tokenizers drop, and the pieces' decoder adds
            text = re.sub(blanks, "", tokenizer.decode(learned))
            assert text == re.sub(blanks, "", said), (answer, text)
            assert mask[len(prompt)] == 1


def test_5_a_template_that_changes_an_answer_is_refused():
    tokenizer = tokenizer_of("bytes")
    said = "message['content'] + '<|im_end|>' }}{% endgen"
    changed = said.replace("['content']", "['content'] | replace('1702', '')")
    tokenizer.chat_template = CHATML.replace(said, changed)
    with pytest.raises(CourseError, match="does not write the answer"):
        render_chat(tokenizer, CHAT)


def test_4_the_pocket_models_rows_are_those_of_the_committed_results():
    """As transformers writes and masks them by the template's own marks."""
    from course_lib.world import instructions

    tokenizer = load_tokenizer("pocket/m")
    rows = instructions.demonstrations(200, 0)
    for kind in ("refusal", "safe", "calculator"):
        rows += instructions.demonstrations(50, 1, kinds=[kind])
    for row in rows:
        whole = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        made = render_chat(tokenizer, row["messages"])
        assert made["input_ids"] == whole["input_ids"]
        assert made["completion_mask"] == whole["assistant_masks"]


# ---- data: 3, 18, 19 ---------------------------------------------------------------------------


def test_3_19_lines_end_at_newline_bytes_only_and_arrays_are_known_by_their_bracket(tmp_path):
    rows = [{"question": "one\u0085two\u2028three\u000bfour"}, {"question": "five"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    array = json.dumps(rows, ensure_ascii=False, indent=1)
    for name, text in {
        "lines.jsonl": lines,
        "crlf.jsonl": lines.replace("\n", "\r\n") + "\r\n\r\n",
        "lines.json": lines,
        "bom.json": "\ufeff" + array,
        "bom.jsonl": "\ufeff" + lines,
        "array.jsonl": array,
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        assert read_rows(tmp_path / name) == rows, name
    (tmp_path / "bad.jsonl").write_text(lines + "\n{oops", encoding="utf-8")
    with pytest.raises(CourseError, match=r"Line 3 of .*bad\.jsonl is no JSON"):
        read_rows(tmp_path / "bad.jsonl")
    with pytest.raises(CourseError, match=r"none\.json cannot be read"):
        read_rows(tmp_path / "none.json")


def test_18_19_alpaca_rows_without_input_are_read_and_empty_outputs_counted(tmp_path, capsys):
    rows = [{"instruction": f"Do {i}.", "output": "Done."} for i in range(20)]
    rows += [{"instruction": "Add.", "input": f"{i}", "output": None} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    profile = apply_overrides(load_profile("laptop"), {"instructions_data": str(tmp_path)})
    course = Course("01", profile, "live", 0)
    assert len(instruction_rows(course, 8)) == 8
    assert "20 good, 3 without 'output'" in capsys.readouterr().out


# ---- runs: 2, 6, 7, 8, 31 ----------------------------------------------------------------------


def test_2_content_and_not_the_path_decides_what_was_done_before(folder, tmp_path):
    write_stub(tmp_path / "notebooks", "01", plain=True)
    data = tmp_path / "mine"
    data.mkdir()
    (data / "rows.json").write_text("[1]", encoding="utf-8")

    def run_of(model: Path = folder):
        settings = {"base_model": str(model), "exam_data": str(data)}
        plan = make_plan(settings=settings)
        return plan.place(plan.notebooks[0]).name, notebook_key(plan, plan.notebooks[0])

    seen = [run_of()]
    assert run_of() == run_of(Path(shutil.copytree(folder, tmp_path / "copy"))) == seen[0]
    template("{# another #}" + CHATML)(folder)
    seen.append(run_of())
    rename(lambda weights: {n: w * 1.5 for n, w in weights.items()})(folder)
    seen.append(run_of())
    (data / "rows.json").write_text("[2]", encoding="utf-8")
    seen.append(run_of())
    assert len(set(seen)) == len({place for place, _ in seen}) == 4
    adapter = adapter_folder(tmp_path / "adapter", base=str(folder))
    first = run_of(adapter)
    rename(lambda weights: {n: w * 2 for n, w in weights.items()})(folder)
    assert run_of(adapter) != first  # the base counts, too


def test_6_a_relative_build_folder_is_the_users_and_no_claims_is_not_done(tmp_path):
    notebooks = tmp_path / "notebooks"
    write_stub(
        notebooks, "01", "import os; assert os.path.isabs(os.environ['COURSE_BUILD'])", plain=True
    )
    silent = nbformat.read(write_stub(notebooks, "02", plain=True), as_version=4)
    silent.cells = silent.cells[:-1]
    nbformat.write(silent, notebooks / "02_stub.ipynb")
    command = [sys.executable, "-m", "course_lib.cli.main", "run", "--jobs", "2"]
    env = os.environ | {"COURSE_BUILD": "mine", "COURSE_NOTEBOOKS": "notebooks"}
    options = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 1 and "01_stub: done in" in done.stdout, done.stdout + done.stderr
    assert "02_stub.ipynb ran to its end and left no claims" in done.stdout
    left = {path.name for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert {"claims.json", "outcome.json", "01_stub.ipynb", "report.html"} <= left
    assert len(list(notebooks.iterdir())) == 2


def test_7_37_a_number_means_the_courses_own_notebook(tmp_path):
    folder = tmp_path / "notebooks"
    own = write_stub(folder, "01", plain=True)
    for name in ("01_stub-mine", "01_stub-Copy1", "01_stub (copy)", "01_stub_2"):
        shutil.copyfile(own, folder / f"{name}.ipynb")
    for given in (None, ["1"], ["01"], ["01_stub"], ["01_stub.ipynb"], [str(own)]):
        assert [notebook.path for notebook in find_notebooks(given)] == [own]
    (mine,) = find_notebooks(["01_stub-mine"])
    assert mine.path.name == "01_stub-mine.ipynb"
    for wrong in ("1.5", "foo/01", "foo/01_stub.ipynb", "01_wrong.ipynb", "01_stub-"):
        with pytest.raises(CourseError, match="There is no notebook"):
            find_notebooks([wrong])
    shutil.copyfile(own, folder / "01_notes.ipynb")
    with pytest.raises(CourseError, match="have one number"):
        find_notebooks()


def test_8_38_text_stays_text(tmp_path, monkeypatch):
    path = write_stub(tmp_path / "notebooks", "01", plain=True)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += '\nNAME = "x"\nFAST = False'
    nbformat.write(notebook, path)
    texts = ["name=007", "examples=16", "rate=1e-1", "fast=true"]
    texts += ["base_model=000100", "large_model=1e-4"]
    own, overrides = split_settings(find_notebooks(), parse_settings(texts))
    assert own == {"01": {"NAME": "007", "EXAMPLES": 16, "RATE": 0.1, "FAST": True}}
    assert overrides == {"base_model": "000100", "large_model": "1e-4"}
    with pytest.raises(CourseError, match="'A' twice"):
        parse_settings(["A=1", "A=2"])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data" / "models" / "s", tmp_path / "000100")
    plan = make_plan(settings=parse_settings(["base_model=000100"]))
    assert json.loads(plan.env["COURSE_SET"]) == {"base_model": str(tmp_path / "000100")}


def test_31_every_run_writes_to_a_folder_of_its_own(tmp_path, monkeypatch):
    """Two sessions with other parameters, and a run: none sees what another left."""
    from course_lib.kit.claims import claim, claims_table

    def said(course) -> str:
        claim(
            course,
            "1.1",
            f"seed {course.seed}, {course.effort}",
            source="",
            measure="",
            interval=1.0,
            target="computed",
        )
        course.finish()
        return repr(claims_table(course))

    courses = [setup(SEED=0, notebook="01"), setup(SEED=1, notebook="01")]
    courses += [setup(EFFORT="full", notebook="01"), setup(notebook="01", examples=8)]
    monkeypatch.setenv("COURSE_RUN", str(tmp_path / "run"))
    texts = [said(courses[0])]
    monkeypatch.delenv("COURSE_RUN")
    texts += [said(course) for course in courses]
    assert all(text.count("1.1 ") == 1 for text in texts)
    for file in ("claims.json", "results/01_live.csv", "note.json"):
        assert (tmp_path / "run" / file).is_file()
    folders = {course.build for course in courses}
    assert len(folders) == 4 and all((folder / "claims.json").is_file() for folder in folders)
    setup(SEED=1, notebook="01")  # begun again: what was said before is gone
    assert not (courses[1].build / "claims.json").exists()

    write_stub(tmp_path / "notebooks", "01", plain=True)
    plans = [make_plan(seed=seed) for seed in (0, 1)]
    assert len({plan.place(plan.notebooks[0]) for plan in plans}) == 2
    assert load_outcome(plans[0], plans[0].notebooks[0]) is None
    place = plans[0].place(plans[0].notebooks[0])
    place.mkdir(parents=True)
    (place / "outcome.json").write_text("{", encoding="utf-8")  # damaged: made anew
    assert load_outcome(plans[0], plans[0].notebooks[0]) is None
