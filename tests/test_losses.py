"""Preference losses by hand: pairs, ties, weights, signs, and the optimum of DPO."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_lib.algorithms.losses import dpo_loss, rank_pairs, reward_loss


def test_reward_loss_is_the_loop_over_pairs():
    torch.manual_seed(0)
    scores = torch.randn(3, 4)
    nan = math.nan
    ranks = torch.tensor([[1.0, 2, 3, 4], [2, 1, 2, nan], [1, 1, 1, nan]])  # full, partial, tied
    per_prompt = []
    for s, r in zip(scores[:2], ranks[:2], strict=True):
        pairs = [(i, j) for i in range(4) for j in range(4) if r[i] < r[j]]
        per_prompt.append(-sum(F.logsigmoid(s[i] - s[j]) for i, j in pairs) / len(pairs))
    loss, metrics = reward_loss(scores, rank_pairs(ranks))
    assert rank_pairs(ranks).sum((1, 2)).tolist() == [6, 2, 0]
    assert loss.item() == pytest.approx((sum(per_prompt) / 2).item(), abs=1e-6)
    assert 0 <= metrics["accuracy"] <= 1
    # A prompt without a pair changes nothing, a batch of only such ones is 0.
    assert reward_loss(scores[:2], rank_pairs(ranks[:2]))[0] == loss
    assert reward_loss(scores[2:], rank_pairs(ranks[2:]))[0] == 0


def test_reward_loss_of_two_is_pairwise_and_ignores_a_shift_of_all_scores():
    scores = torch.tensor([[1.0, -0.5], [0.2, 0.7]])
    wins = rank_pairs(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    loss, metrics = reward_loss(scores, wins)
    expected = -(F.logsigmoid(torch.tensor(1.5)) + F.logsigmoid(torch.tensor(-0.5))) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["accuracy"] == 0.5 and metrics["margin"].item() == pytest.approx(0.5)
    assert reward_loss(scores + 7, wins)[0].item() == pytest.approx(loss.item(), abs=1e-5)
    assert reward_loss(scores * 0, wins)[0].item() == pytest.approx(math.log(2))
    assert reward_loss(scores * 0, wins)[1]["accuracy"] == 0.5


def test_reward_gradient_is_zero_on_unranked_options():
    scores = torch.zeros(1, 3, requires_grad=True)
    reward_loss(scores, rank_pairs(torch.tensor([[1.0, 2.0, math.nan]])))[0].backward()
    assert scores.grad.tolist() == [[-0.5, 0.5, 0.0]]


def logps():
    torch.manual_seed(1)
    return [torch.randn(5) * 3 - 10 for _ in range(4)]


def test_dpo_is_log_2_at_the_reference():
    chosen, rejected, *_ = logps()
    loss, metrics = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["rewards/margin"] == 0 and metrics["rewards/accuracy"] == 0.5


def test_dpo_swap_flips_the_margin_and_doubling_beta_doubles_the_rewards():
    chosen, rejected, ref_chosen, ref_rejected = logps()
    _, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1)
    _, swapped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.1)
    _, doubled = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.2)
    assert swapped["rewards/margin"] == -metrics["rewards/margin"]
    assert swapped["rewards/accuracy"].item() == pytest.approx(
        1 - metrics["rewards/accuracy"].item()
    )
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margin"):
        assert doubled[key].item() == pytest.approx(2 * metrics[key].item(), rel=1e-5)


def test_dpo_gradient_pulls_chosen_up_and_rejected_down_and_never_the_reference():
    tensors = [t.requires_grad_() for t in logps()]
    loss, _ = dpo_loss(*tensors[:2], *(t.detach() for t in tensors[2:]), beta=0.1)
    loss.backward()
    assert (tensors[0].grad < 0).all() and (tensors[1].grad > 0).all()
    assert tensors[2].grad is None and tensors[3].grad is None


def test_dpo_soft_labels_are_the_expected_loss():
    args = logps()
    swapped = [args[1], args[0], args[3], args[2]]
    p = torch.tensor([0.1, 0.5, 0.7, 0.9, 1.0])
    soft = dpo_loss(*args, 0.1, label_smoothing=1 - p)[0]
    total = 0.0
    for i in range(5):
        one, other = ([t[i : i + 1] for t in side] for side in (args, swapped))
        total += p[i] * dpo_loss(*one, 0.1)[0] + (1 - p[i]) * dpo_loss(*other, 0.1)[0]
    assert soft.item() == pytest.approx(total.item() / 5, abs=1e-6)
    half = dpo_loss(*args, 0.1, label_smoothing=0.5)[0]
    assert half.item() == pytest.approx(dpo_loss(*swapped, 0.1, label_smoothing=0.5)[0].item())


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("arms", [2, 5])
def test_dpo_on_a_bandit_reaches_the_tilted_reference(arms, beta):
    """The optimum of the KL-penalised objective is pi_ref * exp(r / beta), normalised."""
    torch.manual_seed(arms)
    reference = torch.randn(arms, dtype=torch.double).log_softmax(0)
    rewards = torch.randn(arms, dtype=torch.double)
    optimum = (reference + rewards / beta).softmax(0)
    first, second = torch.combinations(torch.arange(arms)).T
    preferred = (rewards[first] - rewards[second]).sigmoid()  # Bradley and Terry
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        loss, _ = dpo_loss(
            policy[first], policy[second], reference[first], reference[second], beta, 1 - preferred
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    distance = (logits.softmax(0) - optimum).abs().sum() / 2
    assert distance < 0.01, distance
    assert (optimum - reference.exp()).abs().sum() / 2 > 0.02  # there was a way to go
