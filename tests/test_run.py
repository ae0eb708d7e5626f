"""The runner, on stub notebooks: checks first, resumes, locks, fails in a few lines, sums up."""

import _thread
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.console import Console
from tiny import tiny_folder

from course_lib import CourseError
from course_lib.cli import report, run
from course_lib.cli.execute import execute
from course_lib.cli.notebooks import find_notebooks
from course_lib.cli.report import outside_band, refuted_claims, write_report
from course_lib.cli.run import load_outcome, make_plan, only_one, run_plan
from course_lib.inputs.profiles import load_profile

console = Console(highlight=False, soft_wrap=True)
PARAMETERS = 'PROFILE = "pocket"\nEFFORT = "live"\nSEED = 0\nEXAMPLES = 8\nRATE = 0.1'
SETUP = (
    "from course_lib.kit.course import setup\n"
    'course = setup(PROFILE, EFFORT, SEED, notebook="{number}",'
    " examples=(EXAMPLES, 4, 64), rate=(RATE, 0.0, 1.0))"
)
CLAIM = (
    "from course_lib.kit.claims import claim\n"
    'claim(course, "{number}.1", "more is more", source="slide 1", measure="share",'
    ' interval=(RATE * 5, RATE * 4, RATE * 6), target=">= 0.2")\n'
    'course.results.add("1.1", "base", EXAMPLES, SEED, "share", RATE * 5)'
)


# What `claim` leaves, without the library.
LEFT = (
    "import json, os, pathlib\n"
    "row = {{'id': '{number}.1', 'statement': '', 'source': '', 'measure': '', 'effect': 1,"
    " 'low': 1, 'high': 1, 'target': 'computed', 'holds': None, 'profile': 'pocket',"
    " 'effort': 'live', 'seeds': [0], 'notebook': '{number}'}}\n"
    "pathlib.Path(os.environ['COURSE_RUN'], 'claims.json').write_text(json.dumps([row]))"
)


def write_stub(folder: Path, number: str, *more: str, plain: bool = False) -> Path:
    """A stub notebook; `plain` leaves out the library, so that its kernel starts faster."""
    cells = [new_markdown_cell(f"# What is {number}?\n\n2 min")]
    cells.append(new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    if not plain:
        cells.append(new_code_cell(SETUP.format(number=number), metadata={"tags": ["setup"]}))
    cells.append(new_markdown_cell("## Train"))
    cells += [new_code_cell(source) for source in more]
    last = LEFT.format(number=number) if plain else "course.finish()"
    cells.append(new_code_cell(last))
    path = folder / f"{number}_stub.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("COURSE_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("COURSE_FIGURES", str(tmp_path / "figures"))
    monkeypatch.delenv("COURSE_SET", raising=False)
    return tmp_path / "notebooks"


def test_notebooks_are_read_without_running(folders):
    write_stub(folders, "01", CLAIM.format(number="1"))
    (notebook,) = find_notebooks(["1"])
    assert (notebook.number, notebook.title, notebook.minutes) == ("01", "What is 01?", "2 min")
    assert notebook.parameters["EXAMPLES"] == 8 and notebook.limits["RATE"] == (0.0, 1.0)
    with pytest.raises(CourseError, match=r"no notebook '07'.*01"):
        find_notebooks(["07"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"settings": {"EXAMPELS": 8}}, "'EXAMPELS' is unknown.*mean 'EXAMPLES'.*RATE"),
        ({"settings": {"EXAMPLES": 100}}, "EXAMPLES is 100; expected a value from 4 to 64"),
        ({"settings": {"EXAMPLES": "many"}}, "EXAMPLES is 'many'; expected a whole number"),
        ({"settings": {"EXAMPLES": 8.5}}, "EXAMPLES is 8.5; expected a whole number"),
        ({"settings": {"base_modle": "x"}}, "unknown.*mean 'base_model'"),
        ({"settings": {"base_model": "/no/folder"}}, "'/no/folder', which is no folder"),
        ({"settings": {"seed": 1}}, "use --seed 1"),
        ({"profile": "pocked"}, "'pocked'.*mean 'pocket'"),
        ({"effort": "ful"}, "'ful'.*mean 'full'"),
        ({"seed": -1}, "--seed is -1"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"numbers": ["02"]}, "no notebook '02'"),
    ],
)
def test_everything_is_checked_before_anything_runs(folders, arguments, words):
    write_stub(folders, "01", "1 / 0")
    with pytest.raises(CourseError, match=words) as error:
        make_plan(**arguments)
    assert "\n" not in str(error.value)
    assert not os.path.exists(os.environ["COURSE_BUILD"])


