"""The set-up instructions: conda's file, the README's two commands, its links, what CI runs."""

import os
import re
import subprocess
import tomllib

import pytest
import yaml
from course_runs import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.M | re.S)[:2]


def test_every_dependency_is_pinned_exactly():
    extras = [pin for pins in PROJECT["optional-dependencies"].values() for pin in pins]
    loose = [
        pin for pin in PROJECT["dependencies"] + extras if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)
    ]
    assert not loose


def test_conda_gets_the_same_python_and_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    # All pins come through the package, so that there is one place for them.
    assert pip == {"pip": ["-e .[test]"]}
    assert conda == ["python" + PROJECT["requires-python"], "pip"]
    assert environment["name"] == PROJECT["name"]


@pytest.mark.parametrize(
    "command, last", list(zip(COMMANDS, ["course run", "python -m pytest"], strict=True))
)
def test_the_first_two_bash_blocks_are_the_two_commands(command, last):
    line = command.strip()
    assert "\n" not in line
    steps = [step.strip() for step in line.split("&&")]
    assert steps[0] == "python3 -m venv .venv"  # works where the system's Python refuses installs
    assert steps[1].startswith(".venv/bin/pip install -e ")
    assert steps[2:] == [f".venv/bin/{last}"]


def test_windows_lines_do_the_same():
    block = re.search(r"^```powershell\n(.*?)^```$", README, flags=re.M | re.S).group(1)
    plain = [line.replace(".venv/bin/", "").replace("'", "") for line in COMMANDS]
    windows = [
        line.replace(".venv\\Scripts\\", "").replace("; ", " && ") for line in block.split("\n")
    ]
    assert [line.replace("py -m", "python3 -m") for line in windows if line] == [
        line.strip() for line in plain
    ]


def test_readme_names_the_supported_systems():
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    for minor in range(int(low), int(high)):
        assert f"3.{minor}" in README
    for system in ("Linux", "Windows", "macOS 14"):
        assert system in README


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if not link.startswith(("http://", "https://", "#", "mailto:")):
            assert ((ROOT / page).parent / link.split("#")[0]).exists(), f"{page} links to {link}"


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_no_place_was_left_to_fill(page):
    assert not re.findall(r"TODO|FIXME|TBD|\?\?\?", (ROOT / page).read_text(encoding="utf-8"))


def test_the_table_lists_the_notebooks_that_exist():
    linked = set(re.findall(r"\]\(notebooks/([\w.]+\.ipynb)\)", README))
    assert linked == {path.name for path in NOTEBOOKS}


def test_readme_names_only_commands_that_exist(capsys):
    from typer.main import get_command

    from course_lib.cli import main

    known = set(get_command(main.app).commands)
    named = set(re.findall(r"(?:^|`|/)course ([a-z]+)", README, flags=re.M))
    assert named - known == set()


@pytest.mark.skipif(os.name == "nt", reason="continuous integration runs on Linux")
def test_ci_calls_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    check = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    extract = re.search(r"command=\$\((.*?)\)\n", script.read_text(encoding="utf-8"), flags=re.S)
    found = subprocess.run(
        ["bash", "-c", extract.group(1)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == COMMANDS[1].strip()
