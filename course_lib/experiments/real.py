"""What SmolLM2-135M-Instruct did with notebook 10's survey and the problems of 06 and 08.

`python -m course_lib.experiments.real 10` measures it again and writes `data/results/10_laptop.csv`
(tidy rows) and `10_laptop.json` (model, settings, seconds, machine, texts), which the notebook
shows; with 06 and 08 likewise. One seed, no claim. Cut off, 06 and 08 go on with what is left.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib import ROOT
from course_lib.algorithms import chat, population, search, sft
from course_lib.algorithms.evaluate import pass_at_k
from course_lib.core.cache import read_json, stage, write_text
from course_lib.core.machine import describe, peak_memory_gb
from course_lib.experiments import recipes, solutions, survey_bench
from course_lib.experiments.experiment import Experiment, run
from course_lib.inputs.gsm8k import gsm8k, read_number
from course_lib.inputs.models import add_lora
from course_lib.inputs.smollm2 import GGUF, PACKAGE, SHA256, get_smollm2
from course_lib.kit.course import setup
from course_lib.kit.results import Results, committed, select
from course_lib.kit.tables import Table, side_by_side
from course_lib.world.problems import Problem, problem_set, verify_answer

if TYPE_CHECKING:
    from course_lib.experiments.survey_bench import Bench
    from course_lib.kit.course import Course

RESULTS = ROOT / "data" / "results"
NAME = "SmolLM2-135M-Instruct"

# ---- notebook 10: the survey -------------------------------------------------------------------

SURVEY = {"people": 600}
TUNING = {"num_steps": 100, "batch_size": 4, "learning_rate": 6e-4}
TUNING |= {"gradient_checkpointing": False, "end": True}
TUNED = Experiment("10", recipes.survey_model, survey_bench.measure, live={"LoRA": {}})
THINKERS = 32  # people who are asked for a number directly, and for thoughts before it
DIRECT = "Just a single number."
THINK = "Think step by step about what this person would say, then end with the number."


def run_survey(course: Course) -> dict[str, Any]:
    """Before and after LoRA, the baselines, and thoughts before the answer; settings and texts."""
    bench = survey_bench.load_bench(course, course.seed, survey=SURVEY)
    benches = {course.seed: bench}
    ran = run(course, TUNED, lambda _: _log, by=benches, survey=SURVEY, **TUNING)
    course.results.save(RESULTS)  # should it be cut off
    survey_bench.add_others(course, ran, benches)
    survey_bench.record_figures(course, ran, bench)
    course.results.save(RESULTS)
    said = {name: ran.items[name][course.seed].whole["texts"] for name in ("before", "LoRA")}
    first = bench.rows[bench.rows["item"] == ""]
    shown = [
        {"asked": " ".join(each["content"] for each in messages), "said": int(rating)}
        | {f"{n}, {way}": texts[way][i] for n, texts in said.items() for way in ("greedy", "t=1")}
        for i, (messages, rating) in enumerate(first[["messages", "rating"]].to_numpy()[:6])
    ]
    parts = {"train": bench.train, "test": bench.test}
    counts = {f"{name} people": len(part.people) for name, part in parts.items()}
    settings = SURVEY | TUNING | counts | {"thinkers": THINKERS, "question with thoughts": THINK}
    return {"settings": settings, "texts": shown, "thoughts": think(course, bench)}


def think(course: Course, bench: Bench) -> list[dict[str, Any]]:
    """The model before tuning, asked for a number directly, or for thoughts and then a number.

    Recorded: the share of valid answers, and the RMSE in points where a failure is an answer in the
    middle of the scale. Returns some texts.
    """
    model, tokenizer = recipes.load(course, recipes.surveyed(course))
    rows, low, high = (
        bench.rows[bench.rows["item"] == ""][:THINKERS],
        bench.test.low,
        bench.test.high,
    )
    human, shown = rows["rating"].to_numpy(), []
    direct = list(rows["messages"])
    ways = {"direct": (direct, population.first_integer, 8)}
    asked = [[p[0], p[1] | {"content": p[1]["content"].replace(DIRECT, THINK)}] for p in direct]
    ways["thoughts first"] = asked, population.last_integer, 100
    for name, (prompts, read, longest) in ways.items():
        for t in (0.0, 1.0):
            options = {"temperature": t, "seed": course.seed, "max_new_tokens": longest}
            options |= {"batch_size": 64}
            given = population.ask_numbers(model, tokenizer, prompts, low, high, read, **options)
            valid = np.isfinite(given[0])
            filled = np.where(valid, given[0], (low + high) / 2)
            error = np.sqrt(np.mean((filled - human) ** 2)) * bench.points
            for measure, value in {"success": valid.mean(), "rmse": error}.items():
                course.results.add("thinking", name, t, course.seed, measure, value)
            shown += [{"way": name, "t": t, "text": text} for text in given[1][:2]]
    return shown


# ---- notebook 06: word problems ----------------------------------------------------------------

NUM_PROBLEMS = {"world": 24, "GSM8K": 4}  # the first of the world's test problems, and of GSM8K's
NUM_SAMPLES = 16  # solutions of each
ASK = 'Work it out in short steps. End with "The answer is" and the number.'
SAMPLING = {"temperature": 0.6, "max_new_tokens": 100, "batch_size": 64}


def solve(
    model: Any, tokenizer: Any, problems: Sequence[Any], n: int, seed: int, **sampling: Any
) -> list[list[str]]:
    """`n` solutions of each problem (`text`, `answer`), as texts: (P, n)."""
    asked = [f"{problem.text}\n{ASK}" for problem in problems]
    options = SAMPLING | {"num_generations": n, "seed": seed} | sampling
    texts = chat.ask(model, tokenizer, asked, **options)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def samples(folder: str, loaded: Any, problems: Sequence[Any], n: int, seed: int) -> dict[str, Any]:
    """`n` solutions of some problems as "texts", and the "seconds" of one core that they took.

    By the model of a folder, which is `loaded` with its tokenizer.
    """
    settings = SAMPLING | {"n": n, "seed": seed, "ask": ASK}
    with stage("real-solutions", settings, [folder, [p.text for p in problems]]) as entry:
        if entry.new:
            start = time.process_time()
            texts = solve(*loaded, problems, n, settings["seed"])
            spent = round(time.process_time() - start, 1)
            entry.write("texts.json", {"texts": texts, "seconds": spent})
    return read_json(entry.folder / "texts.json")


def accuracy(problems: Sequence[Any], solved: Sequence[Sequence[str]]) -> dict[str, float]:
    """Shares of problems solved with n samples of each, (P, n) texts, and of texts without answer.

    The answer is what `read_number` finds; a vote is `search.majority` of these.
    """
    n, answers = len(solved[0]), [[read_number(text) for text in row] for row in solved]
    both = list(zip(answers, problems, strict=True))
    right = np.array([[answer == problem.answer for answer in row] for row, problem in both])
    votes = [search.majority(row) == problem.answer for row, problem in both]
    found = {"one sample": right.mean(), f"majority of {n}": np.mean(votes)}
    found[f"pass@{n}"] = pass_at_k(right, n)
    found["no answer"] = np.mean([answer is None for row in answers for answer in row])
    return {name: float(value) for name, value in found.items()}


def run_problems(course: Course) -> dict[str, Any]:
    """Solutions of the world's problems by their steps, and of GSM8K's; settings and texts."""
    shown, seconds = [], 0.0
    start = course.model("instruct")
    loaded = recipes.load(course, start)
    sets = {
        "world": solutions.held_out(NUM_PROBLEMS["world"]),
        "GSM8K": gsm8k(NUM_PROBLEMS["GSM8K"]),
    }
    for name, problems in sets.items():
        seeds = 1000 * course.seed + np.arange(len(problems))
        each = zip(problems, seeds.tolist(), strict=True)
        kept = [samples(start, loaded, [p], NUM_SAMPLES, seed) for p, seed in each]
        solved, seconds = [k["texts"][0] for k in kept], seconds + sum(k["seconds"] for k in kept)
        kinds = [len(p.steps) if name == "world" else "all" for p in problems]
        for kind in dict.fromkeys([*sorted(set(kinds)), "all"]):
            here = [i for i, each in enumerate(kinds) if kind in (each, "all")]
            found = {"problems": len(here)}
            found |= accuracy([problems[i] for i in here], [solved[i] for i in here])
            if name == "world":  # where only its own sentence "The answer is 12." counts
                strict = [verify_answer(problems[i], text) for i in here for text in solved[i]]
                found["one sample, own form"] = np.mean(strict)
            for measure, value in found.items():
                course.results.add("problems", name, kind, course.seed, measure, value)
            if kind != "all" or name != "world":
                shown.append(_most_solved([(problems[i], solved[i]) for i in here]))
                if name != "world":  # it is fetched, and not copied
                    shown[-1]["problem"] = f"one of {name}"
    settings = {"samples": NUM_SAMPLES, "ask": ASK} | SAMPLING | NUM_PROBLEMS
    return {"core_seconds": round(seconds), "settings": settings, "texts": shown}


def _most_solved(rows: Sequence[tuple[Any, Sequence[str]]]) -> dict[str, Any]:
    """Of some problems the one with the most right samples, or else the first: two solutions."""
    found = []
    for problem, texts in rows:
        answers = [read_number(text) for text in texts]
        right = [text for text, a in zip(texts, answers, strict=True) if a == problem.answer]
        row = {"problem": problem.text, "answer": str(problem.answer), "right": len(right)}
        row["of the majority"] = texts[answers.index(search.majority(answers))]
        found.append(row | {"the first right one": right[0] if right else ""})
    return max(found, key=lambda row: row["right"])


# ---- notebook 08: its own right solutions ------------------------------------------------------

OWN = {"taught": 64, "tested": 24, "steps": 1, "solutions": 8}  # problems, and samples of each
LEARNING = {"num_steps": 40, "batch_size": 4, "gradient_checkpointing": False}
BLOCK = 8  # problems that are solved together


def solved(course: Course, folder: str, problems: Sequence[Problem], n: int) -> list[list[str]]:
    """`n` solutions of each problem by the model of a folder, as texts: (P, n)."""
    loaded, found = recipes.load(course, folder), []
    for i in range(0, len(problems), BLOCK):
        found += samples(folder, loaded, problems[i : i + BLOCK], n, i)["texts"]
        print(f"{len(found)} of {len(problems)} problems", flush=True)
    return found


def tuned_on(course: Course, pairs: Sequence[tuple[Problem, str]]) -> str:
    """The folder of the model after LoRA on (problem, solution)."""
    start = course.model("instruct")
    config = recipes.sft_config(course, start, lora=True, seed=course.seed, **LEARNING)
    asked = [f"{problem.text}\n{ASK}" for problem, _ in pairs]
    with stage("own-solutions", config, [start, asked, [text for _, text in pairs]]) as entry:
        if entry.new:
            torch.manual_seed(course.seed)  # of LoRA's matrices
            model, tokenizer = recipes.load(course, start)
            talks = [
                [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
                for question, (_, text) in zip(asked, pairs, strict=True)
            ]
            rows = [chat.render_chat(tokenizer, talk) for talk in talks]
            model = add_lora(model, r=recipes.LORA_RANK)
            recipes.keep(entry, model, tokenizer, sft.train_sft(model, rows, config, _log))
    return str(entry.folder)


def run_own_solutions(course: Course) -> dict[str, Any]:
    """LoRA on its own right solutions, and on as many that nobody has checked."""
    start, n, steps = course.model("instruct"), OWN["solutions"], (OWN["steps"],)
    taught = problem_set(OWN["taught"], 300 + course.seed, steps, "train")
    tested = problem_set(OWN["tested"], 8, steps, "test")
    written = zip(taught, solved(course, start, taught, n), strict=True)
    pairs = [(problem, text) for problem, row in written for text in dict.fromkeys(row)]
    right = [(problem, text) for problem, text in pairs if read_number(text) == problem.answer]
    unchecked = random.Random(course.seed).sample(pairs, len(right))
    models = {"before": start, "own right solutions": tuned_on(course, right)}
    models["own solutions, unchecked"] = tuned_on(course, unchecked)
    texts: list[dict[str, str]] = [{"problem": problem.text} for problem in tested[:3]]
    for name, folder in models.items():
        found = solved(course, folder, tested, n)
        measures = accuracy(tested, found)
        measures["words"] = np.mean([len(text.split()) for row in found for text in row])
        for measure, value in measures.items():
            course.results.add("own", name, 0, course.seed, measure, value)
        for row, written in zip(texts, found, strict=False):
            row[name] = written[0]
    counts = {"distinct solutions": len(pairs), "right ones": len(right)}
    return {"settings": OWN | SAMPLING | LEARNING | counts, "texts": texts}


# ---- what the notebooks show -------------------------------------------------------------------


def table(notebook: str, claim: str, *measures: str, only: Sequence[str] = ()) -> Table:
    """Committed means of a claim by condition and x; those of `measures`, or of all."""
    rows = select(committed(notebook, "laptop", RESULTS), claim)
    rows = rows[rows["condition"].isin(only)] if only else rows
    x = [f"{x:g}" if isinstance(x, float) else x for x in rows["x"]]
    found = rows.assign(x=x).pivot_table("value", ["condition", "x"], "measure", sort=False)
    return side_by_side(
        {"": name, "at": x}
        | {m: float(row[m]) if row[m] == row[m] else "" for m in measures or found}
        for (name, x), row in found.iterrows()
    )


def about(notebook: str, texts: str = "texts") -> Table | None:
    """The committed texts of a notebook as a table; who wrote them, when they are printed."""
    found = read_json(RESULTS / f"{notebook}_laptop.json")
    print(f"{found['model']}, {found['core_seconds'] / 60:.0f} minutes of one core:", end=" ")
    print(", ".join(f"{name} {value}" for name, value in found["settings"].items()))
    return side_by_side(found[texts])


# ---- the files ---------------------------------------------------------------------------------


def _log(row: dict[str, Any]) -> None:
    print({name: round(value, 3) for name, value in row.items()}, flush=True)


RUNS = {"06": run_problems, "08": run_own_solutions, "10": run_survey}


def main(notebook: str) -> None:
    """Run a notebook's part on the real model and write what came of it."""
    start = time.process_time()
    course = setup("laptop", notebook=notebook, instruct_model=str(get_smollm2() / "instruct"))
    course.results = Results(notebook, "laptop")
    found = RUNS[notebook](course)
    note = {
        "notebook": notebook,
        "profile": "laptop",
        "model": NAME,
        "package": PACKAGE,
        "weights_sha256": SHA256[GGUF],
        "seconds": round(time.perf_counter() - course.started),
        "core_seconds": round(time.process_time() - start),
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "machine": describe(),
    }
    course.results.save(RESULTS)
    text = json.dumps(note | found, indent=1, ensure_ascii=False) + "\n"
    write_text(RESULTS / f"{notebook}_laptop.json", text)


if __name__ == "__main__":
    from course_lib.experiments import real  # by its name, which the keys of the cache need

    real.main(sys.argv[1])