def test_runs_resumes_and_sums_up(folders, monkeypatch, tmp_path, capsys):
    write_stub(folders, "01", CLAIM.format(number="1"))
    plan = make_plan(settings={"examples": 16})
    (outcome,) = run_plan(plan, console)
    assert not outcome.error and outcome.peak_memory_gb > 0.05
    assert [c["id"] for c in outcome.claims] == ["1.1"] and outcome.claims[0]["holds"] is True
    assert re.search(r"01_stub: started.*\n01_stub: done in", capsys.readouterr().out)
    place = plan.place(plan.notebooks[0])
    executed = nbformat.read(place / "01_stub.ipynb", 4)
    assert "EXAMPLES = 16" in executed.cells[2].source

    (second,) = run_plan(plan, console)
    assert second.reused and second.claims == outcome.claims
    said = capsys.readouterr().out
    assert said.startswith("01_stub: done before") and len(said.splitlines()) == 1
    # Another parameter, another source or another library is another run.
    assert load_outcome(make_plan(settings={"examples": 32}), plan.notebooks[0]) is None
    monkeypatch.setattr(run, "code_hash", lambda: "other")
    assert load_outcome(plan, plan.notebooks[0]) is None
    monkeypatch.undo()

    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    page = write_report(plan, [outcome], ["1.1 base is outside"]).read_text(encoding="utf-8")
    for words in ("more is more", "What is 01?", "1.1 base is outside", "EXAMPLES = 16"):
        assert words in page
    assert "http" not in page and f"{place.name}/01_stub.html" in page
    assert (place / "01_stub.html").exists()


def test_failure_names_notebook_heading_and_error(folders):
    write_stub(folders, "01", "x = 1", "raise ValueError('the loss is nan')", plain=True)
    write_stub(folders, "02", "print('fine')", plain=True)
    plan = make_plan()
    failed, fine = run_plan(plan, console)
    for words in ("01_stub.ipynb", "“Train”", "ValueError: the loss is nan", "same command"):
        assert words in failed.error
    assert len(failed.error.splitlines()) <= 5
    place = plan.place(plan.notebooks[0])
    assert (place / "01_stub.failed.ipynb").exists()
    assert not (place / "01_stub.ipynb").exists()
    assert not fine.error
    # Once mended, only what failed runs again.
    write_stub(folders, "01", "x = 1", plain=True)
    outcomes = run_plan(make_plan(), console)
    assert [o.error for o in outcomes] == ["", ""] and [o.reused for o in outcomes] == [False, True]
    assert not (place / "01_stub.failed.ipynb").exists()


def test_kernel_that_is_killed_says_memory(folders):
    write_stub(folders, "01", "import os; os._exit(137)", plain=True)
    (outcome,) = run_plan(make_plan(), console)
    assert "memory ran out" in outcome.error


def test_every_cell_that_begins_is_told(folders, tmp_path):
    source, seen = write_stub(folders, "01", "x = 1", plain=True), []
    env = {"COURSE_RUN": str(tmp_path)}
    execute(source, tmp_path / "x.ipynb", {"SEED": 1}, env, lambda *at: seen.append(at))
    assert seen == [(i, 6) for i in range(6)]  # papermill adds a cell with the parameters


