"""A researcher's own survey: every usual layout is read, all that is wrong is said at once."""

import re

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from course_lib import ROOT, CourseError
from course_lib.cli.main import app
from course_lib.cli.run import make_plan, notebook_key
from course_lib.inputs.survey import load_survey, split_people
from course_lib.inputs.survey_profile import cross_validated, describe, noise_floor

WIDE = {
    "about": "You answer as the person described, in a survey about commuting by bicycle.",
    "question": "How likely are you to ride to work, from 0 to 10?",
    "person": "no",
    "fields": {
        "years": {"bands": [18, 30, 50]},
        "lives": {"column": "home", "levels": {"1": "in town", "2": "outside"}},
        "café": {},
    },
    "scale": [0, 10],
    "initial": "before",
    "items": {"lane": "The city builds a lane.", "rain": "It rains on one day in three."},
}
HEAD = "no,years,home,café,before,lane,rain"
ROWS = [
    f"p{i},{18 + 3 * i},{1 + i % 2},yes,{i % 11},{(i + 3) % 11},{(i + 9) % 11}" for i in range(12)
]
LONG = {k: v for k, v in WIDE.items() if k != "initial"} | {"item": "seen", "rating": "says"}
LONG_HEAD = "no,years,home,café,seen,says"
LONG_ROWS = [
    f"p{i},{18 + 3 * i},{1 + i % 2},yes,{item},{(i + shift) % 11}"
    for i in range(12)
    for item, shift in (("", 0), ("lane", 3), ("rain", 9))
]


