"""What is shown: figures with their data, reference bands, the live curve.

Heavy imports (pandas, matplotlib) happen inside functions, since the command line uses this too.
"""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
import platform
import re
import sys
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib import CourseError
from course_lib.core.cache import figures_dir, write_text
from course_lib.core.stats import prediction_interval, t_interval
from course_lib.kit.results import committed, select
from course_lib.kit.tables import noted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_RUNS = 8  # below, no useful interval
MAX_PNG_BYTES = 120_000
# Okabe and Ito's colours, ordered so that neighbours differ in lightness; each series also has its
# own marker and dash, so that a figure reads in grayscale.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
DASHES = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 3)), "-."]


STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "svg.hashsalt": "course",  # else every save has other ids
    "svg.fonttype": "none",  # text stays text: small files that can be searched and read aloud
}


def subplots(*args, **options) -> tuple[Figure, Any]:
    """`plt.subplots` in the course's one style, which stays on; options as there."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)  # titles and labels look it up when they are drawn
    return plt.subplots(*args, **{"figsize": (7, 3.6), "layout": "constrained", **options})


def series(order: int, **options) -> dict[str, Any]:
    """Colour, marker and dash of the series number `order`, for `ax.plot(x, y, **series(0))`."""
    look = {"color": COLORS, "marker": MARKERS, "linestyle": DASHES}
    return {**{name: values[order % len(values)] for name, values in look.items()}, **options}


def points(
    ax: Axes,
    course,
    claim: str,
    measure: str,
    condition: str | None = None,
    *,
    order: int = 0,
    positions: Mapping | None = None,
    distance: str | None = None,
    joined: bool | None = None,
    label: str | None = None,
) -> None:
    """Draw this run's values as outlined dots, on the band of the committed results.

    The series has the look number `order`; `positions` maps the x of a row to its place on the
    axis, for categories. With a `distance`, the name of a measure, the place is its value (of "kl"
    the square root): each run's own, and the mean over the full runs. `joined` None joins the
    committed means unless there are positions; True is for paths: this run's dots are joined, too,
    and each committed live run is a thin line. Of a run with several seeds a path is their mean,
    and the live runs are left out. The committed results are about the pocket models, so there is
    a band under the pocket profile alone, and only for what has been committed.
    """
    frames = [committed(course.notebook, effort) for effort in ("full", "live")]
    frames.append(course.results.frame())
    full, live, own = (select(frame, claim, measure, condition) for frame in frames)
    averaged = bool(joined) and own["seed"].nunique() > 1
    if distance:
        far = [select(frame, claim, distance, condition) for frame in frames]
        full = _apart(full, far[0], distance, ["x"])
        live = _apart(live, far[1], distance, ["seed", "x"])
        own = _apart(own, far[2], distance, ["x"] if averaged else ["seed", "x"])
    else:
        full, live, own = (_place(rows, positions) for rows in (full, live, own))
    if averaged:
        own = own.groupby("x", as_index=False)[["at", "value"]].mean().assign(seed=0)
        live = live[:0]
    lines = positions is None if joined is None else joined
    if course.profile.name == "pocket":
        _band(ax, full, live, series(order), lines, paths=bool(joined))
        if label and own.empty and len(full):  # in the legend as it is drawn: a line, or a dash
            look = {"marker": ""} if lines else {"marker": "_", "ms": 14, "linestyle": "none"}
            ax.plot([], [], **series(order, label=label) | look)
    look = series(order, markeredgecolor="black", zorder=5, lw=1)
    look |= {} if joined else {"linestyle": "none"}
    for _, run in own.sort_values("x").groupby("seed"):
        ax.plot(run["at"], run["value"], label=label, **look)
        label = None  # once


def known(course, claim: str) -> set[str]:
    """The conditions of a claim that this run has measured, or the committed full runs have."""
    frames = course.results.frame(claim), course.full_runs(claim)
    return {name for frame in frames for name in frame["condition"]}


def _place(frame: pd.DataFrame, positions: Mapping | None) -> pd.DataFrame:
    """`frame` with a column `at`: where its x stands on the axis (`positions` for categories)."""
    at = frame["x"] if positions is None else frame["x"].map(positions)
    return frame.assign(at=at.astype(float)).dropna(subset=["at"])


def _apart(rows: pd.DataFrame, far: pd.DataFrame, distance: str, keys: list[str]) -> pd.DataFrame:
    """`rows` with a column `at`: the mean value of `far` at the same keys, of "kl" its root."""
    at = far.groupby(keys)["value"].mean()
    at = at.clip(lower=0) ** 0.5 if distance == "kl" else at
    return rows.merge(at.rename("at").reset_index(), on=keys)


def _band(
    ax: Axes,
    full: pd.DataFrame,
    live: pd.DataFrame,
    look: dict[str, Any],
    joined: bool,
    paths: bool,
) -> None:
    """Committed results: the mean of the full runs with its 95% t-interval over seeds.

    A line and a shade where `joined`, else points with whiskers. Of the live runs thin lines where
    they are `paths`; else thick pale bars, the 95% prediction interval of one of them; dots where
    they are few.
    """
    color = look["color"]
    if paths:
        for _, run in live.sort_values("x").groupby("seed"):
            ax.plot(run["at"], run["value"], color=color, alpha=0.35, lw=1)
        live = live[:0]
    for at, values in live.groupby("at")["value"]:
        if len(values) < FEW_RUNS:
            ax.plot([at] * len(values), values, ".", color=color, alpha=0.35)
        else:
            _, low, high = prediction_interval(values, level=0.95)
            ax.plot([at, at], [low, high], color=color, alpha=0.35, lw=5, solid_capstyle="butt")
    groups = [(at, values) for at, values in full.groupby("at")["value"] if len(values) > 1]
    if not groups:
        return
    at = [at for at, _ in groups]
    mean, low, high = np.transpose([t_interval(values) for _, values in groups])
    if joined and len(at) > 1:
        ax.fill_between(at, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(at, mean, color=color, linestyle=look["linestyle"])
    else:
        ax.errorbar(at, mean, [mean - low, high - mean], color=color, fmt="_", ms=14, capsize=4)


def beside_trl(course, trainer: str, each: str, unit: str, **words: str) -> None:
    """The figure "trl": losses by step of our loop, a wide line, and of TRL's `trainer`, dots.

    A step reads `each`, the loss is per `unit`; for a "pair" a coin's loss is drawn, too. `words`
    are caption and alt text, where they differ from the usual ones.
    """
    said = f"The same {each.split()[-1]}, order and settings in our loop (wide line) and in TRL "
    usual = {"caption": said + "(squares).", "alt": "Two curves that lie on each other."}
    rows = course.results.frame("trl")
    wide = rows.pivot_table(index="x", columns="condition", values="value")
    fig, ax = subplots(figsize=(7, 2.8))
    ax.plot(wide["our loop"], **series(0, lw=5, alpha=0.35, marker="", label="our loop"))
    ax.plot(wide["TRL"], **series(1, ms=4, label=f"TRL's {trainer}"))
    if unit == "pair":
        ax.axhline(np.log(2), color="black", lw=1, ls=":", label="log 2, a coin")
    else:
        ax.set_ylim(0, None)
    ax.set(xlabel=f"step ({each} each)", ylabel=f"loss (nats per {unit})")
    ax.legend()
    save_figure(fig, f"{course.notebook}_trl", course=course, data=rows, **usual | words)


def save_figure(
    fig: Figure, name: str, *, course, data: pd.DataFrame | str, caption: str, alt: str
) -> None:
    """Write `name`.png, .svg and .json and show the figure in the notebook.

    The JSON holds what is behind the figure: data, seeds, parameters, versions. Saving twice gives
    the same bytes. figures/ holds what `course figures` draws from committed results; any other run
    writes to a folder of its own in build/, so that it leaves the checkout as it is.

    Args:
        name: like "01_answers": the notebook, then words in lower case.
        data: what is drawn, one row a mark; or the claim whose recorded rows are drawn.
        caption: what to see, and what bands and bars mean. alt: what the picture looks like.
    """
    import matplotlib.pyplot as plt

    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name) or not caption.strip() or not alt.strip():
        raise CourseError(
            f"The figure {name!r} cannot be saved: it needs a name like '01_answers', a caption "
            "and an alt text."
        )
    caption = noted(caption)
    data = course.results.frame(data) if isinstance(data, str) else data
    if data.empty and course.profile.name != "pocket":  # there the committed runs are drawn
        plt.close(fig)
        print(f"{name}: no figure, for nothing that it shows is in this run")
        return
    record = {
        "name": name,
        "notebook": course.notebook,
        "caption": caption,
        "alt": alt,
        "profile": course.profile.name,
        "effort": course.effort,
        "seeds": course.seeds,
        "parameters": course.parameters,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("numpy", "matplotlib")},
        # through pandas' writer, which knows numpy's types and rounds the same on every machine
        "data": json.loads(data.to_json(orient="records", double_precision=6)),
    }
    folder = figures_dir() if course.replay else course.build / "figures"
    text = json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n"
    write_text(folder / f"{name}.json", text)  # also makes the folder
    about, png = {"Title": caption, "Description": alt}, io.BytesIO()
    fig.savefig(png, format="png", dpi=110, metadata={"Software": None, **about})
    fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None, **about})
    plt.close(fig)  # else the notebook shows it a second time
    image = _small(png.getvalue())
    (folder / f"{name}.png").write_bytes(image)
    _display(image, name, caption, alt)


def _small(png: bytes) -> bytes:
    """`png`, in 128 colours if it is over `MAX_PNG_BYTES`: notebooks carry their figures."""
    if len(png) <= MAX_PNG_BYTES:
        return png
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def _display(png: bytes, name: str, caption: str, alt: str) -> None:
    """Show in a notebook: a PNG, which every viewer shows, and the alt text also as words below.

    Lab drops pictures inside HTML from notebooks it does not trust, and ignores the alt metadata
    that nbconvert reads; so the description stands in the caption as well.
    """
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    image = {"image/png": base64.b64encode(png).decode("ascii"), "text/plain": f"Figure: {alt}"}
    display(image, raw=True, metadata={"image/png": {"alt": alt}})
    words = (
        f"<p><b>{html.escape(name)}.</b> {html.escape(caption)}</p>"
        f"<details><summary>The figure in words</summary>{html.escape(alt)}</details>"
    )
    display({"text/html": words, "text/plain": f"{name}. {caption}"}, raw=True)


class LiveCurve:
    """A progress bar that shows the loss: pass it as `progress=`, called with the row of each step.

    The cell that uses it is tagged `nbval-ignore-output`.
    """

    def __init__(self, total: int):
        from tqdm import tqdm

        # stdout, since notebooks paint stderr red; plain text, since widgets do not survive saving
        self._bar = tqdm(total=total, file=sys.stdout, mininterval=0.5, ascii=True, ncols=78)
        self._recent = deque(maxlen=10)

    def __call__(self, row: Mapping[str, Any]) -> None:
        self._recent.append(float(row["loss"]))
        mean = sum(self._recent) / len(self._recent)
        self._bar.set_postfix_str(f"loss {mean:.3f}", refresh=False)
        self._bar.update()
        if self._bar.n >= self._bar.total:
            self._bar.close()