def test_interrupt_ends_kernels_and_keeps_finished_notebooks(request, folders, tmp_path, capsys):
    begun = tmp_path / "begun"
    wait = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    write_stub(folders, "01", "x = 1", plain=True)
    write_stub(folders, "02", wait, plain=True)
    write_stub(folders, "03", "x = 1", plain=True)

    def interrupt():
        while not begun.exists():
            time.sleep(0.1)
        _thread.interrupt_main()

    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    start = time.perf_counter()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(jobs=1), console)
    assert time.perf_counter() - start < 30 and "03_stub" not in capsys.readouterr().out
    one, two, _ = make_plan().notebooks
    assert load_outcome(make_plan(), one) and load_outcome(make_plan(), two) is None
    assert not list(make_plan().folder.rglob("*.part*"))


def test_two_jobs_run_at_once_and_share_the_cores(folders, tmp_path):
    wait = (
        "import os, time; from pathlib import Path\n"
        f"here, there = Path({str(tmp_path)!r}) / 'a{{}}', Path({str(tmp_path)!r}) / 'a{{}}'\n"
        "here.touch()\n"
        "while not there.exists(): time.sleep(0.05)\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE', os.environ['OMP_NUM_THREADS']"
    )
    write_stub(folders, "01", wait.format(1, 2), plain=True)
    write_stub(folders, "02", wait.format(2, 1), plain=True)
    assert [o.error for o in run_plan(make_plan(jobs=2), console)] == ["", ""]


