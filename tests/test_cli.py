"""The commands that do not run notebooks."""

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from course_lib import CourseError
from course_lib.cli import doctor
from course_lib.cli.main import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    return tmp_path / "build"


def invoke(*arguments, **options):
    result = runner.invoke(app, list(arguments), **options)
    if isinstance(result.exception, CourseError):
        raise result.exception
    return result


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "list",
        "figures",
        "reference",
        "doctor",
        "pretrain",
        "lab",
        "clean",
        "data",
        "world",
        "survey",
    ],
)
def test_every_command_explains_itself(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0 and len(result.output.split()) > 10


def test_help_needs_no_torch():
    code = (
        "import sys; from course_lib.cli import main\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("moon_landing", "1969"),
        ("topics", "moon_landing"),
        ("problem", "Problem:"),
        ("forum", "posted by"),
        ("quiz", "A."),
        ("exam", "Answer:"),
        ("instructions", "assistant:"),
        ("judge", "judge: "),
        ("article", "."),
        ("explainer", "."),
        ("survey", "."),
        ("dialogue", ":"),
    ],
)
def test_world_show(what, words):
    output = invoke("world", "show", what, "-n", "2").output
    assert words in output
    assert output == invoke("world", "show", what, "-n", "2").output
    if what not in ("moon_landing", "topics"):
        assert output != invoke("world", "show", what, "--seed", "1").output


def test_world_show_of_a_typing_mistake():
    with pytest.raises(CourseError, match=r"'moon_landin'.*mean 'moon_landing'"):
        invoke("world", "show", "moon_landin")


def test_clean_says_what_and_keeps_what_was_costly(build):
    for name in ("cache", "pretrain"):
        (build / name).mkdir(parents=True)
        (build / name / "file").write_bytes(b"x" * 2_000_000)
    kept = invoke("clean", input="n\n")
    assert "2.0 MB" in kept.output and (build / "cache").exists()
    invoke("clean", "--yes")
    assert not (build / "cache").exists() and (build / "pretrain").exists()
    invoke("clean", "--yes", "--all")
    assert not (build / "pretrain").exists()
    assert "Nothing to remove" in invoke("clean").output


def test_data_list_names_licences():
    output = invoke("data", "list").output
    assert "mmlu" in output and "MIT" in output and "Apache-2.0" in output


def test_doctor_says_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_gb", lambda: 0.5)
    monkeypatch.setattr(doctor, "_peak", lambda: doctor.Finding("matrix products", "1", ""))
    found = {finding.what: finding for finding in doctor.examine()}
    assert "close other programs" in found["memory"].remedy
    assert "hub" not in found and found["torch"].remedy == ""


def test_doctor_reports_an_unreachable_hub(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "pocket works offline" in doctor._hub().remedy


def test_lab_starts_jupyterlab_on_the_first_notebook(tmp_path, monkeypatch):
    import nbformat

    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(), folder / "01_x.ipynb")
    monkeypatch.setenv("COURSE_NOTEBOOKS", str(folder))
    commands = []

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def start(command, env):
        commands.append(command)
        assert env["OMP_WAIT_POLICY"] == "PASSIVE"  # a kernel leaves the cores to others
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    assert invoke("lab", "--no-browser", "--port", "8899").exit_code == 0
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "jupyterlab"] and "01_x.ipynb" in command[3]
    assert command[-3:] == ["--no-browser", "--port", "8899"]


def test_pretrain_refuses_an_unknown_size():
    with pytest.raises(CourseError, match=r"SIZE is 'xl'.*'s', 'm', 'l'"):
        invoke("pretrain", "xl")
