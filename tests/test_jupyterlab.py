"""JupyterLab as `course lab` starts it, in a real browser: notebook 01 from the menu to its end."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from course_runs import COURSE, NOTEBOOKS, ROOT, claims, environment

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
SETTINGS = {  # no news from the internet, never a save of the notebook that is tried
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(live_run, tmp_path):
    """The address of a JupyterLab that sees the cache of the live run."""
    for name, values in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    port, token = free_port(), secrets.token_hex(16)
    env = environment(
        live_run.build,
        JUPYTER_TOKEN=token,
        JUPYTERLAB_SETTINGS_DIR=str(tmp_path / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(tmp_path / "workspaces"),
        JUPYTER_RUNTIME_DIR=str(tmp_path / "runtime"),
    )
    # Jupyter asks for this word where it runs as root, as in most containers.
    as_root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    log = (tmp_path / "lab.log").open("w", encoding="utf-8")
    server = subprocess.Popen(
        [*COURSE, "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", *as_root],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}", token
    finally:
        stop(f"http://127.0.0.1:{port}", token, server)
        log.close()


def wait_for(url: str, server: subprocess.Popen, log, seconds: float = 60) -> None:
    """Wait until the server answers; fail with its log where it ends or stays silent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"`course lab` did not answer:\n{log.read_text(encoding='utf-8')[-3000:]}")


def stop(base: str, token: str, server: subprocess.Popen) -> None:
    """Ask the server to shut down with its kernels; end the process started here if it stays."""
    request = urllib.request.Request(
        f"{base}/api/shutdown", method="POST", headers={"Authorization": f"token {token}"}
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
        server.wait(timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture
def page():
    """A page of a headless Chromium."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser found: none of {', '.join(BROWSERS)} is on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, headless=True, args=FLAGS)
        try:
            yield chromium.new_page(viewport={"width": 1400, "height": 1000})
        finally:
            chromium.close()


def test_notebook_01_runs_from_the_menu_and_its_playground_answers(page, lab, live_run):
    base, token = lab
    notebook = NOTEBOOKS[0]
    before = notebook.read_bytes()
    page.goto(f"{base}/lab/tree/notebooks/{notebook.name}?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    # The status is "Idle" only when the kernel is there; a run asked for earlier is dropped.
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    clear_outputs(page)

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.click('li[data-command="runmenu:run-all"]')
    wait_until_all_ran(page, count_code_cells(before), seconds=800)

    assert (
        page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
        ).count()
        == 0
    )
    figures = page.locator(".jp-OutputArea-output img")
    assert figures.count() > 0
    assert all(figures.nth(i).evaluate("e => e.naturalWidth") > 0 for i in range(figures.count()))

    playground = page.locator(".jp-OutputArea-output:has(.jupyter-widgets)").last
    playground.scroll_into_view_if_needed()
    button = playground.locator("button.jupyter-button").first
    shown = playground.inner_text()
    button.click()
    page.wait_for_function(
        "([element, shown]) => element.innerText !== shown",
        arg=[playground.element_handle(), shown],
        timeout=60_000,
    )
    assert notebook.read_bytes() == before
    # In a folder of its own, from the warm cache as from the empty one.
    first = {k: v for k, v in live_run.claims.items() if k.startswith("1.")}
    assert claims(live_run.build / "lab") == first


def count_code_cells(notebook: bytes) -> int:
    cells = json.loads(notebook)["cells"]
    return sum(
        cell["cell_type"] == "code" and bool("".join(cell["source"]).strip()) for cell in cells
    )


def clear_outputs(page) -> None:
    """Empty the committed outputs, so that what is found afterwards was made by this run.

    Asked again until they are gone: a command that comes before the notebook has the focus is lost.
    """
    for _ in range(10):
        page.locator(".jp-Notebook .jp-MarkdownCell").first.click()
        page.get_by_role("menuitem", name="Edit", exact=True).click()
        page.click('li[data-command="editmenu:clear-all"]')
        page.wait_for_timeout(3000)
        if page.locator(".jp-OutputArea-output").count() == 0:
            return
    pytest.fail("the outputs were not cleared in 30 s")


def wait_until_all_ran(page, cells: int, seconds: float) -> None:
    """Wait until the prompt of every code cell reads `[n]`."""
    end = time.monotonic() + seconds
    ran = 0
    while time.monotonic() < end:
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        ran = sum(re.fullmatch(r"\[\d+\]:?", text.strip()) is not None for text in prompts)
        if ran >= cells:
            return
        page.wait_for_timeout(500)
    errors = page.locator(".jp-OutputArea-output[data-mime-type$='stderr']").all_inner_texts()
    pytest.fail(f"{ran} of {cells} cells ran in {seconds:.0f} s; {' '.join(errors)[-2000:]}")