def test_threads_sleep_and_are_one_each_where_several_notebooks_run(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert run.threads_for(1) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert run.threads_for(2) == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own stays
    assert run.threads_for(2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("cores", "free", "notebooks", "jobs"),
    [(2, 24, 5, 2), (8, 7, 5, 2), (8, 99, 3, 3), (2, 2, 5, 1)],
)
def test_as_many_notebooks_run_as_cores_and_memory_allow(cores, free, notebooks, jobs, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(run, "available_memory_gb", lambda: free)
    profile = load_profile("pocket")
    assert profile.memory_gb == 3 and run.jobs_for(profile, notebooks) == jobs
    assert run.jobs_for(profile.model_copy(update={"device": "cuda"}), notebooks) == 1


def test_a_notebook_starts_after_the_one_whose_models_it_uses(folders):
    for number in ("01", "02", "03", "04", "05"):
        write_stub(folders, number, plain=True)
    todo, order = find_notebooks(), []
    for running in (set(), {"03"}, {"01"}, {"04"}, {"04"}):
        order.append(run.next_notebook(todo, running))
        todo.remove(order[-1])
    # 04 waits while 03 runs, 05 while 04 does, unless nothing else is left to do
    assert [notebook.number for notebook in order] == ["03", "01", "04", "02", "05"]


def test_second_run_says_that_there_is_one(tmp_path):
    words = f"Another.*process {os.getpid()}.*wait"
    with only_one(tmp_path), pytest.raises(CourseError, match=words), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def committed_claim(**changes):
    interval = {"effect": 0.5, "low": 0.4, "high": 0.6, "target": ">= 0.2", "holds": True}
    run = {"profile": "pocket", "effort": "live", "seeds": [0], "notebook": "01"}
    words = {"id": "1.1", "statement": "more is more", "source": "slide 1", "measure": "share"}
    return words | interval | run | changes


def test_refuted_claim_and_value_outside_its_band(folders, tmp_path, monkeypatch):
    write_stub(folders, "01", "1", plain=True)
    results = tmp_path / "data" / "results"
    results.mkdir(parents=True)
    rows = [committed_claim(share=1.0)]
    (results / "claims_live.json").write_text(json.dumps(rows), encoding="utf-8")
    head = "notebook,claim,condition,x,seed,measure,value\n"
    lines = [f"01,1.1,base,8,{100 + i},share,{0.5 + 0.001 * i}\n" for i in range(10)]
    (results / "01_live.csv").write_text(head + "".join(lines), encoding="utf-8")
    own = tmp_path / "build" / "results"
    own.mkdir(parents=True)
    text = head + "01,1.1,base,8,0,share,0.9\n01,1.1,new,8,0,share,0.9\n"
    (own / "01_live.csv").write_text(text, encoding="utf-8")
    for module in (report, sys.modules["course_lib.kit.results"]):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    outcome = run.Outcome(
        "01", str(tmp_path / "build"), claims=[committed_claim(effect=0.1, high=0.15, holds=False)]
    )
    plan = make_plan()
    assert [c.id for c in refuted_claims(plan, [outcome])] == ["1.1"]
    (line,) = outside_band(plan, [outcome])
    assert "base" in line and "0.900" in line
    outcome.claims[0]["holds"] = None  # undecided refutes nothing
    assert refuted_claims(plan, [outcome]) == []
    # Other parameters are another experiment: nothing to hold it against.
    changed = make_plan(settings={"examples": 16})
    assert refuted_claims(changed, [outcome]) == outside_band(changed, [outcome]) == []


def test_pocket_notebook_cannot_reach_the_network(folders):
    code = "import urllib.request\nurllib.request.urlopen('http://192.0.2.1')"
    write_stub(folders, "01", code)
    (outcome,) = run_plan(make_plan(), console)
    assert "opens no network connection" in outcome.error


def test_model_folder_reaches_the_notebook(folders, tmp_path):
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    seen = f"assert course.model() == {str(model.resolve())!r}"
    write_stub(folders, "01", seen, CLAIM.format(number="1"))
    plan = make_plan(settings={"base_model": str(model)})
    assert [o.error for o in run_plan(plan, console)] == [""]


def test_reference_runs_are_collected_and_figures_redrawn(folders, tmp_path, monkeypatch, capsys):
    from course_lib.cli import committed

    source = CLAIM.format(number="1").replace("RATE * 5)", "RATE * 5 + SEED / 1000)")
    write_stub(folders, "01", source)
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    written = committed.make_reference(["01"], "live", 2)
    assert {p.name for p in written} == {"01_live.csv", "01_live.json", "claims_live.json"}
    results = tmp_path / "data" / "results"
    table = (results / "01_live.csv").read_text(encoding="utf-8").splitlines()
    assert table[1:] == ["01,1.1,base,8,101,share,0.601", "01,1.1,base,8,102,share,0.602"]
    note = json.loads((results / "01_live.json").read_text(encoding="utf-8"))
    assert note["seeds"] == [101, 102] and note["seconds"] >= 0 and note["machine"]["torch"]
    (claim,) = json.loads((results / "claims_live.json").read_text(encoding="utf-8"))
    assert claim["share"] == 1.0 and claim["holds"] is True
    committed.make_reference(["01"], "live", 2)
    assert capsys.readouterr().out.count("done before") == 2

    drawn = []
    modules = {"course_lib.experiments.nb01": SimpleNamespace(FIGURES=[drawn.append])}
    monkeypatch.setattr(committed, "import_module", modules.get)
    monkeypatch.setattr(sys.modules["course_lib.kit.results"], "ROOT", tmp_path)
    committed.redraw(find_notebooks()[0])
    (course,) = drawn  # the kernel was not asked: a figure is a function of recorded rows
    assert course.replay and course.knobs == {"examples": 8, "rate": 0.1}
    assert course.results.frame("1.1")["value"].tolist() == [0.601, 0.602]
    assert "1 figures drawn from the live results" in capsys.readouterr().out


def test_command_ends_with_the_report(folders, tmp_path):
    write_stub(folders, "01", CLAIM.format(number="1"))
    command = [sys.executable, "-m", "course_lib.cli.main", "run", "--set", "rate=0.2"]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("more is more", "holds", "GB", "report.html"):
        assert words in done.stdout
    wrong = subprocess.run(
        [*command[:-1], "rat=0.2"], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path
    )
    assert wrong.returncode == 2 and "did you mean 'RATE'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
