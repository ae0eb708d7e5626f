"""Every notebook: what it must look like, and that it runs, twice, with the same numbers.

The first half reads the committed notebooks. The second half (marked `slow`) executes all of them
with `course run`, from an empty cache, executes the result again with nbval from the cache that is
there then, and compares the two cell by cell and claim by claim. That training itself repeats is
shown on a notebook of every kind of loop at toy size.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import nbformat
import pytest
from conftest import tracked_state
from course_runs import NOTEBOOKS, ROOT, claims, environment, executed, tail
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib.cli.execute import execute

HEADINGS = [
    "The idea",
    "By hand",
    "The data",
    "Predict",
    "Before",
    "Train",
    "After",
    "Claims",
    "Break it",
    "Exercises",
    "The same with TRL",
    "On real models",
    "Further reading",
]
# From 06 on: the effect first, exercises before they are needed.
NEW_HEADINGS = [
    "Look first",
    "The idea",
    "By hand",
    "Your turn",
    "The data",
    "Predict",
    "Before",
    "Train",
    "After",
    "What came of it",
    "Break it",
    "On a real model",
    "The same with",
    "To remember",
    "Also measured",
]
FIRST_NEW, MOST_WORDS = "06", 3000
VOLATILE = "nbval-ignore-output"
MEMORY_LIMIT_GB = 4.0
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def tags(cell):
    return cell.metadata.get("tags", [])


def tree(cell):
    """The cell's syntax tree; magics are not Python, and have no place in a notebook of ours."""
    return ast.parse(cell.source)


def calls(cell, name):
    """The calls of function `name` in a cell, also as an attribute (`report.save_figure`)."""
    return [
        node
        for node in ast.walk(tree(cell))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == name
    ]


def sections(path):
    """Markdown text by second-level heading."""
    found, heading = {}, None
    for cell in read(path).cells:
        if cell.cell_type != "markdown":
            continue
        for line in re.sub(r"^```.*?^```", "", cell.source, flags=re.M | re.S).split("\n"):
            if match := re.match(r"## +(.*)", line):
                heading = match.group(1).strip()
                found.setdefault(heading, [])
            elif heading:
                found[heading].append(line)
    return {heading: "\n".join(lines) for heading, lines in found.items()}


# --- shape -----------------------------------------------------------------------------------


@every_notebook
def test_file_is_valid_small_and_portable(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_500_000
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for mime in list(output.get("data", {})):
                if mime.startswith("image/"):  # base64 may spell anything
                    del output["data"][mime]
    text = json.dumps(notebook)
    found = re.findall(
        r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|opt)/\w+|\b[A-Z]:\\\\\w+", text
    )
    assert not found and str(ROOT) not in text, f"absolute paths: {sorted(set(found))[:5]}"


@every_notebook
def test_headings_are_the_courses_in_order(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# .*\?$", cells[0].source.split("\n")[0]), "the title is a question"
    headings = NEW_HEADINGS if path.name >= FIRST_NEW else HEADINGS
    found = [
        next((want for want in headings if heading.lower().startswith(want.lower())), heading)
        for heading in sections(path)
    ]
    assert [heading for heading in found if heading in headings] == headings


@every_notebook
def test_first_cell_holds_the_parameters_and_the_second_sets_up(path):
    first, second, *rest = code_cells(path)
    assert "parameters" in tags(first)
    assert not any(
        {"parameters", "injected-parameters"} & set(tags(cell)) for cell in [second, *rest]
    )
    body = tree(first).body
    assert all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body)
    targets = [
        (node.targets if isinstance(node, ast.Assign) else [node.target])[0].id for node in body
    ]
    defaults = {
        name: ast.literal_eval(node.value) for name, node in zip(targets, body, strict=True)
    }
    assert targets[:3] == ["PROFILE", "EFFORT", "SEED"]
    assert (defaults["PROFILE"], defaults["EFFORT"], defaults["SEED"]) == ("pocket", "live", 0)
    assert len(targets) <= 3 + 8
    (call,) = calls(second, "setup")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    assert given["notebook"].value == path.name[:2]
    assert "setup" in tags(second)


