"""Solutions of word problems: written by a model, checked step by step, judged by verifiers.

What takes time is made once and kept (`core.cache`): samples, verifiers, beams. A longer list of
problems, or a larger pool, begins with the shorter one, sample by sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib.algorithms import chat, loop, search, sft, verifier
from course_lib.algorithms.reward import RewardConfig
from course_lib.algorithms.sampling import generate
from course_lib.core.cache import read_json, stage
from course_lib.experiments.recipes import Progress, keep, load, pinned, sft_config
from course_lib.inputs.models import load_tokenizer
from course_lib.world.problems import (
    Problem,
    check_steps,
    extract_answer,
    problem_prompt,
    problem_set,
    solution,
)

if TYPE_CHECKING:
    from course_lib.kit.course import Course

STEPS = (1, 2, 3, 4)  # of the problems, each as often as the others
MAX_TOKENS = 100  # of a solution
BLOCK = 64  # samples of a problem that are drawn together
TRAIN, PER_PROBLEM = 960, 2  # problems, and solutions of each, that a verifier learns from
FRESH = 8  # samples of the instruct model, beside its drawn out solutions
NUM_SOLUTIONS = 480  # worked ones, for the instruct model
FORCED = " The answer is"
WAIT = " wait,"


def held_out(n: int) -> list[Problem]:
    """The first `n` of the list of test problems, the same for every seed."""
    return problem_set(n, 6, STEPS, "test")


def prompts_of(tokenizer: Any, problems: Sequence[Problem], asked: bool = False) -> list[list[int]]:
    """The problems as ids, for a base model to go on from, or `asked` of an instruct model."""
    if asked:
        return [chat.render_prompt(tokenizer, problem.text) for problem in problems]
    start, _ = chat.document_ends(tokenizer)
    texts = [problem_prompt(problem) for problem in problems]
    return [start + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def ids_with(tokenizer: Any, *marks: str) -> list[int]:
    """The ids of tokens that hold one of the marks, and those that end a document."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = {i for i, text in enumerate(texts) if any(mark in text for mark in marks)}
    return sorted(found.union(chat.stop_ids(tokenizer)))


