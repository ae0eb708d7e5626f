"""Exercises tell right from wrong, and name the mistake."""

import numpy as np
import pytest
import torch

from course_lib import CourseError
from course_lib.exercises.check import SEED, all_exercises, assess, check, find, hint, outputs, same

EXERCISES = all_exercises()
every_exercise = pytest.mark.parametrize("name", EXERCISES)


@every_exercise
def test_the_reference_is_right_and_its_inputs_repeat(name):
    exercise = EXERCISES[name]
    solved, message = assess(exercise, exercise.reference)
    assert solved is True and "random and adversarial" in message
    assert all(
        map(same, outputs(exercise, exercise.reference), outputs(exercise, exercise.reference))
    )


@every_exercise
def test_each_mistake_is_recognised_as_itself(name):
    exercise = EXERCISES[name]
    assert len(exercise.mistakes) >= 4
    for sentence, mistake in exercise.mistakes.items():
        solved, message = assess(exercise, mistake)
        assert solved is False and message.endswith(sentence)


@every_exercise
@pytest.mark.parametrize("unsolved", [lambda *a: None, None, ...])
def test_unsolved_is_friendly(name, unsolved, capsys):
    def not_yet(*arguments):
        raise NotImplementedError

    check(name, not_yet if unsolved is ... else unsolved)
    assert "still open" in capsys.readouterr().out


@every_exercise
@pytest.mark.parametrize(
    "wrong",
    [lambda *a: 1 / 0, lambda *a: "text", lambda *a: [[1.0]] * 99, lambda: 0, lambda *a: {}],
)
def test_nothing_a_student_writes_raises(name, wrong, capsys):
    check(name, wrong)
    assert "✘" in capsys.readouterr().out


def test_a_function_that_changes_its_arguments_spoils_no_other_check():
    def vandal(logprobs, answers):
        answers[:] = 0
        return 0.0

    first = assess(find("letter_accuracy"), vandal)
    assert first == assess(find("letter_accuracy"), vandal)
    assert assess(find("letter_accuracy"), find("letter_accuracy").reference)[0] is True


def test_a_loss_without_gradient_is_told_from_a_right_one():
    def detached(logprobs, mask):
        return -(logprobs * mask).sum().detach() / mask.sum()

    solved, message = assess(find("sft_loss"), detached)
    assert solved is False and "no gradient" in message

    def honest(logprobs, mask):  # by picking, not by multiplying
        return -logprobs[mask.bool()].mean()

    assert assess(find("sft_loss"), honest)[0] is True


def test_padding_garbage_reaches_an_unmasked_loss():
    """The inputs are adversarial: what is masked must not change the reference."""
    for label, (logprobs, mask) in find("sft_loss").inputs(np.random.default_rng(SEED)):
        changed = torch.where(mask == 1, logprobs, torch.tensor(-123.0))
        reference = find("sft_loss").reference
        assert torch.allclose(reference(logprobs, mask), reference(changed, mask)), label


def test_completion_mask_by_hand():
    user = ["<|im_start|>", "user", "\n", "Hi", "<|im_end|>", "\n"]
    tokens = [*user, "<|im_start|>", "assistant", "\n", "Yo", "<|im_end|>", "\n"]
    assert find("completion_mask").reference(tokens) == [0] * 9 + [1, 1, 0]


def test_an_unknown_kind_of_mistake_is_described(capsys):
    check("lora_params", lambda d_in, d_out, r: r * (d_in + d_out) + 1)
    said = capsys.readouterr().out
    assert said.startswith("lora_params: ✘ expected ") and "'random'" in said
    hint("lora_params")
    assert "Hint:" in capsys.readouterr().out


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(CourseError, match="sft_loss"):
        check("nonsense", len)