@every_notebook
def test_cells_are_few_short_and_explained(path):
    cells = code_cells(path)
    lengths = [len(cell.source.strip().splitlines()) for cell in cells]
    assert len(cells) <= 30
    setup = lengths.pop(1)  # its imports are read when something is looked up
    assert max(lengths) <= 25 and setup <= 30
    assert statistics.median(lengths) <= 8
    prose = " ".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    lines = sum(bool(line.strip()) for cell in cells for line in cell.source.splitlines())
    assert len(prose.split()) >= 5 * lines
    assert path.name < FIRST_NEW or len(prose.split()) <= MOST_WORDS


@every_notebook
def test_committed_as_executed_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [output for output in cell.outputs if output.output_type == "error"]
        if VOLATILE not in tags(cell):
            noise = [o.text for o in cell.outputs if o.get("name") == "stderr"]
            assert not noise, f"warnings in the output: {noise[0][:200]}"
        bars = [output.text for output in cell.outputs if "\r" in output.get("text", "")]
        assert not bars, "a progress bar is kept with all its states"


# --- what a notebook says ---------------------------------------------------------------------


@every_notebook
def test_no_image_from_elsewhere_and_none_without_words(path):
    for cell in read(path).cells:
        texts = [cell.source] if cell.cell_type == "markdown" else []
        texts += ["".join(o.get("data", {}).get("text/html", "")) for o in cell.get("outputs", [])]
        for text in texts:
            for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text):
                assert alt.strip() and not target.startswith("http"), target
            for tag in re.findall(r"<img[^>]*>", text):
                assert re.search(r'alt="[^"]', tag) and not re.search(r'src="(https?:)?//', tag), (
                    tag
                )


@every_notebook
def test_every_figure_is_a_call_and_saved_with_caption_and_alt_text(path):
    """Plotting code stands in experiments/nbNN.py; `course figures` draws what is shown here."""
    module, drawn = import_module(f"course_lib.experiments.nb{path.name[:2]}"), []
    for cell in code_cells(path):
        names = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(tree(cell))}
        assert not names & {"subplots", "save_figure", "imshow", "savefig"}, cell.source
        called = [n for n in names if n.endswith("_figure") and calls(cell, n)]
        assert len(called) <= 1 and bool(called) == ("figure" in tags(cell)), cell.source
        drawn += called
    assert drawn == [figure.__name__ for figure in module.FIGURES]
    for name in drawn:
        file = ROOT / "figures" / f"{path.name[:2]}_{name.removesuffix('_figure')}.json"
        words = json.loads(file.read_text(encoding="utf-8"))
        assert len(words["caption"].split()) >= 6 and len(words["alt"].split()) >= 6, name


@every_notebook
def test_nothing_is_defined_again_that_the_library_has(path):
    library = {
        node.name
        for file in (ROOT / "course_lib").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for cell in code_cells(path):
        own = {
            n.name for n in ast.walk(tree(cell)) if isinstance(n, ast.FunctionDef | ast.ClassDef)
        }
        assert not own & library


@every_notebook
def test_no_branch_on_the_profile_and_no_magic(path):
    for cell in code_cells(path):
        tree(cell)  # magics and shell commands are syntax errors
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.Compare):
                assert "profile" not in ast.unparse(node).lower(), ast.unparse(node)


@every_notebook
def test_exercises_are_checked(path):
    names = [
        ast.unparse(call.args[0]) for cell in code_cells(path) for call in calls(cell, "check")
    ]
    assert len(set(names)) >= (2 if path.name >= FIRST_NEW else 3)


@every_notebook
def test_results_are_computed_not_typed(path):
    """No decimal or percentage in the prose around the results; a target may be named."""
    number = int(path.name[:2])
    for heading, text in sections(path).items():
        if not heading.startswith(("After", "Claims", "What came of it")):
            continue
        lines = [line for line in text.split("\n") if not line.lstrip().startswith("|")]
        prose = re.sub(r"`[^`]*`|\$[^$]*\$|\[[^\]]*\]\([^)]*\)", "", "\n".join(lines))
        prose = re.sub(rf"\b{number}\.\d[a-z]?\b", "", prose)  # a claim's id
        prose = re.sub(r"(≥|≤|<|>|at least|at most|target of|within)\s*\+?[\d.]+\s?%?", "", prose)
        prose = re.sub(r"\b9[59](\.9)?\s?%[\s-]*(\w+[\s-])?(interval|band)", "", prose)
        assert not re.findall(r"\d+\.\d+|\d+\s?%", prose), f"typed under {heading!r}"


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_course_run_ends_with_claims_figures_and_report(live_run):
    run = live_run.claims
    for row in run.values():
        assert {"id", "statement", "source", "measure", "effect", "low", "high", "target"} <= set(
            row
        )
        assert {"holds", "profile", "effort", "seeds"} <= set(row)
        assert row["id"] in live_run.output
    assert {row_id.split(".")[0] for row_id in run} == {str(int(p.name[:2])) for p in NOTEBOOKS}
    (report,) = live_run.build.rglob("report.html")
    words = "".join(live_run.output.split())  # a console breaks long lines
    assert report.name in words
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r'<(?:img|script|link)[^>]+(?:src|href)="(?:https?:)?//', page)
    assert all(row_id in page for row_id in run)