@pytest.fixture
def load(tmp_path):
    """Write a survey (text or bytes; rows replaced by number) with its codebook, and read it."""

    def load(text=None, book=WIDE, replaced=None, **changes):
        rows = [HEAD, *ROWS] if book is WIDE else [LONG_HEAD, *LONG_ROWS]
        for number, row in (replaced or {}).items():
            rows[number - 1] = row
        text = "\n".join(rows) + "\n" if text is None else text
        (tmp_path / "mine.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        page = yaml.safe_dump(book | changes, allow_unicode=True, sort_keys=False)
        (tmp_path / "mine.yaml").write_text(page, encoding="utf-8")
        return load_survey(tmp_path / "mine.csv", tmp_path / "mine.yaml")

    return load


def told(load, *arguments, **options) -> str:
    with pytest.raises(CourseError) as found:
        load(*arguments, **options)
    return str(found.value)


def same(one, other):
    assert one.people == other.people and one.person_ids == other.person_ids
    assert one.answers.equals(other.answers) and (one.weights == other.weights).all()


TEXT = "\n".join([HEAD, *ROWS]) + "\n"


def test_a_wide_survey(load):
    survey = load()
    assert survey.people[0] == {"years": "18-29", "lives": "in town", "café": "yes"}
    assert survey.people[11]["years"] == "50+" and survey.people[4]["years"] == "30-49"
    assert survey.person_ids == [f"p{i}" for i in range(12)] and (survey.low, survey.high) == (
        0,
        10,
    )
    assert list(survey.answers.columns) == ["person", "item", "text", "rating"]
    first = survey.answers[survey.answers.person == 2]
    assert first["item"].tolist() == ["", "lane", "rain"] and first.rating.tolist() == [2, 5, 0]
    assert first.text.tolist() == ["", *WIDE["items"].values()]
    assert survey.weights.tolist() == [1] * 12 and not survey.notes


def test_no_item_is_always_the_first_that_is_read(load):
    after = load().answers.query("item != ''")
    assert set(after.groupby("person")["item"].first()) == set(WIDE["items"])


def test_a_long_survey_holds_the_same(load):
    same(load(book=LONG), load())
    named = [row.replace(",yes,,", ",yes,start,") for row in LONG_ROWS]
    same(load("\n".join([LONG_HEAD, *named]), LONG, initial="start"), load())
    # the persona stands in the first of a person's rows alone
    once = [
        r if r.split(",")[4] == "" else f"{r.split(',')[0]},,,,{','.join(r.split(',')[4:])}"
        for r in LONG_ROWS
    ]
    same(load("\n".join([LONG_HEAD, *once]), LONG), load())


GOOD = {
    "BOM": TEXT.encode("utf-8-sig"),
    "Windows-1252": TEXT.encode("cp1252"),
    "UTF-16": TEXT.encode("utf-16"),
    "CRLF": TEXT.replace("\n", "\r\n"),
    "CR": TEXT.replace("\n", "\r"),
    "semicolons": TEXT.replace(",", ";"),
    "tabs": TEXT.replace(",", "\t"),
    "bars": TEXT.replace(",", "|"),
    "sep=": "sep=;\n" + TEXT.replace(",", ";"),
    "quotes": "\n".join(",".join(f'"{c}"' for c in r.split(",")) for r in [HEAD, *ROWS]),
    "spaces": TEXT.replace(",", " ,\u00a0"),
    "blank rows": TEXT.replace("\n", "\n\n,,,,,,\n"),
    "trailing separators": TEXT.replace("\n", ",,\n"),
    "pandas floats": TEXT.replace(",1,yes", ",1.0,yes").replace(",2,yes", ",2.0,yes"),
    "decimal commas": "\n".join(
        f"{r},0" if i else r
        for i, r in enumerate([HEAD.replace(",", ";"), *(r.replace(",", ";") for r in ROWS)])
    ),
    "decomposed accents": TEXT.replace("é", "e\u0301"),
}


@pytest.mark.parametrize("layout", GOOD)
def test_the_layout_does_not_count(load, layout):
    same(load(GOOD[layout]), load())


def test_lines_of_two_encodings(load):
    lines = [line.replace("yes", "süß") for line in TEXT.splitlines()]
    mixed = b"\n".join(line.encode("cp1252" if i % 2 else "utf-8") for i, line in enumerate(lines))
    survey = load(mixed)
    assert {person["café"] for person in survey.people} == {"süß"}
    assert survey.notes == ["6 of 13 lines are not UTF-8 and were read as Windows-1252"]


def test_answers_in_words(load):
    words = ["Never", "Rarely", "Often"]
    rows = [f"p{i},30,1,yes,{words[i % 3]},{words[(i + 1) % 3].upper()}, 2" for i in range(12)]
    text = "\n".join([HEAD, *rows])
    book = {k: v for k, v in WIDE.items() if k != "scale"}
    survey = load(text, book, labels={"never": 1, "rarely": 2, "often": 3})
    assert (survey.low, survey.high) == (1, 3)
    assert survey.answers.rating.tolist()[:6] == [1, 2, 2, 2, 3, 2]
    said = told(
        load,
        text.replace("RARELY", "RARLEY", 1),
        book,
        labels={"never": 1, "rarely": 2, "often": 3},
    )
    assert "row 2, column 'lane': 'RARLEY' is no label" in said


def test_weights(load):
    weigh = [f"{r},{'0,5' if i else '1,5'}" for i, r in enumerate(ROWS)]
    text = "\n".join(r.replace(",", ";", 7) for r in [HEAD + ",w", *weigh])
    survey = load(text, weight="w")
    assert survey.weights.mean() == pytest.approx(1) and survey.weights[0] == 3 * survey.weights[1]
    assert "weights" not in survey.people[0] and len(survey.people[0]) == 3
    said = told(
        load,
        text.replace(";1,5", ";-1").replace("p3;27", "p3;").replace(";0,5\np5", ";\np5"),
        weight="w",
    )
    assert "'-1' is not above 0" in said and "'' is empty: give every row a weight" in said


def test_empty_cells(load):
    survey = load(replaced={2: "p0,,1,NA,,4,NA", 3: "p1,,,,,,"})
    assert survey.person_ids[0] == "p0" and "p1" not in survey.person_ids
    assert survey.people[0] == {"years": "no answer", "lives": "in town", "café": "no answer"}
    assert survey.answers[survey.answers.person == 0]["item"].tolist() == ["lane"]
    assert survey.notes == [
        "without an answer: 5 of 36 cells",
        "without any answer: 1 of 12 people, left out",
    ]
    survey = load(replaced={2: "p0,20,1,-9,1,2,-9"}, missing=["-9"])
    assert survey.people[0]["café"] == "no answer" and len(survey.answers) == 35


def test_repeated_answers(load):
    twice = {4: "p0,18,1,yes,lane,9"}
    said = told(load, book=LONG, replaced=twice)
    assert "row 4, 'p0' answers 'lane' in an earlier row already; delete one" in said
    survey = load(book=LONG, replaced=twice, repeats=True)
    assert survey.answers[survey.answers.person == 0].rating.tolist() == [0, 3, 9]


WRONG = {  # row, what stands there, what is said
    "level": (3, "p1,20,7,yes,1,2,3", "row 3, column 'home': '7' is no level"),
    "band": (3, "p1,17,1,yes,1,2,3", "row 3, column 'years': '17' lies below the lowest of"),
    "number": (3, "p1,old,1,yes,1,2,3", "row 3, column 'years': 'old' is no number"),
    "range": (3, "p1,20,1,yes,1,12,3", "row 3, column 'lane': '12' is no whole number from"),
    "fraction": (3, "p1,20,1,yes,1,1.5,3", "row 3, column 'lane': '1.5' is no whole number"),
    "no id": (3, ",20,1,yes,1,2,3", "row 3, column 'no': '' is empty: give every"),
    "same id": (3, "p0,20,1,yes,1,2,3", "row 3, column 'no': 'p0' stands in an earlier row"),
    "short": (3, "p1,20,1,yes,1,2", "row 3, 6 cells where the header has 7"),
    "long": (3, "p1,20,1,yes,sir,1,2,3", "row 3, 8 cells where the header has 7"),
    "missing column": (1, HEAD.replace("lane", "lanes"), "row 1, column 'lane' is missing (did"),
    "twice": (1, HEAD.replace("rain", "lane"), "row 1, column 'lane' stands twice"),
    "quote inside": (3, 'p1,20,1,"yes"sir,1,2,3', "the quotes of row 3 do not balance"),
    "quote open": (13, 'p1,20,1,"yes,1,2,3', "the quotes of row 13 do not balance"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said(load, kind):
    row, text, says = WRONG[kind]
    assert says in told(load, replaced={row: text})


def test_everything_is_said_at_once(load):
    rows = [
        text
        for row, text, _ in WRONG.values()
        if row == 3 and "quote" not in text and '"' not in text
    ]
    said = told(load, "\n".join([HEAD.replace("rain", "lane"), ROWS[0], *rows]))
    assert said.count("\n") == 10 and said.count("column 'lane' stands twice") == 1
    many = [f"p{i},{i}y,9,yes,11,1,1" for i in range(60)]
    said = told(load, "\n".join([HEAD, *many]))
    assert "row 2 and 59 more, column 'home': '9' is no level" in said
    assert said.count("\n") == 21 and said.endswith("and 42 more")


def test_rows_of_a_person_that_differ(load):
    said = told(load, book=LONG, replaced={3: "p0,20,2,yes,lane,3"})
    assert (
        "row 3, 'lives' of 'p0' is 'outside', but 'in town' in an earlier row; make them one"
        in said
    )
    said = told(load, book=LONG, replaced={3: "p0,20,1,yes,lanes,3"})
    assert "row 3, column 'seen': 'lanes' is no item (did you mean 'lane'?)" in said
    said = told(load, book=LONG, initial="start")
    assert "row 2 and 11 more, column 'seen': '' is empty: expected 'start' or an item" in said


def test_a_comma_that_may_be_thousands_is_no_guess(load):
    rows = [r.replace(f",{18 + 3 * i},", f',"{1 + i},500",') for i, r in enumerate(ROWS)]
    income = WIDE["fields"] | {"years": {"bands": [0, 1000, 5000]}}
    said = told(load, "\n".join([HEAD, *rows]), fields=income)
    assert "row 2, column 'years': '1,500' is a fraction or thousands; say `decimal" in said
    assert load("\n".join([HEAD, *rows]), fields=income, decimal=",").people[0]["years"] == "0-999"
    said = told(
        load,
        replaced={3: "p1,20.5,1,yes,1,2,3", 4: "p2,21.5,1,yes,1,2,3", 5: 'p3,"22,5",1,yes,1,2,3'},
    )
    assert "row 5, column 'years': '22,5' has not the decimal mark '.'" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (HEAD.encode(), "has a header and no rows"),
        (b"PK\x03\x04\x00\x00", "is neither UTF-8 nor Windows-1252"),
        (HEAD.encode() + b"\np\x81", "line 2 is neither UTF-8"),
        (f"{HEAD}\n{ROWS[0]}".encode(), "has 1 people with an answer; expected 10"),
    ],
)
def test_files_that_hold_no_survey(load, content, says):
    assert says in told(load, content)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CourseError, match=r"none.yaml cannot be read"):
        load_survey(tmp_path / "none.csv", tmp_path / "none.yaml")