class Reader:
    """Reads solutions as ids: their steps, their answers, where they end."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ends = ids_with(tokenizer, ".", "\n")  # of a step
        self.stops = ids_with(tokenizer, "\n\n")  # of a solution: the next problem would follow
        self._ends, self._stops = set(self.ends), set(self.stops)

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def steps(self, ids: list[int]) -> list[list[int]]:
        return search.split_steps(ids, self._ends)

    def answer(self, ids: list[int]) -> int | None:
        return extract_answer(self.text(ids))

    def finished(self, ids: list[int]) -> bool:
        """Whether an answer was given, or the document or its paragraph has ended."""
        if len(ids) >= MAX_TOKENS or (ids and ids[-1] in self._stops):
            return True
        text = self.text(ids)
        return "The answer" in text and extract_answer(text) is not None

    def solution(self, ids: list[int]) -> list[int]:
        """The ids up to the first answer; a document goes on with other problems."""
        kept: list[int] = []
        for step in self.steps(ids):
            kept += step
            if self.finished(kept):
                break
        return kept

    def judged(self, problem: Problem, prompt: list[int], ids: list[int]) -> dict[str, Any]:
        """The solution as a row for a verifier, every step labelled by the exact checker."""
        texts = [self.text(step).strip() for step in self.steps(ids)]
        labels = list(map(int, check_steps(problem, texts)))
        return self.row(prompt, ids) | {"labels": labels}

    def row(self, prompt: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
        """The solution as a row for a verifier without labels, a span for each step."""
        ends = np.cumsum([len(step) for step in self.steps(ids)]) + len(prompt) - 1
        ids = [*prompt, *ids]
        return {"input_ids": ids, "start": len(prompt), "ends": ends.astype(int).tolist()}


def reader_of(course: Course, role: str = "base") -> Reader:
    """The reader of what the model in a role writes."""
    name = course.model(role)
    return Reader(load_tokenizer(name, course.profile.revisions.get(name)))


def sampled(
    course: Course, model: str, problems: Sequence[Problem], n: int, seed: int, **how: Any
) -> list[list[list[int]]]:
    """`n` solutions of each problem as ids, each up to its answer.

    `how`: `asked` of an instruct model, else gone on with; `temperature`, 1 unless it is given.
    """
    return read_json(_sampled(course, model, problems, n, seed, **how) / "ids.json")


def _sampled(
    course: Course,
    model: str,
    problems: Sequence[Problem],
    n: int,
    seed: int,
    *,
    asked: bool = False,
    temperature: float = 1.0,
) -> Path:
    """The folder of `sampled`: "ids.json", and in "likelihood.json" their mean log-probability."""
    settings = {"max_new_tokens": MAX_TOKENS, "batch_size": course.profile.batch["generate"]}
    settings |= {"n": n, "seed": seed, "temperature": temperature}
    inputs = [pinned(course, model), [problem.text for problem in problems], asked]
    with stage("solutions", settings, inputs) as entry:
        if entry.new:
            policy, tokenizer = load(course, model)
            reader, prompts = Reader(tokenizer), prompts_of(tokenizer, problems, asked)
            ends = {"eos_ids": reader.stops, "pad_id": tokenizer.pad_token_id}
            found: list[list[list[int]]] = [[] for _ in problems]
            likely: list[list[float]] = [[] for _ in problems]
            # In blocks with a seed of their own: a larger pool so begins with a smaller one.
            for block in range(0, settings.pop("n"), BLOCK):
                size = min(BLOCK, n - block)
                drawn = settings | {"num_generations": size, "seed": 1000 * seed + block}
                out = generate(policy, prompts, **drawn, **ends)
                for i, (ids, logprobs) in enumerate(zip(out.lists, out.logprobs, strict=True)):
                    found[i // size].append(reader.solution(ids))
                    mean = logprobs[: max(1, len(found[i // size][-1]))].mean()
                    likely[i // size].append(round(float(mean), 5))
            entry.write("ids.json", found)
            entry.write("likelihood.json", likely)
    return entry.folder


def verifier_config(seed: int) -> RewardConfig:
    """The settings of a verifier's training."""
    return RewardConfig(learning_rate=1e-4, batch_size=32, num_epochs=1, seed=seed)


def train_verifier(course: Course, kind: str, seed: int, progress: Progress | None = None) -> str:
    """The folder of a verifier made from the base model: of the "outcome", or of the "process".

    It learns from the base model's own solutions of training problems, labelled by the world.
    """
    base = course.model("base")
    problems = problem_set(TRAIN, 100 + seed, STEPS, "train")
    config = verifier_config(seed)
    written = sampled(course, base, problems, PER_PROBLEM, seed)
    with stage(f"verifier-{kind}", config, inputs=[pinned(course, base), written]) as entry:
        if entry.new:
            model, tokenizer = load(course, base)
            rows = labelled(tokenizer, problems, written, kind)
            bar = progress(loop.steps_of(config, len(rows))) if progress else None
            keep(entry, model, tokenizer, verifier.train_verifier(model, rows, config, bar))
    return str(entry.folder)


def labelled(
    tokenizer: Any, problems: Sequence[Problem], written: list[list[list[int]]], kind: str
) -> list[dict[str, Any]]:
    """All solutions as rows for a verifier; for the "outcome" as one span, with the end's label."""
    reader, prompts = Reader(tokenizer), prompts_of(tokenizer, problems)
    every = zip(problems, prompts, written, strict=True)
    rows = [reader.judged(p, prompt, ids) for p, prompt, row in every for ids in row]
    last = 0 if kind == "process" else -1
    return [row | {name: row[name][last:] for name in ("ends", "labels")} for row in rows]


def judge_solutions(
    course: Course,
    folder: str,
    prompts: Sequence[list[int]],
    written: Sequence[list[int]],
    reader: Reader,
    kind: str,
) -> np.ndarray:
    """A verifier's score (n,) of each solution: of the whole, or of its weakest step."""
    model, _ = load(course, folder)
    rows = [(tuple(prompt), tuple(ids)) for prompt, ids in zip(prompts, written, strict=True)]
    distinct = list(dict.fromkeys(rows))  # many samples say the same
    read = [reader.row(*one) for one in distinct]
    first = 0 if kind == "process" else -1
    probs = verifier.verify(model, [row | {"ends": row["ends"][first:]} for row in read])
    found = dict(zip(distinct, (each.min() for each in probs), strict=True))
    return np.array([found[row] for row in rows])


