"""`course survey`: a researcher's own survey, looked at before an hour is spent on it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Your own survey, for notebook 10.", no_args_is_help=True)


@app.callback()
def survey() -> None:
    """Your own survey, for notebook 10."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The survey, a CSV of any usual layout.")],
    codebook: Annotated[Path, typer.Argument(help="What its columns mean, in YAML: see README.")],
) -> None:
    """Check a survey and its codebook, and print a page on what any model could learn from it.

    All problems are listed, each with row, column, value and remedy. The page holds the
    distribution of the answers, how far the persona fields explain them, the mean shift by item,
    and the noise floor at this size. Nothing is trained.
    """
    from course_lib.inputs.survey import load_survey
    from course_lib.inputs.survey_profile import describe

    typer.echo(describe(load_survey(file, codebook)))
    typer.echo(f"\nNext: course run 10 --set survey={file} --set codebook={codebook}")