@pytest.mark.slow
def test_a_run_leaves_the_checkout_as_it_was(live_run):
    assert tracked_state() == live_run.before


@pytest.mark.slow
def test_every_committed_claim_is_measured_by_a_live_run(live_run):
    committed = ROOT / "data" / "results" / "claims_live.json"
    if not committed.exists():
        pytest.skip("no reference runs are committed yet: `course reference` makes them")
    rows = json.loads(committed.read_text(encoding="utf-8"))
    assert {row["id"] for row in rows} <= set(live_run.claims)


@pytest.mark.slow
@every_notebook
def test_live_run_stays_small(path, live_run):
    """As the notebook's last cell noted it."""
    note = executed(live_run.build, path).with_name("note.json")
    record = json.loads(note.read_text(encoding="utf-8"))
    assert 0 < record["peak_memory_gb"] < MEMORY_LIMIT_GB


@pytest.fixture(scope="module")
def executed_again(live_run, tmp_path_factory):
    """The executed notebooks, executed again with nbval, two at once: (process, claims) by stem."""
    folder = tmp_path_factory.mktemp("again")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    def again(path):
        notebook, build = executed(live_run.build, path), folder / path.stem
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
        command += ["-c", str(folder / "pytest.ini"), "--rootdir", str(notebook.parent)]
        command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval.cfg"), str(notebook)]
        process = subprocess.run(
            command,
            env=environment(build, COURSE_CACHE=str(live_run.build / "cache")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=1800,
        )
        return process, claims(build)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([p.stem for p in NOTEBOOKS], pool.map(again, NOTEBOOKS), strict=True))


@pytest.mark.slow
@every_notebook
def test_executed_again_it_says_the_same(path, live_run, executed_again):
    process, found = executed_again[path.stem]
    assert process.returncode == 0, tail(process, 80)
    first = {k: v for k, v in live_run.claims.items() if k.startswith(f"{int(path.name[:2])}.")}
    assert found == first  # the same seed gives the same bits


TOY = """
from course_lib.experiments import policy_bench, recipes
from course_lib.kit.course import setup

course = setup(PROFILE, EFFORT, SEED, notebook="90", base_model="pocket/s")
short = {"num_steps": 3}
bench = policy_bench.load_bench(course, 8, 4, SEED, ("9.1", "before"))
trained = {"DPO": recipes.dpo_policy(course, 8, seed=SEED, **short)}
trained["PPO"] = recipes.ppo_policy(course, 8, seed=SEED, minibatch_size=16, ptx_coef=0.1, **short)
for name, folder in trained.items():
    policy_bench.measure(bench, folder, "9.1", name)
    for row in recipes.training_history(folder):
        course.results.add("9.2", name, row["step"], SEED, "loss", row["loss"])
for step in recipes.training_history(bench.reward_folder):
    course.results.add("9.2", "reward model", step["step"], SEED, "loss", step["loss"])
course.finish()
"""


@pytest.mark.slow
def test_every_kind_of_training_repeats_from_an_empty_cache(tmp_path):
    """SFT, reward model, DPO, PPO with its pretraining term, and what is sampled from them."""
    cells = [new_markdown_cell("# Does it repeat?"), new_code_cell(TOY)]
    cells.insert(1, new_code_cell('PROFILE, EFFORT, SEED = "pocket", "live", 0'))
    source = tmp_path / "90_toy.ipynb"
    nbformat.write(new_notebook(cells=cells), source)

    def once(name):
        env = environment(tmp_path / name, COURSE_RUN=str(tmp_path / name))
        execute(source, tmp_path / name / source.name, {}, env)
        return (tmp_path / name / "results" / "90_live.csv").read_text(encoding="utf-8")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(once, ("first", "second"))
    assert first == second
    assert all(f"9.2,{name},3,0,loss" in first for name in ("DPO", "PPO", "reward model"))
