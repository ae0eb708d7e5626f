"""The `course` command. Heavy imports happen inside the commands, so that `--help` is quick."""

import os
import shutil
import subprocess
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from course_lib import ROOT, CourseError, check_checkout
from course_lib.cli import survey

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(
    help="LLM post-training as experiments. Start with `course run`, then `course lab`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Real data sets for the profiles laptop and gpu.", no_args_is_help=True)
world = typer.Typer(help="Look inside the pocket world.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(world, name="world")
app.add_typer(survey.app, name="survey")

Numbers = Annotated[
    list[str] | None, typer.Argument(help="Notebook numbers, such as 01 02; all if none is given.")
]
ProfileOption = Annotated[str, typer.Option(help="pocket (offline, CPU), laptop or gpu.")]
EffortOption = Annotated[str, typer.Option(help="live (minutes, one seed) or full (five seeds).")]


@app.command()
def run(
    notebooks: Numbers = None,
    profile: ProfileOption = "pocket",
    effort: EffortOption = "live",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A notebook's parameter or base_model=PATH."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The one seed of everything.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Notebooks at once; one a core if not given.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is done.")] = False,
) -> None:
    """Run notebooks into build/, end with the claims, the times and a report.

    What is done (same notebook, parameters, library) is not repeated. The exit code is 1 if a
    notebook failed, or refuted a claim that the committed results of the same effort say holds.
    """
    from course_lib.cli.notebooks import parse_settings
    from course_lib.cli.run import make_plan

    plan = make_plan(notebooks, profile, effort, seed, parse_settings(set_ or []), jobs)
    raise typer.Exit(_run(plan, fresh))


def _run(plan, fresh: bool) -> int:
    """Run a plan, show and write its summary; returns the exit code."""
    from course_lib.cli import report
    from course_lib.cli.run import only_one, run_plan

    with only_one(plan.folder):
        try:
            outcomes = run_plan(plan, console, fresh)
        except KeyboardInterrupt:
            console.print(
                "Stopped. Finished notebooks are kept; the same command goes on from here."
            )
            return 130
        refuted = report.refuted_claims(plan, outcomes)
        attention = report.needs_attention(report.outside_band(plan, outcomes), refuted)
        report.show_summary(console, plan, outcomes, attention)
        console.print(f"report {report.write_report(plan, outcomes, attention)}")
    return 1 if refuted or any(outcome.error for outcome in outcomes) else 0


@app.command("list")
def list_() -> None:
    """The notebooks: number, question, minutes, figures."""
    from course_lib.cli.notebooks import find_notebooks

    table = Table("", "question", "minutes", "figures")
    for nb in find_notebooks():
        figures = [p.stem for p in sorted((ROOT / "figures").glob(f"{nb.number}_*.png"))]
        table.add_row(nb.number, nb.title, nb.minutes, "\n".join(figures))
    console.print(table)


@app.command()
def figures(notebooks: Numbers = None) -> None:
    """Redraw all figures from the committed results, in seconds and without training."""
    from course_lib.cli.committed import redraw
    from course_lib.cli.notebooks import find_notebooks
    from course_lib.pretraining.cards import draw_abilities

    for notebook in find_notebooks(notebooks):
        redraw(notebook)
    if not notebooks:
        draw_abilities()
        typer.echo("00_pocket_models: drawn from data/models/pretraining.csv")


@app.command()
def reference(
    notebooks: Numbers = None,
    effort: EffortOption = "live",
    runs: Annotated[int, typer.Option(help="Live runs, each with another seed.")] = 10,
) -> None:
    """Make the committed results (data/results) of the pocket profile; resumable, run by run."""
    from course_lib.cli.committed import make_reference
    from course_lib.cli.run import only_one

    with only_one(ROOT / "build" / "reference"):
        for path in make_reference(notebooks, effort, runs):
            typer.echo(f"wrote {path}")


@app.command()
def doctor(
    profile: ProfileOption = "pocket",
    online: Annotated[bool, typer.Option("--online", help="Also ask the hub.")] = False,
) -> None:
    """What this machine can run, and what to do about what is missing."""
    from course_lib.cli.doctor import examine

    table = Table("", "found", "", "what to do")
    for finding in examine(profile, online):
        sign = {"": "ok", None: ""}.get(finding.remedy, "missing")
        table.add_row(finding.what, finding.value, sign, finding.remedy)
    console.print(table)


@app.command()
def pretrain(
    size: Annotated[str, typer.Argument(help="s, m or l.")],
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on; as shipped if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and documents.")] = 0,
    ship: Annotated[
        bool, typer.Option("--ship", help="Then measure it and put it into data/models.")
    ] = False,
) -> None:
    """Pretrain a pocket model on the world's documents; resumable."""
    from course_lib.core.checks import check_choice
    from course_lib.pretraining.pretrain import PretrainConfig
    from course_lib.pretraining.pretrain import pretrain as train

    check_choice("SIZE", size, ("s", "m", "l"))
    config = PretrainConfig(size=size, seed=seed, **({"tokens": tokens} if tokens else {}))
    typer.echo(f"model in {train(config, progress=print)}")
    if ship:
        from course_lib.pretraining import cards

        cards.evaluate_snapshots(size)
        for folder in cards.ship(size):
            typer.echo(f"model and card in {folder}")
        cards.draw_abilities()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on notebook 01; further options go to it (--no-browser, --port 8889)."""
    from course_lib.cli.notebooks import find_notebooks
    from course_lib.cli.run import threads_for

    check_checkout()
    notebook = find_notebooks()[0].path
    command = [sys.executable, "-m", "jupyterlab", str(notebook)]
    command += [f"--ServerApp.root_dir={notebook.parent.parent}", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    try:
        env = os.environ | threads_for(1)
        raise typer.Exit(subprocess.run([*command, *context.args], env=env).returncode)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also pretraining runs and downloaded data.")
    ] = False,
) -> None:
    """Remove what can be made again (build/), after saying what it is and how large."""
    from course_lib.core.cache import build_dir

    costly = set() if everything else {"pretrain", "data", "reference"}
    paths = [p for p in sorted(build_dir().glob("*")) if p.name not in costly]
    if not paths:
        typer.echo(f"Nothing to remove in {build_dir()}.")
        return
    for path in paths:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        typer.echo(f"{sum(p.stat().st_size for p in files) / 1e6:10.1f} MB  {path}")
    if yes or typer.confirm("Remove these?"):
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@data.command("list")
def data_list() -> None:
    """The data sets: name, what it is, rows, licence, whether it is here."""
    from course_lib.inputs.download import SETS, downloads_dir

    table = Table("name", "what", "rows", "licence", "here")
    for name, about in SETS.items():
        here = "yes" if (downloads_dir() / name).is_dir() else ""
        table.add_row(name, about.title, about.rows, about.licence, here)
    console.print(table)


@data.command("get")
def data_get(name: Annotated[str, typer.Argument(help="A name of `course data list`.")]) -> None:
    """Download a data set and check it (COURSE_DATA_BASE: another place to fetch it from)."""
    from course_lib.inputs.download import data_folder

    typer.echo(f"{name} is in {data_folder(name, progress=True)}")


@world.command("show")
def world_show(
    what: Annotated[
        str,
        typer.Argument(
            help="A topic (moon_landing), topics, problem, forum, article, survey, explainer, "
            "quiz, dialogue, exam, instructions or judge."
        ),
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed gives other samples.")] = 0,
) -> None:
    """Print samples of the pocket world."""
    from course_lib.world.samples import show

    typer.echo(show(what, n, seed))


def main() -> None:
    """Entry point: an error that a user can mend is one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):  # Windows consoles may have another encoding
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app()
    except CourseError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