def make_pool(
    course: Course, problems: Sequence[Problem], n: int, seed: int, verifiers: dict[str, str]
) -> tuple[search.Pool, list[list[list[int]]]]:
    """The base model's pool of `n` solutions a problem, scored by each verifier, and its ids.

    "likelihood" is the model's own mean log-probability, which is known when a sample is drawn.
    """
    reader = reader_of(course)
    kept = _sampled(course, course.model("base"), problems, n, seed)
    written = read_json(kept / "ids.json")
    prompts = prompts_of(reader.tokenizer, problems)
    flat = [ids for row in written for ids in row]
    repeated = [prompt for prompt in prompts for _ in range(n)]
    inputs = [written, *verifiers.values()]
    with stage("scores", {"kinds": list(verifiers)}, inputs=inputs) as entry:
        if entry.new:
            for kind, folder in verifiers.items():
                found = judge_solutions(course, folder, repeated, flat, reader, kind)
                entry.write(f"{kind}.json", found.round(6).tolist())
    scores = {
        kind: np.array(read_json(entry.folder / f"{kind}.json")).reshape(-1, n)
        for kind in verifiers
    } | {"likelihood": np.array(read_json(kept / "likelihood.json"))}
    return pool_of(reader, problems, prompts, written, scores), written


def pool_of(
    reader: Reader,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    written: list[list[list[int]]],
    scores: dict[str, np.ndarray] | None = None,
) -> search.Pool:
    """Solutions (P, N) as ids, read."""
    return search.Pool(
        answers=[[reader.answer(ids) for ids in row] for row in written],
        truth=[problem.answer for problem in problems],
        prompt=np.array([len(prompt) for prompt in prompts]),
        generated=np.array([[len(ids) for ids in row] for row in written]),
        scores=scores or {},
    )


def greedy(
    course: Course, role: str, problems: Sequence[Problem]
) -> tuple[np.ndarray, search.Cost]:
    """Is the likeliest solution of the model in a role right, (P,); and its cost."""
    reader = reader_of(course, role)
    written = sampled(course, course.model(role), problems, 1, 0, temperature=0)
    pool = pool_of(reader, problems, prompts_of(reader.tokenizer, problems), written)
    return pool.right[:, 0], search.Cost(pool.prompt, pool.generated[:, 0])


