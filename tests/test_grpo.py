"""GRPO: advantages, the loss and its gradient beside TRL's, the loop on an easy reward."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny, weights

from course_lib import CourseError
from course_lib.algorithms import grpo
from course_lib.algorithms.grpo import GRPOConfig, group_advantages, grpo_loss, length_reward
from course_lib.algorithms.ppo import SamplingConfig, collect_rollout


def test_advantages_are_centred_by_group_and_silent_where_all_agree():
    scores = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1, 0.5, 0.1, 0.9, 0.3])
    found = group_advantages(scores, 4).view(3, 4)
    torch.testing.assert_close(found.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert (found[1] == 0).all() and found[0, 0] == pytest.approx(0.75 / 0.5001)
    plain = group_advantages(scores, 4, scale=False)
    assert plain[:4].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def drawn(n=6, c=7):
    torch.manual_seed(0)
    logprobs, old, ref = (-torch.rand(n, c) * 3 for _ in "abc")
    mask = torch.arange(c) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    return logprobs, old, ref, torch.randn(n), mask


@pytest.mark.parametrize(("length_norm", "beta"), [(True, 0.0), (True, 0.1), (False, 0.1)])
def test_the_loss_and_its_gradient_equal_trls(length_norm, beta):
    from trl import GRPOTrainer

    logprobs, old, ref, advantages, mask = drawn()
    mine, theirs = (logprobs.clone().requires_grad_() for _ in "ab")
    loss, _ = grpo_loss(
        mine, old, ref, advantages, mask, beta=beta, length=None if length_norm else 9
    )
    args = {"delta": None, "use_bias_correction_kl": False, "top_entropy_quantile": 1.0}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args),
        _get_per_token_logps_and_entropies=lambda *a, **k: (theirs, torch.zeros_like(theirs), None),
        model=SimpleNamespace(training=False),
        loss_type="grpo" if length_norm else "dr_grpo",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.2,
        max_completion_length=9,
        importance_sampling_level="token",
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(6, 1),
        "prompt_mask": torch.ones(6, 1),
        "completion_ids": torch.zeros(6, 7),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
    }
    expected = GRPOTrainer._compute_loss(trainer, None, inputs)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=0)
    assert (mine.grad[~mask] == 0).all()


def test_beyond_the_clip_nothing_is_gained():
    logprobs = torch.tensor([[0.5]], requires_grad=True)
    loss, metrics = grpo_loss(
        logprobs, torch.zeros(1, 1), logprobs.detach(), torch.ones(1), torch.ones(1, 1).bool()
    )
    loss.backward()
    assert logprobs.grad.item() == 0 and metrics["clipfrac"] == 1 and metrics["kl_k3"] == 0


def test_short_answers_are_rewarded_where_they_are_right():
    found = length_reward([10, 20, 30, 10, 10, 10], [1, 1, 0, 0, 1, 0], 3)
    assert found.tolist() == [0.5, 0, -0.5, 0, 0, 0]
    assert length_reward([10, 30], [0, 1], 2).tolist() == [0, -0.5]


SAMPLING = SamplingConfig([399], num_prompts=4, num_generations=4, max_new_tokens=5)


def low(prompts, completions):
    """Likes tokens below 100."""
    return torch.tensor([np.mean([token < 100 for token in ids]) for ids in completions])


def trained(score=low, reference=None, **changes):
    policy, _ = tiny()
    config = GRPOConfig(**{"num_steps": 12, "learning_rate": 3e-3} | changes)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13]]
    return grpo.train_grpo(policy, reference, prompts, score, SAMPLING, config), policy


def test_what_is_rewarded_becomes_likelier_and_one_seed_gives_the_same_bits():
    (history, policy), (again, same) = trained(), trained()
    mean = [row["scores/mean"] for row in history]
    assert np.mean(mean[-3:]) > np.mean(mean[:3]) + 0.2
    assert mean == [row["scores/mean"] for row in again]
    assert all(
        torch.equal(a, b) for a, b in zip(policy.parameters(), same.parameters(), strict=True)
    )
    assert history[0]["clipfrac"] == 0


def test_the_one_step_on_a_rollout_has_the_gradient_of_a_forward_pass_before_it():
    policy, _ = tiny()
    given = policy, None, None, [[5, 6, 7], [8, 9]] * 2, low, SAMPLING
    advantages, found = torch.randn(16), []
    for read in (True, False):
        rollout = collect_rollout(*given, read=read)
        assert (rollout.metrics["sampler_gap"] > 0) == read
        policy.zero_grad()
        loss, _ = grpo.grpo_step(
            policy, rollout, advantages, list(range(16)), GRPOConfig(), one_step=not read
        )
        loss.backward()
        found.append([p.grad.clone() for p in policy.parameters()])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_groups_without_signal_are_counted_and_move_nothing():
    policy, _ = tiny()
    before = weights(policy)
    history, after = trained(lambda prompts, completions: torch.ones(len(completions)), num_steps=2)
    assert [row["silent_groups"] for row in history] == [1, 1]
    assert all(torch.equal(before[name], value) for name, value in weights(after).items())


def test_a_reference_holds_the_policy_back_and_is_needed_for_beta():
    reference, _ = tiny()
    free, _ = trained(reference=reference)
    held, _ = trained(reference=reference, beta=1.0)
    assert free[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert held[-1]["kl"] < free[-1]["kl"]
    with pytest.raises(CourseError, match="reference"):
        trained(beta=0.1)
    with pytest.raises(CourseError, match="iteration 1"):
        trained(lambda prompts, completions: torch.full((len(completions),), float("nan")))
