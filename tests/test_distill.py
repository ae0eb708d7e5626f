"""Distillation: the loss and its meaning, TRL as the referee, both loops on tiny models."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny, weights

from course_lib import CourseError
from course_lib.algorithms import distill, loop
from course_lib.algorithms.distill import DistillConfig, divergence, kd_loss
from course_lib.algorithms.losses import sft_loss
from course_lib.algorithms.ppo import SamplingConfig


def drawn(b=3, t=6, v=11):
    torch.manual_seed(0)
    student, teacher = (2 * torch.randn(b, t, v) for _ in "st")
    mask = (torch.arange(t) >= 2) & (torch.arange(t) < torch.tensor([6, 4, 5])[:, None])
    return student, teacher, torch.randint(v, (b, t)), mask


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_equal_trls_and_so_do_their_gradients(beta, temperature):
    from trl.experimental.gkd import GKDTrainer
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher, labels, mask = drawn()
    labels = labels.masked_fill(~mask, -100)
    mine, theirs = (student.clone().requires_grad_() for _ in "ab")
    loss = divergence(mine, teacher, beta, temperature)[mask].mean()
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, labels, beta, temperature)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=0)
    heads = torch.eye(11), torch.eye(11)  # hidden states that are the logits themselves
    stable, *_ = _chunked_divergence_loss(
        student, teacher, *heads, mask.long(), beta, temperature=temperature
    )
    torch.testing.assert_close(loss.detach(), stable, atol=1e-5, rtol=0)


def test_kd_is_trls_forward_kl_times_t_squared_and_sft_without_a_teacher():
    from trl.experimental.gkd import GKDTrainer

    student, teacher, labels, mask = drawn()
    soft = kd_loss(student, teacher, labels, mask, 1.0, 3.0)
    theirs = GKDTrainer.generalized_jsd_loss(
        student, teacher, labels.masked_fill(~mask, -100), 0.0, 3.0
    )
    torch.testing.assert_close(soft, 9 * theirs, atol=1e-5, rtol=0)
    logprobs = student.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    hard = kd_loss(student, teacher, labels, mask, 0.0, 3.0)
    torch.testing.assert_close(hard, sft_loss(logprobs, mask)[0])
    torch.testing.assert_close(
        kd_loss(student, teacher, labels, mask, 0.4, 3.0), 0.4 * soft + 0.6 * hard
    )


def test_it_is_zero_where_both_agree_and_moves_completion_tokens_alone():
    student, teacher, labels, mask = drawn()
    student.requires_grad_()
    assert kd_loss(student, student, labels, mask, 1.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    kd_loss(student, teacher, labels, mask, 0.9, 2.0).backward()
    assert (student.grad[~mask] == 0).all() and (student.grad[mask] != 0).any()


def test_the_soft_gradient_keeps_its_size_with_t_squared():
    """Hinton et al., section 2.1: at a high temperature it no longer depends on it."""
    sizes = {}
    for temperature in (20.0, 40.0):
        student, teacher, labels, mask = drawn()
        student.requires_grad_()
        kd_loss(student, teacher, labels, mask, 1.0, temperature).backward()
        sizes[temperature] = student.grad.norm()
    assert sizes[40.0] / sizes[20.0] == pytest.approx(1, abs=0.05)


def test_jensen_shannon_lies_between_the_two_kls_and_never_below_zero():
    student, teacher, _, _ = drawn()
    forward, reverse = divergence(student, teacher), distill.reverse_kl(student, teacher)
    middle = divergence(student, teacher, 0.5)
    assert (forward >= 0).all() and (middle >= 0).all() and (middle <= 0.6932).all()
    torch.testing.assert_close(middle, divergence(teacher, student, 0.5))
    torch.testing.assert_close(reverse, divergence(teacher, student))
    assert not torch.allclose(forward, reverse)


ROWS = [
    {"input_ids": [5, 6, 7, 8 + i, 9, 20 + i], "completion_mask": [0, 0, 0, 1, 1, 1]}
    for i in range(4)
]


def other():
    """A teacher: the tiny model, moved."""
    teacher, _ = tiny()
    torch.manual_seed(1)
    for weight in teacher.parameters():
        weight.data.add_(0.3 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0)
    return teacher


def test_logits_are_those_of_the_completion_tokens():
    model, _ = tiny()
    batch = loop.batch_of(ROWS)
    with torch.no_grad():
        whole = model(batch["input_ids"]).logits[:, 2:5].flatten(0, 1)
        torch.testing.assert_close(distill.completion_logits(model, batch), whole)
    assert distill.completion_labels(batch).tolist()[:3] == [8, 9, 20]


def test_the_student_comes_close_to_its_teacher_which_stays_as_it_is():
    (student, _), teacher = tiny(), other()
    before = weights(teacher)
    config = DistillConfig(num_steps=60, batch_size=4, alpha=1.0, learning_rate=3e-3)
    history = distill.train_kd(student, teacher, ROWS, config)
    assert history[-1]["kl"] < 0.2 * history[0]["kl"] and history[0]["completion_length"] == 3
    assert all(torch.equal(before[name], value) for name, value in weights(teacher).items())


def test_without_a_teacher_it_learns_the_answers():
    student, _ = tiny()
    config = DistillConfig(num_steps=40, batch_size=4, alpha=0.0, learning_rate=3e-3)
    history = distill.train_kd(student, None, ROWS, config)
    assert history[-1]["ce"] < 0.3 * history[0]["ce"]
    assert history[0]["loss"] == pytest.approx(history[0]["ce"], abs=1e-5)


SAMPLING = SamplingConfig([399], num_prompts=2, num_generations=4, max_new_tokens=5)


def on_policy(**changes):
    (student, _), teacher = tiny(), other()
    config = DistillConfig(**{"num_steps": 40, "batch_size": 4, "learning_rate": 3e-3} | changes)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12]]
    return distill.train_on_policy(student, teacher, prompts, SAMPLING, config), student


def test_on_policy_the_distance_falls_and_one_seed_gives_the_same_bits():
    (history, student), (again, same) = on_policy(), on_policy()
    losses = [row["loss"] for row in history]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]) and losses[0] > 0
    assert losses == [row["loss"] for row in again]
    assert all(
        torch.equal(a, b) for a, b in zip(student.parameters(), same.parameters(), strict=True)
    )
    assert history[0]["completion_length"] <= 5 and 0 <= history[0]["missing_eos"] <= 1


def test_on_policy_a_teacher_like_the_student_teaches_nothing():
    (student, _), (teacher, _) = tiny(), tiny()
    prompts, config = [[5, 6]], DistillConfig(num_steps=2, batch_size=4)
    history = distill.train_on_policy(student, teacher, prompts, SAMPLING, config)
    assert history[0]["loss"] == pytest.approx(0, abs=1e-5)


def test_other_vocabularies_are_refused_in_one_sentence():
    student, tokenizer = tiny()
    teacher = SimpleNamespace(config=SimpleNamespace(vocab_size=7))
    with pytest.raises(CourseError, match="384 next-token logits and the teacher 7"):
        distill.train_kd(student, teacher, ROWS, DistillConfig(num_steps=1))
    with pytest.raises(CourseError, match="teacher 7"):
        distill.train_on_policy(student, teacher, [[5]], SAMPLING, DistillConfig(num_steps=1))
    same = SimpleNamespace(get_vocab=tokenizer.get_vocab)
    distill.check_tokenizers(tokenizer, same)
    moved = {token: (i + 1) % 384 for token, i in tokenizer.get_vocab().items()}
    with pytest.raises(CourseError, match="different tokenizers"):
        distill.check_tokenizers(tokenizer, SimpleNamespace(get_vocab=lambda: moved))
    with pytest.raises(CourseError, match="0 prompts"):
        distill.train_on_policy(student, student, [], SAMPLING, DistillConfig(num_steps=1))