def test_a_codebook_is_checked_as_a_whole(load, tmp_path):
    said = told(load, scales=[0, 10], fields={"years": {"bend": [1]}}, labels={"much": "a lot"})
    assert "scales: Extra inputs are not permitted (did you mean 'scale'?)" in said
    assert "fields.years.bend" in said and "labels.much" in said
    assert "needs the columns" in told(load, book=LONG, rating="")
    book = {k: v for k, v in WIDE.items() if k != "scale"}
    assert "expected `scale: [0, 100]`" in told(load, TEXT, book)
    assert "must rise" in told(load, scale=[10, 0])
    for text, says in (
        ("about: x\nabout: y\n", "line 2: the key 'about' stands twice"),
        ("about: [x\n", "line 1: expected"),
        ("{[a]: b}", "line 1: "),
        ("a: \x01", "unacceptable character"),
        ("- a", "codebook: Input should be"),
    ):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(CourseError, match=says):
            load_survey(tmp_path / "mine.csv", tmp_path / "mine.yaml")


def test_people_never_stand_in_two_parts(load):
    rows = [f"p{i},{18 + i % 40},{1 + i % 2},yes,{i % 11},{i % 7},{i % 5}" for i in range(200)]
    survey = load("\n".join([HEAD, *rows]))
    parts = split_people(survey, seed=3)
    assert [len(part.people) for part in parts] == [160, 20, 20]
    ids = [i for part in parts for i in part.person_ids]
    assert len(set(ids)) == 200 and sum(len(p.answers) for p in parts) == len(survey.answers)
    whole = {
        i: (p, g)
        for i, p, g in zip(
            survey.person_ids, survey.people, survey.answers.groupby("person").rating, strict=True
        )
    }
    for part in parts:
        assert set(part.answers.person) == set(range(len(part.people)))
        for i, person, (_, group) in zip(
            part.person_ids, part.people, part.answers.groupby("person").rating, strict=True
        ):
            assert whole[i][0] == person and whole[i][1][1].tolist() == group.tolist()
    assert [p.person_ids for p in split_people(survey, seed=3)] == [p.person_ids for p in parts]
    assert split_people(survey, seed=4)[2].person_ids != parts[2].person_ids
    with pytest.raises(CourseError, match="are too few"):
        split_people(survey, (1000, 1, 1))


