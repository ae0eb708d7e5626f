"""One notebook through papermill, with a word about each cell and about a failure."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from course_lib import CourseError
from course_lib.cache import disk_error
from course_lib.notebooks import heading_before

OnCell = Callable[[int, int], None]  # cells begun, cells in all
_running: set = set()  # clients whose kernels `stop_all` ends


def execute(
    source: Path,
    target: Path,
    parameters: dict[str, Any],
    env: dict[str, str] | None = None,
    on_cell: OnCell = lambda done, total: None,
) -> None:
    """Run `source` with `parameters` and write it to `target`, whole or not at all.

    A notebook that fails is kept beside it as `*.failed.ipynb`.

    Args:
        env: environment variables of the kernel, beside this process's own.

    Raises:
        CourseError: in a few lines: notebook, heading and error of the cell that failed.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines

    # Another kernel named python3 in the home folder must not stand in for this environment's.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    papermill_engines.register("course", _engine())
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.ipynb")
    failed = target.with_suffix(".failed.ipynb")
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
            on_cell=on_cell,
            env=os.environ | (env or {}),
            folder=str(source.parent),
        )
        part.replace(target)
    except papermill.PapermillExecutionError as error:
        part.replace(failed)
        raise CourseError(describe_failure(source, failed, error.ename, error.evalue)) from error
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


def _engine() -> type:
    """papermill's engine with a hook for each cell and a handle on the kernel."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    class CourseEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, on_cell, env, folder, **_):
            start, total = nb_man.cell_start, len(nb_man.nb.cells)

            def cell_start(cell, cell_index=None, **kwargs):
                on_cell(cell_index or 0, total)
                start(cell, cell_index, **kwargs)

            nb_man.cell_start = cell_start
            client = PapermillNotebookClient(
                nb_man,
                timeout=None,
                startup_timeout=120,
                kernel_name=kernel_name,
                # its log would tell of a connection without encryption, to this machine itself
                extra_arguments=["--log-level=ERROR"],
                resources={"metadata": {"path": folder}},
            )
            _running.add(client)
            try:
                return client.execute(env=env)
            finally:
                _running.discard(client)

    return CourseEngine


def stop_all() -> None:
    """End the kernels that are running (after Ctrl-C)."""
    for client in list(_running):
        pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
        if pid and psutil.pid_exists(pid):
            psutil.Process(pid).kill()


def describe_failure(source: Path, failed: Path, ename: str, evalue: str) -> str:
    """Notebook, heading, error and what to do, in a few lines."""
    import nbformat

    cells = nbformat.read(failed, as_version=4).cells
    wrong = [
        i
        for i, cell in enumerate(cells)
        if any(o.output_type == "error" for o in cell.get("outputs", []))
    ]
    where = heading_before(cells, wrong[0]) if wrong else "an unknown cell"
    message = evalue.strip().splitlines()[0] if evalue.strip() else ename
    shown = message if ename == "CourseError" else f"{ename}: {message}"
    return (
        f"{source.name} failed under “{where}”:\n"
        f"  {shown}\n"
        f"  The notebook up to there: {failed}\n"
        "  When it is mended, run the same command again: what is finished is not repeated."
    )