def beams(
    course: Course, problems: Sequence[Problem], n: int, seed: int, folder: str | None
) -> tuple[np.ndarray, search.Cost]:
    """Is the answer right that beam search finds with `n` candidates a step, (P,); and its cost.

    n / 4 beginnings are kept, each goes on in 4 ways (Snell et al.'s). The verifier is the process
    verifier in `folder`, or, where that is None, the exact checker, which costs nothing.
    """
    base, expand = course.model("base"), min(4, n)
    policy, tokenizer = load(course, base)
    reader, prompts = Reader(tokenizer), prompts_of(tokenizer, problems)
    settings = {"width": max(1, n // expand), "expand": expand, "max_steps": 10, "seed": seed}
    settings |= {"max_step_tokens": 30, "temperature": 1.0}

    def exact(owners: list[int], completions: list[list[int]]) -> list[float]:
        rows = zip(owners, completions, strict=True)
        return [reader.judged(problems[p], [], ids)["labels"][-1] for p, ids in rows]

    def learned(owners: list[int], completions: list[list[int]]) -> np.ndarray:
        given = [prompts[p] for p in owners]
        return judge_solutions(course, folder, given, completions, reader, "process")

    inputs = [pinned(course, base), [problem.text for problem in problems], folder]
    with stage("beams", settings, inputs=inputs) as entry:
        if entry.new:
            check = learned if folder else exact
            options = settings | {"ends": reader.ends, "pad_id": tokenizer.pad_token_id}
            found = search.beam_search(policy, prompts, check, reader.finished, **options)
            kept = {"ids": [row[0] for row in found.completions]}
            entry.write("found.json", kept | {"generated": found.generated.tolist()})
    kept = read_json(entry.folder / "found.json")
    right = [
        reader.answer(ids) == problem.answer
        for ids, problem in zip(kept["ids"], problems, strict=True)
    ]
    generated, prompt = np.array(kept["generated"]), np.array([len(ids) for ids in prompts])
    return np.array(right), search.Cost(prompt, generated, generated + prompt if folder else 0.0)


# ---- budgets ----------------------------------------------------------------------------------


def solver(course: Course, seed: int, progress: Progress | None = None, **changes: Any) -> str:
    """The folder of an instruct model that writes steps: the base model, tuned on solutions.

    As s1 was made: supervised fine-tuning on a small number of worked solutions, right ones.
    """
    base, rng = course.model("base"), random.Random(f"solver {seed}")
    config = sft_config(course, base, **{"seed": seed, "num_epochs": 1} | changes)
    rows = [
        [
            {"role": "user", "content": problem.text},
            {
                "role": "assistant",
                "content": solution(problem, rng.choice(("symbols", "words")), rng),
            },
        ]
        for problem in problem_set(NUM_SOLUTIONS, 200 + seed, STEPS, "train")
    ]
    with stage("solver", config, inputs=[pinned(course, base), rows]) as entry:
        if entry.new:
            model, tokenizer = load(course, base)
            rendered = [chat.render_chat(tokenizer, messages) for messages in rows]
            bar = progress(loop.steps_of(config, len(rendered))) if progress else None
            keep(entry, model, tokenizer, sft.train_sft(model, rendered, config, progress=bar))
    return str(entry.folder)


class Budget:
    """An instruct model's own solutions, cut short or drawn out: what it answers then."""

    def __init__(self, course: Course, folder: str, problems: Sequence[Problem], seed: int):
        self.model, self.tokenizer = load(course, folder)
        self.reader, self.problems = Reader(self.tokenizer), problems
        self.prompts = prompts_of(self.tokenizer, problems, asked=True)
        rows = sampled(course, folder, problems, 1, seed, asked=True, temperature=0)
        several = sampled(course, folder, problems, FRESH, seed, asked=True)
        self.pool = pool_of(self.reader, problems, self.prompts, several)
        self.written = [row[0] for row in rows]  # greedy: the likeliest token each time
        self.sampling = {"temperature": 0, "pad_id": self.tokenizer.pad_token_id}

    def thoughts(self, completions: list[list[int]]) -> list[list[int]]:
        """What stands before the answer sentence."""
        found = []
        for ids in completions:
            steps = self.reader.steps(ids)
            plain = [step for step in steps if FORCED.strip() not in self.reader.text(step)]
            found.append([token for step in plain for token in step])
        return found

    def forced(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """After this share of the thoughts " The answer is" is put: is it right (P,); all tokens.

        A solution begins without the space that stands before every other sentence.
        """
        thoughts = self.thoughts(self.written)
        cuts = [round(share * len(ids)) for ids in thoughts]
        words = [self._ids(FORCED if cut else FORCED.strip()) for cut in cuts]
        some = {"max_new_tokens": 6, "eos_ids": self.reader.ends, **self.sampling}
        return self._result(search.resume(self.model, self.prompts, thoughts, cuts, words, **some))

    def waited(self, times: int) -> tuple[np.ndarray, np.ndarray]:
        """With " wait," in place of the answer, so many times: is it right (P,); all tokens."""
        found, words = self.written, [self._ids(WAIT)] * len(self.prompts)
        some = {"max_new_tokens": MAX_TOKENS // 2, "eos_ids": self.reader.stops, **self.sampling}
        for _ in range(times):
            cuts = [len(ids) for ids in self.thoughts(found)]
            found = search.resume(self.model, self.prompts, found, cuts, words, **some)
            found = [self.reader.solution(ids) for ids in found]
        return self._result(found)

    def _ids(self, words: str) -> list[int]:
        return self.tokenizer(words, add_special_tokens=False)["input_ids"]

    def _result(self, completions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        both = zip(completions, self.problems, strict=True)
        right = np.array([self.reader.answer(ids) == problem.answer for ids, problem in both])
        return right, np.array([len(ids) for ids in completions])
