"""Figures that repeat byte for byte, results that survive a file, tables that escape."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from course_lib import CourseError
from course_lib.algorithms.dpo import DPOConfig
from course_lib.kit import results
from course_lib.kit.figures import LiveCurve, points, save_figure, series, subplots
from course_lib.kit.results import COLUMNS, Results, committed, select
from course_lib.kit.tables import show_guesses, show_settings, side_by_side


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("COURSE_FIGURES", str(tmp_path / "figures"))
    return SimpleNamespace(
        profile=SimpleNamespace(name="pocket"),
        effort="live",
        seed=0,
        seeds=[0],
        notebook="01",
        parameters={"NUM_PROMPTS": 64},
        results=Results("01", "live"),
        replay=True,
        build=tmp_path / "build",
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the committed results are."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path / "data" / "results"


def fill(rows, seeds, size="m"):
    for seed in seeds:
        for x in (8, 64, 512):
            rows.add("1.3", size, x, seed, "judge score", x**0.5 + 0.01 * seed)
    return rows


def commit(folder):
    fill(Results("01", "full"), range(5)).save(folder)
    fill(Results("01", "live"), range(101, 111)).save(folder)


def test_results_survive_the_file(tmp_path):
    rows = fill(Results("01", "live"), [0, 1])
    rows.add("1.1", "base", "moon landing", 0, "share", 0.25)
    path = rows.save(tmp_path)
    assert path.name == "01_live.csv"
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    back = Results("01", "live")
    back.load(committed("01", "live", tmp_path))
    pd.testing.assert_frame_equal(back.frame(), rows.frame())
    assert back.frame("1.3")["x"].dtype == float  # though the file holds a word among its x
    assert back.frame("1.3", "judge score", "m")["x"].tolist() == [8, 64, 512] * 2


def test_a_cell_run_twice_adds_no_rows():
    rows = fill(fill(Results("01", "live"), [0]), [0])
    assert len(rows.frame()) == 3
    rows.add("1.3", "m", "8", 0, "judge score", 7.0)  # as read from a file
    assert len(rows.frame()) == 3 and rows.frame()["value"][0] == 7.0


def test_a_nan_is_not_recorded():
    with pytest.raises(ValueError):
        Results("01", "live").add("1.1", "m", 1, 0, "loss", float("nan"))


def test_nothing_committed_yet_is_no_error(folder, course):
    assert list(committed("01", "full").columns) == COLUMNS
    assert len(select(committed("01", "full"), "1.3")) == 0
    _, ax = subplots()
    points(ax, course, "1.3", "judge score")
    assert not ax.collections and not ax.lines


def test_a_committed_file_without_a_column_is_named(tmp_path):
    (tmp_path / "01_full.csv").write_text("notebook,claim\n01,1.1\n", encoding="utf-8")
    with pytest.raises(CourseError, match="'condition'"):
        committed("01", "full", tmp_path)


def test_band_and_dots_stand_where_the_numbers_say(folder, course):
    commit(folder)
    fill(course.results, [0])
    _, ax = subplots()
    points(ax, course, "1.3", "judge score", "m", label="m")
    bars = [line for line in ax.lines if line.get_linewidth() == 5]
    line, dots = ax.lines[-2:]
    assert line.get_xdata().tolist() == [8, 64, 512]
    assert line.get_ydata()[0] == pytest.approx(8**0.5 + 0.02)
    assert len(bars) == 3 and bars[0].get_ydata()[0] < 8**0.5 + 1.055 < bars[0].get_ydata()[1]
    assert dots.get_label() == "m"
    assert dots.get_ydata().tolist() == pytest.approx([8**0.5, 8.0, 512**0.5])
    low, high = ax.get_ylim()
    assert all(low < end < high for bar in bars for end in bar.get_ydata())


def test_few_live_runs_are_dots(folder, course):
    fill(Results("01", "live"), range(101, 104)).save(folder)
    _, ax = subplots()
    points(ax, course, "1.3", "judge score", "m")
    assert [line.get_linestyle() for line in ax.lines] == ["None"] * 3  # one x each
    assert ax.lines[0].get_ydata().tolist() == pytest.approx(
        [8**0.5 + s / 100 for s in (101, 102, 103)]
    )


def test_a_path_shows_the_committed_runs_as_lines(folder, course):
    commit(folder)
    fill(course.results, [0])
    _, ax = subplots()
    points(ax, course, "1.3", "judge score", "m", joined=True, label="m")
    live = [line for line in ax.lines if line.get_alpha() == 0.35]
    assert len(live) == committed("01", "live")["seed"].nunique()
    (own,) = [line for line in ax.lines if line.get_markeredgecolor() == "black"]
    assert own.get_label() == "m"


def test_a_path_of_several_seeds_is_their_mean(folder, course):
    commit(folder)
    fill(course.results, [0, 1])
    _, ax = subplots()
    points(ax, course, "1.3", "judge score", "m", joined=True, label="m")
    assert not [line for line in ax.lines if line.get_alpha() == 0.35]
    (own,) = [line for line in ax.lines if line.get_markeredgecolor() == "black"]
    assert own.get_ydata()[0] == pytest.approx(8**0.5 + 0.005)  # a seed adds a hundredth


def test_categories_stand_at_their_positions(folder, course):
    rows = Results("01", "full")
    for seed in range(3):
        for x, value in (("s", 1.0), ("m", 2.0), ("other", 9.0)):
            rows.add("1.3", "size", x, seed, "judge score", value + seed)
    rows.save(folder)
    _, ax = subplots()
    points(ax, course, "1.3", "judge score", positions={"s": 0, "m": 1})
    xs = sorted({float(x) for line in ax.lines for x in line.get_xdata()})
    assert xs == [0.0, 1.0]


def test_no_band_of_the_pocket_models_over_real_ones(folder, course):
    commit(folder)
    course.profile.name = "laptop"
    _, ax = subplots()
    points(ax, course, "1.3", "judge score")
    assert not ax.lines  # no dots either: nothing was run


def draw(course, name="01_score", **more):
    fig, ax = subplots()
    ax.plot([1, 2, 3], [0.1, 0.5, 0.7], **series(0, label="SFT"))
    ax.set(xlabel="examples", ylabel="judge score")
    data = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 0.5, 1 / 3]})
    words = {"caption": "The score rises.", "alt": "One line that rises."} | more
    save_figure(fig, name, course=course, data=data, **words)


def test_a_figure_is_saved_with_what_is_behind_it_and_repeats(tmp_path, course, capsys):
    draw(course)
    first = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    draw(course)
    again = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert sorted(first) == ["01_score.json", "01_score.png", "01_score.svg"]
    assert first == again
    assert capsys.readouterr().out == ""
    assert len(first["01_score.png"]) < 120_000
    record = json.loads(first["01_score.json"])
    assert record["seeds"] == [0] and record["parameters"] == {"NUM_PROMPTS": 64}
    assert record["data"][2] == {"x": 3, "y": 0.333333}
    assert record["caption"] and record["alt"] and record["versions"]["matplotlib"]
    assert b"One line that rises." in first["01_score.svg"]
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_a_run_leaves_the_committed_figures_alone(tmp_path, course):
    course.replay = False
    draw(course)
    assert not (tmp_path / "figures").exists()
    assert len(list((course.build / "figures").iterdir())) == 3


@pytest.mark.parametrize(
    "words", [{"caption": ""}, {"alt": " "}, {"name": "score"}, {"name": "01_A/b"}]
)
def test_a_figure_without_words_is_refused(course, words):
    with pytest.raises(CourseError, match="alt text"):
        draw(course, **words)


def test_a_dense_figure_stays_small(tmp_path, course):
    fig, ax = subplots(figsize=(9, 7))
    noise = pd.DataFrame([[(i * j * 7919) % 997 for i in range(300)] for j in range(300)])
    ax.imshow(noise)
    save_figure(fig, "01_noise", course=course, data=noise.head(1), caption="c", alt="a")
    assert (tmp_path / "figures" / "01_noise.png").stat().st_size < 500_000


def test_the_notebook_gets_a_picture_and_its_description(course, monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: shown.append((data, more)))
    draw(course, alt="One <line> that rises.")
    (image, options), (words, _) = shown
    assert options["metadata"]["image/png"]["alt"] == "One <line> that rises."
    assert image["text/plain"] == "Figure: One <line> that rises."
    assert "One &lt;line&gt; that rises." in words["text/html"]


def test_answers_are_escaped_and_keep_their_lines():
    table = side_by_side(
        [{"prompt": "<script>", "base": "a\nb"}, {"prompt": "x & y", "base": 0.12345}]
    )
    page = table._repr_html_()
    assert "&lt;script&gt;" in page and "<script>" not in page and "x &amp; y" in page
    assert "a\nb" in page and "pre-wrap" in page and "0.123" in page
    assert repr(table).startswith("prompt: <script>\nbase: a\nb")
    assert side_by_side([])._repr_html_()


def test_settings_come_with_their_comments_and_guesses_with_what_came():
    page = repr(show_settings(DPOConfig(beta=0.7)))
    assert "setting: beta\nvalue: 0.7\nmeaning: " in page and "meaning: \n" not in page
    page = repr(show_guesses({"wins": None, "length": "longer"}, [0.5, "82"]))
    assert page == (
        ": wins\nyour guess: \nwhat came: 0.5\n\n: length\nyour guess: longer\nwhat came: 82"
    )


def test_live_curve_shows_the_mean_of_the_last_losses(capsys):
    progress = LiveCurve(2)
    progress({"step": 1, "loss": 2.0})
    progress({"step": 2, "loss": 1.0})
    assert "loss 1.500" in capsys.readouterr().out
