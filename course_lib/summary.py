"""The end of a run: claims against the committed ones, live values against their bands, report."""

import base64
import html
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib import ROOT
from course_lib.cache import build_dir, write_text
from course_lib.run import Outcome, Plan, read_claims

if TYPE_CHECKING:
    from course_lib.claims import Claim

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid
#bbb;padding:.3rem .6rem;text-align:left;vertical-align:top}img{max-width:100%}
figure{margin:2rem 0}figcaption{color:#444}.bad{color:#a33c00;font-weight:bold}"""


def as_claims(rows: list[dict]) -> list["Claim"]:
    """Rows of a claims file as `Claim`s; further keys of a committed row are left out."""
    from course_lib.claims import Claim

    names = [f.name for f in fields(Claim)]
    return [Claim(**{name: row[name] for name in names}) for row in rows]


def refuted_claims(plan: Plan, outcomes: list[Outcome]) -> list["Claim"]:
    """Claims of this run that contradict what the committed results of the same effort say."""
    from course_lib.claims import refuted

    if not plan.is_default:
        return []  # other models or parameters may well give another answer
    name = "claims.json" if plan.effort == "full" else "claims_live.json"
    committed = as_claims(read_claims(ROOT / "data" / "results" / name))
    run = as_claims([row for outcome in outcomes for row in outcome.claims])
    return [after for _, after in refuted(committed, run)]


def outside_band(plan: Plan, outcomes: list[Outcome]) -> list[str]:
    """Values of a live run outside the 99.9% prediction interval of the committed live runs."""
    if not (plan.is_default and plan.effort == "live"):
        return []
    from course_lib.results import committed as committed_results
    from course_lib.stats import prediction_interval

    found = []
    for outcome in outcomes:
        committed = committed_results(outcome.number, "live")
        own = committed_results(outcome.number, "live", build_dir() / "results")
        if outcome.error or own.empty or committed.empty:
            continue
        where = ["claim", "condition", "x", "measure"]
        bands = {
            tuple(map(str, key)): prediction_interval(group)
            for key, group in committed.groupby(where)["value"]
            if len(group) > 1
        }
        for row in own.itertuples():
            band = bands.get(tuple(str(getattr(row, name)) for name in where))
            if band and not band.low <= row.value <= band.high:
                found.append(
                    f"{row.claim} {row.condition}, x = {row.x}, {row.measure}: {row.value:.3f}, "
                    f"expected {band.low:.3f} to {band.high:.3f}"
                )
    return found


def write_report(plan: Plan, outcomes: list[Outcome], outside: list[str]) -> Path:
    """`build/report.html`: one file with the claims, figures and notes of a run, nothing remote."""
    from course_lib.claims import verdict_table
    from course_lib.machine import describe

    claims = as_claims([row for outcome in outcomes for row in outcome.claims])
    refuted = {c.id for c in refuted_claims(plan, outcomes)}
    pages = {o.number: _notebook_page(plan, o) for o in outcomes}
    parts = [
        f"<h1>Course run: profile {plan.profile}, effort {plan.effort}, seed {plan.seed}</h1>",
        f"<p>{html.escape(', '.join(f'{k} {v}' for k, v in describe().items()))}</p>",
        _settings(plan),
        "<h2>Claims</h2>",
        verdict_table(claims)._repr_html_() if claims else "<p>No claims were recorded.</p>",
    ]
    if refuted:
        parts.append(
            f"<p class=bad>Refuted, though the committed results say that they hold: "
            f"{', '.join(sorted(refuted))}</p>"
        )
    parts.append("<h2>Notebooks</h2>" + _notebook_table(plan, outcomes, pages))
    if outside:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in outside)
        parts.append(
            "<h2>Outside their band</h2><p>Values of this run outside the 99.9% prediction "
            f"interval of the committed live runs:</p><ul>{items}</ul>"
        )
    parts.append("<h2>Figures</h2>")
    parts += [_figure(Path(path)) for outcome in outcomes for path in outcome.figures]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Course report</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )
    path = build_dir() / "report.html"
    write_text(path, page)
    return path


def _settings(plan: Plan) -> str:
    changed = dict(plan.overrides)
    for values in plan.parameters.values():
        changed |= values
    if not changed:
        return ""
    shown = ", ".join(f"{k} = {v}" for k, v in changed.items())
    return f"<p>Settings that differ from the defaults: {html.escape(shown)}</p>"


def _notebook_table(plan: Plan, outcomes: list[Outcome], pages: dict[str, Path | None]) -> str:
    rows = []
    for notebook, outcome in zip(plan.notebooks, outcomes, strict=True):
        page = pages[outcome.number]
        title = html.escape(notebook.title)
        if page:
            link = Path(os.path.relpath(page, build_dir())).as_posix()
            title = f'<a href="{html.escape(link)}">{title}</a>'
        memory = "" if outcome.peak_memory_gb is None else f"{outcome.peak_memory_gb:.2f}"
        state = html.escape(outcome.error) if outcome.error else "done"
        cells = [outcome.number, title, f"{outcome.seconds:.0f}", memory, state]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("", "notebook", "seconds", "peak memory (GB)", "state")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _notebook_page(plan: Plan, outcome: Outcome) -> Path | None:
    """The executed notebook as HTML beside it (made offline; only formulas ask for MathJax)."""
    from nbconvert import HTMLExporter

    path = next(n.path.name for n in plan.notebooks if n.number == outcome.number)
    source = plan.folder / path
    if outcome.error or not source.exists():
        return None
    target = source.with_suffix(".html")
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        exporter = HTMLExporter(require_js_url="", jquery_url="", embed_images=True)
        write_text(target, exporter.from_filename(str(source))[0])
    return target


def _figure(path: Path) -> str:
    if not path.exists():
        return ""
    about = path.with_suffix(".json")
    words = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    image = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(words.get("alt", path.stem))}" '
        f'src="data:image/png;base64,{image}">'
        f"<figcaption>{html.escape(words.get('caption', path.stem))}</figcaption></figure>"
    )
