"""The data card's figures are measured, not remembered: each row of its table is made here again.

`python tests/test_data_card.py` prints the rows as they should stand in data/README.md.
"""

from itertools import islice
from statistics import mean, median, quantiles

import numpy as np
import pytest
from course_runs import ROOT

from course_lib.world import (
    documents,
    exam,
    instructions,
    judge,
    population,
    problems,
    topics,
)

CARD = (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def measure() -> dict[str, str]:
    """The card's rows: what was counted -> the figure as text."""
    known = topics.load_topics()
    corpus = list(islice(documents.documents(0), 2000))
    texts = [text for _, text in corpus]
    prose = [text for kind, text in corpus if kind != "problems"]
    rows = {
        "topics, in subjects": f"{len(known)}, in {len({t.subject for t in known.values()})}",
        "key facts, each in three wordings": f"{sum(len(t.facts) for t in known.values())}",
        "documents: words, median": f"{median(len(text.split()) for text in texts):.0f}",
        "documents: distinct 8-grams": f"{documents.distinct_ngrams(texts):.2f}",
        "documents but the word problems: distinct 8-grams": (
            f"{documents.distinct_ngrams(prose):.2f}"
        ),
    }
    for split in exam.SPLITS[:2]:
        rows[f"exam: items of the split {split!r}"] = f"{len(exam.exam_items(split=split)):,}"
    situations = problems.load_situations()[1]
    for split, found in situations.items():
        rows[f"word problems: situations, {split}"] = str(len(found))
    for split in instructions.SPLITS:
        explain = instructions.explain_prompts(split)
        pairs = {(row["topic"], row["audience"]) for row in explain}
        counts = [len(explain), len(pairs), len(instructions.unsafe_prompts(split))]
        counts.append(len(instructions.safe_prompts(split)))
        what = "explain prompts (topic x audience pairs), unsafe, safe"
        rows[f"distinct prompts, {split}: {what}"] = "{:,} ({}), {}, {}".format(*counts)
    shown = instructions.demonstrations(2000, seed=0, kinds=["explain"])
    scores = [judge.judge(row, row["completion"]).score for row in shown]
    rows["demonstrations: judge's score, mean, best tenth begins at"] = (
        f"{mean(scores):.1f}, {quantiles(scores, n=10)[-1]:.1f}"
    )
    people = population.draw_people(2000, 0)
    probs = population.rating_probs(
        population.opinions(people, [""] * 2000), population.scale("0-100")
    )
    levels, rated = np.arange(101), probs.mean(0)
    centres = probs @ levels
    scatter = (probs @ levels**2 - centres**2).mean()
    rows["population: fields, sentences (themes)"] = "{}, {} ({})".format(
        len(people[0]), len(population.items()) - 1, len(population.facts()["themes"])
    )
    rows["population: share of the variance that the fields explain"] = (
        f"{centres.var() / (centres.var() + scatter):.2f}"
    )
    rows["population: spread of answers of people with the same fields, points"] = (
        f"{scatter**0.5:.0f}"
    )
    rows["population: shares of answers at 0, 50, 100, on a ten"] = ", ".join(
        f"{share:.2f}" for share in (*rated[[0, 50, 100]], rated[::10].sum())
    )
    false = [judge.false_statements(row, row["completion"]) > 0 for row in shown]
    rows["demonstrations that hold a false statement"] = f"{mean(false):.2f}"
    return rows


@pytest.fixture(scope="module")
def measured() -> dict[str, str]:
    return measure()


def test_the_cards_figures_are_what_is_measured(measured):
    missing = [f"| {name} | {value} |" for name, value in measured.items()]
    missing = [row for row in missing if row not in CARD]
    assert not missing, "data/README.md needs these rows:\n" + "\n".join(missing)


def test_the_card_lists_each_planted_property():
    planted = CARD.split("## Planted")[1].lower()
    for words in ("slip", "enthusias", "panel", "skill", "confident", "forum", "cars"):
        assert words in planted


if __name__ == "__main__":
    print("\n".join(f"| {name} | {value} |" for name, value in measure().items()))
