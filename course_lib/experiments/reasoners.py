"""A reasoner by reinforcement, its traces, and students of word problems, for notebook 08.

The reasoner is the base model after GRPO with a rule's reward; its right solutions are the traces.
A live run reads committed ones, a full run has a reasoner of its own for each seed. The students
are the profile's smallest model. Solutions are sampled at temperature 1, and are one line long.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib import ROOT
from course_lib.algorithms import chat, distill, grpo
from course_lib.algorithms.distill import DistillConfig
from course_lib.algorithms.ppo import SamplingConfig
from course_lib.algorithms.sampling import generate
from course_lib.core.cache import read_json, stage
from course_lib.experiments.experiment import Items
from course_lib.experiments.recipes import (
    Progress,
    keep,
    load,
    parameters_of,
    pinned,
    training_history,
)
from course_lib.experiments.solutions import Reader, ids_with, prompts_of
from course_lib.world.problems import Problem, problem_set, verify_answer

if TYPE_CHECKING:
    from course_lib.kit.course import Course

LEVELS = (1, 2)  # steps of the problems
MAX_TOKENS = 60  # of a solution
PROBLEMS, HELD_OUT = 1000, 240  # of training, and of the test
NUM_PROMPTS, NUM_SOLUTIONS = 32, 8  # of an update of GRPO
UPDATES, REASONER = 60, 20  # of the student, and of its teacher, which is then at its best
RATE, TRACES_RATE = 2e-4, 2e-3  # of RL, and of a student that has nothing but traces
TRACING = {"learning_rate": 1e-3, "batch_size": 16, "alpha": 0.0, "temperature": 1.0}
START, TEACHER = 100, 100  # steps on traces of a student before it goes on, and of its teacher
TRACED = 4  # solutions of each training problem that the reasoner writes down
TRIES = 4  # solutions of each held-out problem
TRACES = ROOT / "data" / "results" / "08_traces.json"


def student_of(course: Course) -> str:
    """The profile's smallest model."""
    return course.model("small" if "small" in course.profile.models else "base")


def load_teacher(course: Course, folder: str | None, tokenizer: Any) -> Any:
    """The frozen teacher of a folder, which must have the student's `tokenizer`; None for none."""
    if folder is None:
        return None
    teacher, other = load(course, folder)
    distill.check_tokenizers(tokenizer, other)
    return teacher.requires_grad_(False)


