"""Verifiers: the loss is the mean over places, and what is there to be learned is learned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms import reward, verifier
from course_lib.algorithms.reward import RewardConfig


def rows(n=64):
    """A place is right if the token there is even."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        ids = rng.integers(5, 300, rng.integers(6, 12)).tolist()
        places = [3, len(ids) - 1]
        found.append({"input_ids": ids, "places": places, "labels": [ids[p] % 2 for p in places]})
    return found


def test_the_loss_is_the_mean_over_places_however_rows_are_padded():
    policy, _ = tiny()
    model = reward.make_reward_model(policy)
    some = rows(3)
    loss, metrics = verifier.verifier_step(model, verifier.collate_places(some))
    alone = [verifier.verifier_step(model, verifier.collate_places([row])) for row in some]
    torch.testing.assert_close(loss, torch.stack([each for each, _ in alone]).mean())
    probs = verifier.verify_places(
        model, [row["input_ids"] for row in some], [row["places"] for row in some]
    )
    labels = torch.tensor([label for row in some for label in row["labels"]]).double()
    by_hand = F.binary_cross_entropy(torch.tensor(np.concatenate(probs)), labels)
    assert float(loss.detach()) == pytest.approx(float(by_hand), abs=1e-5)
    assert float(metrics["accuracy"]) == ((np.concatenate(probs) > 0.5) == labels.numpy()).mean()


def test_a_verifier_learns_what_can_be_learned_and_repeats():
    def trained():
        policy, _ = tiny()
        model = reward.make_reward_model(policy)
        config = RewardConfig(learning_rate=3e-3, batch_size=8, num_epochs=12, warmup=0.1)
        return verifier.train_verifier(model, rows(), config)

    history, again = trained(), trained()
    assert [row["loss"] for row in history] == [row["loss"] for row in again]
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=0.2)
    assert np.mean([row["accuracy"] for row in history[-8:]]) > 0.9


def test_solutions_of_one_kind_alone_are_refused():
    policy, _ = tiny()
    same = [row | {"labels": [1, 1]} for row in rows(4)]
    with pytest.raises(CourseError, match="all right or all wrong"):
        verifier.train_verifier(reward.make_reward_model(policy), same, RewardConfig())
