"""The end of a run: claims against the committed ones, live values against their bands, report."""

import base64
import html
from pathlib import Path

from nbconvert import HTMLExporter
from rich.console import Console
from rich.table import Table

from course_lib import ROOT
from course_lib.cli.run import Outcome, Plan
from course_lib.core.cache import read_json, write_text
from course_lib.core.machine import describe
from course_lib.core.stats import Interval, prediction_interval
from course_lib.kit import tables
from course_lib.kit.claims import Claim, beside_full, load_claims, refuted
from course_lib.kit.results import committed

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid
#bbb;padding:.3rem .6rem;text-align:left;vertical-align:top}img{max-width:100%}
figure{margin:2rem 0}figcaption{color:#444}.bad{color:#a33c00;font-weight:bold}"""


def run_claims(outcomes: list[Outcome]) -> list[Claim]:
    """The claims of a run."""
    return [Claim(**row) for outcome in outcomes for row in outcome.claims]


def refuted_claims(plan: Plan, outcomes: list[Outcome]) -> list[Claim]:
    """Claims of this run that contradict what the committed results of the same effort say."""
    name = "claims.json" if plan.effort == "full" else "claims_live.json"
    path = ROOT / "data" / "results" / name
    if not (plan.is_default and path.exists()):
        return []  # other models or parameters may well give another answer
    return [after for _, after in refuted(load_claims(path), run_claims(outcomes))]


def outside_band(plan: Plan, outcomes: list[Outcome]) -> list[str]:
    """Values of a live run outside the 99.9% prediction interval of the committed live runs."""
    if not (plan.is_default and plan.effort == "live"):
        return []
    found = []
    point = ["claim", "condition", "x", "measure"]
    for outcome in outcomes:
        if outcome.error:
            continue
        groups = committed(outcome.number, "live").groupby(point, sort=False)["value"]
        bands = {key: prediction_interval(group) for key, group in groups if len(group) > 1}
        for row in committed(outcome.number, "live", Path(outcome.folder) / "results").itertuples():
            band = bands.get((row.claim, row.condition, row.x, row.measure))
            if band and not band.low <= row.value <= band.high:
                found.append(
                    f"{row.claim} {row.condition}, x = {row.x}, {row.measure}: {row.value:.3f}, "
                    f"expected {band.low:.3f} to {band.high:.3f}"
                )
    return found


def needs_attention(outside: list[str], contradicted: list[Claim]) -> list[str]:
    """A sentence for each value outside its band and each claim that is refuted."""
    return [f"Outside the band of the committed live runs: {value}." for value in outside] + [
        f"Claim {claim.id} is refuted by this run, though the committed results say that it "
        f"holds: {claim.statement} ({claim.effect:.3f}, target {claim.target})."
        for claim in contradicted
    ]


def show_summary(
    console: Console, plan: Plan, outcomes: list[Outcome], attention: list[str]
) -> None:
    """Claims, times and memory, figures, and what needs attention."""
    if claims := run_claims(outcomes):
        columns = ("claim", "statement", "effect [interval]", "target", "verdict")
        table = Table(*columns, title="Claims")
        for c in claims:
            effect = str(Interval(c.effect, c.low, c.high))
            table.add_row(c.id, c.statement, effect, c.target, c.word)
        console.print(table)
    table = Table("notebook", "seconds", "peak memory", "claims", "figures", "state")
    for notebook, outcome in zip(plan.notebooks, outcomes, strict=True):
        counts = str(len(outcome.claims)), str(len(outcome.figures))
        state = "failed" if outcome.error else "done before" if outcome.reused else "done"
        seconds = f"{outcome.seconds:.0f}"
        table.add_row(notebook.path.stem, seconds, _memory(outcome), *counts, state)
    console.print(table)
    for path in (Path(figure) for outcome in outcomes for figure in outcome.figures):
        inside = path.is_relative_to(ROOT)
        console.print(f"figure {path.relative_to(ROOT).as_posix() if inside else path}")
    for sentence in attention:
        console.print(sentence, style="bold", markup=False)


def _memory(outcome: Outcome) -> str:
    return "" if outcome.peak_memory_gb is None else f"{outcome.peak_memory_gb:.2f} GB"


def write_report(plan: Plan, outcomes: list[Outcome], attention: list[str]) -> Path:
    """`report.html` beside the runs: claims, figures and notes in one file, nothing remote."""
    claims = run_claims(outcomes)
    about = [", ".join(f"{name} {value}" for name, value in describe().items())]
    if plan.changed:
        settings = ", ".join(f"{name} = {value}" for name, value in plan.changed.items())
        about.append(f"Settings that differ from the defaults: {settings}")
    figures = [Path(path) for outcome in outcomes for path in outcome.figures]
    parts = [
        f"<h1>Course run: profile {plan.profile}, effort {plan.effort}, seed {plan.seed}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in about),
        *(f"<p class=bad>{html.escape(sentence)}</p>" for sentence in attention),
        "<h2>Claims</h2>",
        beside_full(claims)._repr_html_() if claims else "<p>No claims were recorded.</p>",
        "<h2>Notebooks</h2>",
        _notebook_table(plan, outcomes),
        "<h2>Figures</h2>",
        *(_figure(path) for path in figures if path.exists()),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Course report</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )
    path = plan.folder / "report.html"
    write_text(path, page)
    return path


def _notebook_table(plan: Plan, outcomes: list[Outcome]) -> str:
    """Times and memory; a title links to the executed notebook as a page of HTML beside it."""
    rows = []
    for notebook, outcome in zip(plan.notebooks, outcomes, strict=True):
        title = html.escape(notebook.title)
        executed = plan.place(notebook) / notebook.path.name
        page = executed.with_suffix(".html")
        if not outcome.error:
            if not (outcome.reused and page.exists()):  # only formulas ask for MathJax
                exporter = HTMLExporter(require_js_url="", jquery_url="", embed_images=True)
                write_text(page, exporter.from_filename(str(executed))[0])
            link = html.escape(page.relative_to(plan.folder).as_posix())
            title = f'<a href="{link}">{title}</a>'
        state = html.escape(outcome.error) or "done"
        rows.append([outcome.number, title, f"{outcome.seconds:.0f}", _memory(outcome), state])
    head = ["", "notebook", "seconds", "peak memory", "state"]
    return tables.Table(head, rows, "")._repr_html_()


def _figure(path: Path) -> str:
    words = read_json(path.with_suffix(".json"))
    image = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(words["alt"])}" src="data:image/png;base64,{image}">'
        f"<figcaption><b>{path.stem}.</b> {html.escape(words['caption'])}</figcaption></figure>"
    )
