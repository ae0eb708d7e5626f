"""One notebook through papermill, with a word about each cell and about a failure."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines

from course_lib import CourseError
from course_lib.core.cache import disk_error


class CourseEngine(Engine):
    """papermill's own engine passes on neither an environment nor which cell has begun."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, env, folder, on_cell, **_):
        total = len(nb_man.nb.cells)
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=120,
            coalesce_streams=True,  # of a progress bar its last state
            # its log would tell of a connection without encryption, to this machine itself
            extra_arguments=["--log-level=CRITICAL"],
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell, cell_index: on_cell(cell_index, total),
        )
        client.execute(env=env)


papermill_engines.register("course", CourseEngine)


def execute(
    source: Path,
    target: Path,
    parameters: dict[str, Any],
    env: dict[str, str],
    on_cell: Callable[[int, int], None] = lambda begun, total: None,
) -> None:
    """Run `source` with `parameters` and write it to `target`, whole or not at all.

    A notebook that fails is kept beside it as `*.failed.ipynb`.

    Args:
        env: environment variables of the kernel, beside this process's own.
        on_cell: called with the index of each cell that begins, and their number.

    Raises:
        CourseError: in a few lines: notebook, heading and error of the cell that failed.
    """
    # Another kernel named python3 in the home folder must not stand in for this environment's.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failed = target.with_suffix(".part.ipynb"), target.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            source,
            part,
            parameters,
            engine_name="course",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            env=os.environ | env,
            folder=str(source.parent),
            on_cell=on_cell,
        )
        part.replace(target)
    except papermill.PapermillExecutionError as error:
        part.replace(failed)
        raise CourseError(_describe(error, source, failed)) from error
    except DeadKernelError as error:
        raise CourseError(
            f"{source.name} stopped: its Python process was ended from outside, most likely "
            "because memory ran out; close other programs, use --jobs 1 or a smaller profile, and "
            "run the same command again."
        ) from error
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        part.unlink(missing_ok=True)


def _describe(error: papermill.PapermillExecutionError, source: Path, failed: Path) -> str:
    """Notebook, heading, error and what to do, in a few lines."""
    cells = nbformat.read(failed, as_version=4).cells[: error.cell_index + 2]  # 2 by papermill
    headings = [
        line.lstrip("# ")
        for cell in cells
        for line in cell.source.splitlines()
        if cell.cell_type == "markdown" and line.startswith("#")
    ]
    message = error.evalue.strip().splitlines()[0] if error.evalue.strip() else error.ename
    shown = message if error.ename == "CourseError" else f"{error.ename}: {message}"
    return (
        f"{source.name} failed under “{headings[-1] if headings else 'the beginning'}”:\n"
        f"  {shown}\n"
        f"  The notebook up to there: {failed}\n"
        "  When it is mended, run the same command again: what is finished is not repeated."
    )


def end_kernels() -> None:
    """End the kernels that this process has started; they do not hear its Ctrl-C."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "ipykernel_launcher" in child.cmdline():
                child.kill()