class Writer:
    """Problems as prompts of a base model, and what its solutions are worth."""

    def __init__(self, tokenizer: Any, problems: Sequence[Problem]):
        self.reader, self.problems = Reader(tokenizer), problems
        self.prompts = prompts_of(tokenizer, problems)
        self.ends = ids_with(tokenizer, "\n")  # a solution is one line
        self.known = dict(zip(map(tuple, self.prompts), problems, strict=True))

    def score(self, prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
        """The rule's reward: 1 where the answer is right."""
        pairs = zip(prompts, completions, strict=True)
        right = [verify_answer(self.known[tuple(p)], self.reader.text(ids)) for p, ids in pairs]
        return torch.tensor(right).float()

    def sampling(self, seed: int, n: int = NUM_SOLUTIONS) -> SamplingConfig:
        return SamplingConfig(self.ends, NUM_PROMPTS, n, MAX_TOKENS, seed)

    def write(self, model: Any, n: int, seed: int) -> list[list[list[int]]]:
        """`n` solutions of each problem as ids."""
        options = {"max_new_tokens": MAX_TOKENS, "eos_ids": self.ends, "pad_id": 0}
        rows = generate(model, self.prompts, num_generations=n, seed=seed, **options).lists
        return [rows[i : i + n] for i in range(0, len(rows), n)]


def taught(seed: int) -> list[Problem]:
    """The training problems of a seed."""
    return problem_set(PROBLEMS, 300 + seed, LEVELS, "train")


def reasoner(
    course: Course,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    role: str = "base",
    start: str = "",
    updates: int,
) -> str:
    """The folder of the model in a role, or of one made from it, after GRPO on word problems.

    Its history has the operations of each update, "flops": 2 a parameter and token to write and 6
    to learn, which groups without signal are spared.
    """
    start, problems = start or course.model(role), taught(seed)
    config = grpo.GRPOConfig(num_steps=updates, learning_rate=RATE)
    with stage("reasoner", config, [pinned(course, start), problems[0].text, seed]) as entry:
        if entry.new:
            policy, tokenizer = load(course, start)
            writer = Writer(tokenizer, problems)
            args = writer.prompts, writer.score, writer.sampling(seed), config
            bar = progress(updates) if progress else None
            history = grpo.train_grpo(policy, None, *args, bar)
            read = np.mean([len(prompt) for prompt in writer.prompts]) * NUM_PROMPTS
            for row in history:
                learned = (read * NUM_SOLUTIONS + row["num_tokens"]) * (1 - row["silent_groups"])
                operations = 2 * (read + row["num_tokens"]) + 6 * learned
                row["flops"] = operations * parameters_of(course, start)
            history[0]["flops"] += spent(start)
            keep(entry, policy, tokenizer, history)
    return str(entry.folder)


def spent(folder: str) -> float:
    """The operations of all trainings on problems that made a folder."""
    return sum(row.get("flops", 0.0) for row in training_history(folder))


def make_traces(course: Course, seed: int) -> dict[str, Any]:
    """The distinct right solutions of a reasoner, with the operations that they cost."""
    folder, problems = reasoner(course, seed=seed, updates=REASONER), taught(seed)
    with stage("traces", {"n": TRACED, "seed": seed}, [folder]) as entry:
        if entry.new:
            model, tokenizer = load(course, folder)
            writer = Writer(tokenizer, problems)
            written = writer.write(model, TRACED, seed)
            texts = [{writer.reader.text(ids): None for ids in row} for row in written]
            pairs = zip(problems, texts, strict=True)
            right = [[text for text in row if verify_answer(p, text)] for p, row in pairs]
            tokens = sum(len(ids) for row in written for ids in row)
            tokens += sum(map(len, writer.prompts))
            flops = spent(folder) + 2 * tokens * parameters_of(course, folder)
            solved = solve(course, folder, "", seed, {}, None).values["right"].mean()
            found = {"seed": seed, "flops": flops, "right": float(solved), "solutions": right}
            entry.write("traces.json", found)
    return read_json(entry.folder / "traces.json")


def traces(course: Course, seed: int) -> dict[str, Any]:
    """A full run's own, or the committed ones: by problem of `taught(their seed)`."""
    return make_traces(course, seed) if course.full else read_json(TRACES)


def trace_rows(tokenizer: Any, found: dict[str, Any]) -> list[chat.Row]:
    """Problems and right solutions as rows."""
    problems = taught(found["seed"])
    rows = []
    for prompt, texts in zip(prompts_of(tokenizer, problems), found["solutions"], strict=True):
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            mask = [0] * len(prompt) + [1] * len(ids)
            rows.append({"input_ids": prompt + ids, "completion_mask": mask})
    return rows


def on_traces(
    course: Course,
    start: str,
    seed: int,
    steps: int = 0,
    *,
    flops: float = 0.0,
    tokens: float = 0.0,
    teacher: str | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> str:
    """The folder of a model tuned on traces, for so many steps, operations, or tokens learned.

    `teacher` gives soft labels where alpha is not 0. The history has operations, as in `reasoner`.
    """
    found, size = traces(course, seed), parameters_of(course, start)
    config = DistillConfig(**TRACING | {"seed": seed} | changes)
    model, tokenizer = load(course, start)
    rows = trace_rows(tokenizer, found)
    each = [(len(r["input_ids"]), sum(r["completion_mask"])) for r in rows]
    read, learned = np.mean(each, axis=0) * config.batch_size
    config.num_steps = steps or max(1, round(tokens / learned + flops / (6 * size * read)))
    with stage("on-traces", config, [pinned(course, start), found, teacher]) as entry:
        if entry.new:
            expert = load_teacher(course, teacher, tokenizer)
            bar = progress(config.num_steps) if progress else None
            history = distill.train_kd(model, expert, rows, config, progress=bar)
            for row in history:
                row["flops"] = 6 * row["num_tokens"] * size
            history[0]["flops"] += spent(start)
            keep(entry, model, tokenizer, history)
    return str(entry.folder)


def on_policy(
    course: Course,
    start: str,
    teacher: str,
    seed: int,
    steps: int,
    distance: Callable = distill.reverse_kl,
    progress: Progress | None = None,
) -> str:
    """The folder of a student taught by that distance at the tokens that it writes itself."""
    config = DistillConfig(**TRACING | {"num_steps": steps, "seed": seed})
    inputs = [pinned(course, start), teacher, [inspect.getsource(distance)]]
    with stage("on-policy", config, inputs) as entry:
        if entry.new:
            student, tokenizer = load(course, start)
            writer = Writer(tokenizer, taught(seed))
            expert = load_teacher(course, teacher, tokenizer)
            bar = progress(steps) if progress else None
            how = writer.sampling(seed, 2), config, distance, bar
            history = distill.train_on_policy(student, expert, writer.prompts, *how)
            keep(entry, student, tokenizer, history)
    return str(entry.folder)


def solver_student(
    course: Course,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    share: float = 0.0,
    updates: int = 0,
    all_compute: bool = False,
) -> str:
    """The folder of a student of word problems, at the operations of `UPDATES` updates of RL.

    Args:
        share: of these operations that is spent on the traces, first.
        updates: of GRPO, from there.
        all_compute: as many updates as also pay for the teacher: its RL, and writing the traces.
    """
    folder, more = student_of(course), {"seed": seed, "role": "small", "progress": progress}
    if share or all_compute:
        usual = spent(reasoner(course, start=folder, updates=UPDATES, **more))
    if all_compute:
        updates = int(np.ceil(UPDATES * (1 + traces(course, seed)["flops"] / usual)))
    if share:
        how = {"flops": share * usual, "learning_rate": TRACES_RATE, "progress": progress}
        folder = on_traces(course, folder, seed, **how)
    return reasoner(course, start=folder, updates=updates, **more) if updates else folder


def teacher_of(course: Course, seed: int, progress: Progress | None = None) -> str:
    """The folder of the teacher of `own_student`: the base model, tuned on the traces."""
    return on_traces(course, course.model("base"), seed, TEACHER, progress=progress)


def own_student(
    course: Course,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    kind: str,
    steps: int = 100,
    distance: Callable = distill.reverse_kl,
) -> str:
    """The folder of a student that had a short start on the traces, and went on in one way.

    Args:
        kind: "" stays at the start; "reverse" and "forward" go on with that KL on its own samples;
            "traces" and "soft" with as many tokens of the traces, as hard or as soft labels.
        steps: of the two kinds on its own samples. distance: the reverse KL, perhaps the reader's.
    """
    start = on_traces(course, student_of(course), seed, START, progress=progress)
    if not kind:
        return start
    teacher = teacher_of(course, seed, progress)
    if kind in ("reverse", "forward"):
        distance = distance if kind == "reverse" else distill.divergence
        return on_policy(course, start, teacher, seed, steps, distance, progress)
    first = own_student(course, seed=seed, progress=progress, kind="reverse", steps=steps)
    lengths = [row["completion_length"] for row in training_history(first)]
    tokens = sum(lengths) * TRACING["batch_size"]
    soft = {"teacher": teacher, "alpha": 1.0} if kind == "soft" else {}
    return on_traces(course, start, seed, tokens=tokens, progress=progress, **soft)


def solve(course: Course, folder: str, name: str, seed: int, settings: Any, by: Any) -> Items:
    """Is a solution of a held-out problem right, (problems, tries); at temperature 1.

    Beside it the operations that made the model: its own, and all with its teacher's.
    """
    model, tokenizer = load(course, folder)
    writer = Writer(tokenizer, problem_set(HELD_OUT, 8, LEVELS, "test"))
    written = writer.write(model, TRIES, seed)
    texts = np.array([[writer.reader.text(ids) for ids in row] for row in written], dtype=object)
    pairs = zip(writer.problems, texts, strict=True)
    values = {"right": np.array([[verify_answer(p, t) for t in row] for p, row in pairs], float)}
    paid = traces(course, seed)["flops"] if settings.get("share") else 0.0
    costs = {"own": spent(folder), "all": spent(folder) + paid} if "kind" not in settings else {}
    for measure, flops in costs.items():
        values[f"gflops {measure}"] = np.full(len(texts), flops / 1e9)
    return Items(values, [{"prompt": p.text} for p in writer.problems], texts)


def record_reasoner(course: Course) -> None:
    """What the reasoner itself solves, beside its students: as condition "reasoner"."""
    for seed in course.seeds:
        course.results.add("8.2", "reasoner", 0, seed, "right", traces(course, seed)["right"])


def record_teacher(course: Course) -> None:
    """What the teacher of `own_student` solves, where there is one: as condition "teacher"."""
    models = course.profile.models
    alone = models.get("small") in (None, models["base"])
    for seed in () if alone else course.seeds:
        found = solve(course, teacher_of(course, seed), "", seed, {"kind": ""}, None)
        course.results.add("8.3", "teacher", 0, seed, "right", found.values["right"].mean())