def test_the_readme_is_right(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own survey")[1]
    tables, books = (re.findall(rf"```{kind}\n(.+?)```", text, re.S) for kind in ("csv", "yaml"))
    (tmp_path / "codebook.yaml").write_text(books[0], encoding="utf-8")
    more = [f"L-{i};{1940 + i};2;dark;1;{i};;" for i in range(10)]
    (tmp_path / "wide.csv").write_text(tables[0] + "\n".join(more), encoding="utf-8")
    wide = load_survey(tmp_path / "wide.csv", tmp_path / "codebook.yaml")
    person = {"year of birth": "1970-1989", "home": "in town", "roast": "light"}
    assert wide.people[0] == person and wide.people[2]["year of birth"] == "no answer"
    assert wide.answers.groupby("person").rating.apply(list)[2] == [50, 50, 30]
    (tmp_path / "codebook.yaml").write_text(books[1], encoding="utf-8")
    more = [f"L-{i},2,start,surely" for i in range(10)]
    (tmp_path / "long.csv").write_text(tables[1] + "\n".join(more), encoding="utf-8")
    long = load_survey(tmp_path / "long.csv", tmp_path / "codebook.yaml")
    assert (long.low, long.high) == (1, 4) and long.people[0] == {"home": "in town"}
    assert long.answers.rating.tolist()[:3] == [2, 3, 4]


@pytest.fixture
def planted(load):
    """2,000 people whose place of living explains a quarter of the variance; the lane adds 1."""
    rng = np.random.default_rng(0)
    home = rng.integers(1, 3, 2000)
    before = np.clip(np.round(5 + 2 * (home - 1.5) + rng.normal(0, 3**0.5, 2000)), 1, 9).astype(int)
    rows = [
        f"p{i},40,{h},yes,{b},{b + 1},{b}"
        for i, (h, b) in enumerate(zip(home, before, strict=True))
    ]
    return load("\n".join([HEAD, *rows]))


def test_what_the_fields_explain(planted):
    first = planted.answers[planted.answers["item"] == ""]
    explained, spread = cross_validated(planted, first)
    home = np.array([person["lives"] == "outside" for person in planted.people])
    assert explained == pytest.approx(np.corrcoef(home, first.rating)[0, 1] ** 2, abs=0.01)
    assert spread == pytest.approx(first.rating.std(ddof=0))


def test_the_noise_floor(planted):
    first = planted.answers[planted.answers["item"] == ""]
    size, floor, found = noise_floor(planted, first)
    assert size == 200 and floor == pytest.approx(8 / 200)  # nine levels in use
    assert found.mean() == pytest.approx(floor, rel=0.15)
    twice = planted.answers[planted.answers["item"] != "lane"]
    _, floor, found = noise_floor(planted, twice)  # two answers that are always the same
    assert found.mean() == pytest.approx(2 * floor, rel=0.15)


def test_the_page(planted, tmp_path):
    page = describe(planted)
    assert page == describe(planted) and len(page.splitlines()) < 60
    assert (
        "2,000 people (weighted as 2,000), 2,000 initial answers, 4,000 after one of 2 items"
        in page
    )
    assert "lane: 1.000 [1.000, 1.000] (2000 answers)" in page and "rain: 0.000" in page
    for word in ("R² of the fields 0.2", "noise floor", "mean 5.", "\n        10 "):
        assert word in page
    shown = CliRunner().invoke(app, ["survey", "check", *map(str, sorted(tmp_path.glob("mine.*")))])
    assert (
        shown.exit_code == 0
        and page in shown.output
        and "course run 10 --set survey=" in shown.output
    )


def test_surveys_without_one_of_the_two_kinds_of_answers(load):
    before = load("\n".join([HEAD, *ROWS]), items={})
    assert "No item was answered" in describe(before) and "after an item" not in describe(before)
    after = load("\n".join([HEAD, *ROWS]), initial="")
    assert "Initial answers:" not in describe(after) and set(after.answers["item"]) == {
        "lane",
        "rain",
    }
    alike = load("\n".join([HEAD, *(f"p{i},40,1,yes,5,5,5" for i in range(12))]))
    assert "R² of the fields 0.00" in describe(alike)


def test_a_run_takes_a_survey_by_its_content_and_refuses_a_wrong_one(load, tmp_path, monkeypatch):
    load()
    monkeypatch.chdir(tmp_path)
    settings = {"survey": "mine.csv", "codebook": "mine.yaml"}

    def key():
        plan = make_plan(["10"], settings=settings)
        assert plan.parameters["10"]["SURVEY"] == str(tmp_path / "mine.csv")
        return notebook_key(plan, plan.notebooks[0])

    before = key()
    assert key() == before
    rows = (tmp_path / "mine.csv").read_text(encoding="utf-8")
    (tmp_path / "mine.csv").write_text(rows.replace(",yes,", ",no,"), encoding="utf-8")
    assert key() != before
    (tmp_path / "mine.csv").write_text(rows.replace("p3,", "p4,"), encoding="utf-8")
    with pytest.raises(CourseError, match="p4"):
        key()
