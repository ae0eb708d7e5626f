"""Verifiers: likelihoods by span, the loss as the mean over spans, and what is there is learned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms import verifier
from course_lib.algorithms.logprobs import token_logprobs
from course_lib.algorithms.reward import RewardConfig


def rows(n=64):
    """A span is right if its last token is even."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        ids = rng.integers(5, 300, rng.integers(7, 12)).tolist()
        ends = [4, len(ids) - 1]
        labels = [ids[end] % 2 for end in ends]
        found.append({"input_ids": ids, "start": 2, "ends": ends, "labels": labels})
    return found


def test_a_span_has_the_mean_of_its_tokens_however_rows_are_padded():
    policy, _ = tiny()
    some = rows(3)
    for row, found in zip(some, verifier.likelihoods(policy, some), strict=True):
        with torch.no_grad():
            logprobs = token_logprobs(policy, torch.tensor([row["input_ids"]]))[0]
        last = row["ends"][1]
        by_hand = [logprobs[1:4].mean(), logprobs[4:last].mean()]  # of tokens 2-4 and 5-last
        assert found.tolist() == pytest.approx([float(each) for each in by_hand], abs=1e-5)


def test_the_loss_is_the_mean_over_spans_and_verify_gives_its_probabilities():
    policy, _ = tiny()
    verifier.calibrate(policy, rows())
    some = rows(3)
    loss, metrics = verifier.verifier_step(policy, verifier.collate_spans(some))
    alone = [verifier.verifier_step(policy, verifier.collate_spans([row])) for row in some]
    torch.testing.assert_close(loss, torch.stack([each for each, _ in alone]).mean())
    probs = np.concatenate(verifier.verify(policy, some))
    labels = np.concatenate([row["labels"] for row in some])
    by_hand = F.binary_cross_entropy(torch.tensor(probs), torch.tensor(labels).double())
    assert float(loss.detach()) == pytest.approx(float(by_hand), abs=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(((probs > 0.5) == labels).mean())


def test_it_starts_calibrated_and_learns_what_can_be_learned_and_repeats():
    def trained():
        policy, _ = tiny()
        config = RewardConfig(learning_rate=3e-3, batch_size=8, num_epochs=20, warmup=0.1)
        return verifier.train_verifier(policy, rows(), config)

    history, again = trained(), trained()
    assert [row["loss"] for row in history] == [row["loss"] for row in again]
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert np.mean([row["accuracy"] for row in history[-8:]]) > 0.9


def test_solutions_of_one_kind_alone_are_refused():
    policy, _ = tiny()
    same = [row | {"labels": [1, 1]} for row in rows(4)]
    with pytest.raises(CourseError, match="all right or all wrong"):
        verifier.train_verifier(policy, same, RewardConfig())
