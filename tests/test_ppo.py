"""PPO: identities of the losses, a bandit whose optimum is known, and the loop's guards."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TEXT, tiny

from course_lib import CourseError
from course_lib.algorithms import ppo
from course_lib.algorithms.chat import render_text
from course_lib.algorithms.logprobs import token_logprobs
from course_lib.algorithms.loop import Diverged
from course_lib.algorithms.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_estimates,
    token_rewards,
    whiten,
)
from course_lib.algorithms.ppo import (
    PPOConfig,
    SamplingConfig,
    ValueHead,
    collect_rollout,
    compute_advantages,
    ppo_step,
    rollout_metrics,
    train_ppo,
    update_policy,
)
from course_lib.algorithms.sampling import Generation, sample
from course_lib.inputs.models import add_lora, frozen_copy

PROMPTS = [[5, 9, 30], [7] * 12, [40, 41, 42, 43, 44], [12], [60, 61, 62]]
EOS = list(range(100, 130))  # so many that completions end at different times


def sampling(**more):
    return SamplingConfig(
        **{"eos_ids": EOS, "num_prompts": 5, "num_generations": 3, "max_new_tokens": 12} | more
    )


def config(**more):
    return PPOConfig(**{"num_steps": 3, "minibatch_size": 8, "learning_rate": 1e-3} | more)


def even_tokens(prompts, completions):
    """A score that is easy to raise: the share of even ids."""
    return torch.tensor([sum(i % 2 == 0 for i in ids) / len(ids) for ids in completions])


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def ragged(n=6, c=5, seed=0):
    """(n, c) noise and a mask of rows of 1 to c tokens."""
    torch.manual_seed(seed)
    lengths = torch.tensor([1 + i % c for i in range(n)])
    return torch.randn(n, c), torch.arange(c) < lengths[:, None]


def start(**more):
    """A policy beside a reference that is another model, a value head, and a rollout."""
    policy, _ = tiny()
    reference = frozen_copy(policy)
    torch.manual_seed(1)
    for weight in policy.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    value = ValueHead(policy.config.hidden_size)
    rollout = collect_rollout(policy, reference, value, PROMPTS, even_tokens, sampling(**more))
    return policy, reference, value, rollout


# --- pure functions


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_a_double_loop(gamma, lam):
    rewards, mask = ragged()
    values, _ = ragged(seed=1)
    advantages, returns = gae(rewards, values, mask, gamma, lam)  # noise stands where masked
    for row in range(len(mask)):
        length = int(mask[row].sum())
        for t in range(length):
            expected = 0.0
            for k in range(t, length):
                after = values[row, k + 1].item() if k + 1 < length else 0.0
                delta = rewards[row, k].item() + gamma * after - values[row, k].item()
                expected += (gamma * lam) ** (k - t) * delta
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_lam_1_is_the_return_minus_the_value():
    rewards, mask = ragged()
    values, _ = ragged(seed=1)
    advantages, returns = gae(rewards, values, mask, lam=1.0)
    to_go = rewards.where(mask, 0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns[mask], to_go[mask])
    torch.testing.assert_close(advantages[mask], (to_go - values)[mask])


def test_kl_estimates_average_to_the_exact_kl():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 7).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    k1, k3 = kl_estimates(policy, reference)  # of each token; their mean under the policy:
    assert (policy.exp() * k1).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    assert (policy.exp() * k3).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    ids, _ = sample(policy.expand(200_000, 7), torch.rand(200_000))
    assert k1[ids].mean().item() == pytest.approx(exact.item(), abs=0.01)
    assert k3[ids].mean().item() == pytest.approx(exact.item(), abs=0.01)
    assert (k3 >= 0).all() and (k1 < 0).any() and exact > 0.1


def test_penalised_reward_falls_when_the_policy_moves_away():
    """The sign of the KL, in expectation and far from zero, where a wrong one shows."""
    reference = torch.tensor([0.5, 0.3, 0.2]).log()
    mask = torch.ones(3, 1, dtype=torch.bool)
    means = []
    for shift in (0.0, 0.5, 1.0, 2.0, 4.0):
        policy = (reference + torch.tensor([shift, 0.0, -shift])).log_softmax(-1)
        rewards = token_rewards(torch.zeros(3), policy[:, None], reference[:, None], mask, 0.1)
        means.append((policy.exp() @ rewards[:, 0]).item())
    assert means[0] == pytest.approx(0) and means == sorted(means, reverse=True)
    assert means[-1] < -0.05


def test_the_score_stands_at_the_last_token():
    logprobs, mask = ragged()
    ref_logprobs, _ = ragged(seed=1)
    scores = torch.arange(6.0)
    rewards = token_rewards(scores, logprobs, ref_logprobs, mask, 0.5)
    penalty = -0.5 * (logprobs - ref_logprobs)
    for row, length in enumerate(mask.sum(-1).tolist()):
        expected = penalty[row, :length].clone()
        expected[-1] += scores[row]
        torch.testing.assert_close(rewards[row, :length], expected)
        assert (rewards[row, length:] == 0).all()


def test_whitening_sees_only_what_is_not_masked():
    x, mask = ragged()
    x[~mask] = 1e6
    white = whiten(x, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [(1.3, 1, False), (1.3, -1, True), (0.7, -1, False), (0.7, 1, True), (1.1, 1, True)],
)
def test_beyond_the_clip_there_is_no_gradient(ratio, advantage, moves):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(
        logprobs, torch.zeros(1, 1), torch.full((1, 1), float(advantage)), mask
    )
    loss.backward()
    expected = -ratio * advantage if moves else 0.0
    assert logprobs.grad.item() == pytest.approx(expected, abs=1e-6)
    assert metrics["clipfrac"] == (not moves)
    assert metrics["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


def test_values_are_clipped_around_the_old_ones():
    values = torch.tensor([[0.1, 0.5, 0.5, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    loss, metrics = clipped_value_loss(values, torch.zeros(1, 4), returns, mask, 0.2)
    assert loss.item() == pytest.approx((0.9**2 + 0.8**2 + 0.5**2) / 6)
    loss.backward()  # the second is beyond the clip, on its way to the return: no gradient
    torch.testing.assert_close(values.grad, torch.tensor([[-0.9, 0.0, 0.5, 0.0]]) / 3)
    assert metrics["value_loss"].item() == pytest.approx(loss.item())


# --- a rollout and a step


def test_rollout_by_hand():
    policy, reference, _, rollout = start()
    assert len({len(row["input_ids"]) for row in rollout.rows}) > 3
    for i, row in enumerate(rollout.rows):
        prompt, length = PROMPTS[i // 3], int(rollout.mask[i].sum())
        ids = torch.tensor([row["input_ids"]])
        completion = row["input_ids"][len(prompt) :]
        assert row["input_ids"][: len(prompt)] == prompt and len(completion) == length
        ended = completion[-1] in EOS
        assert not any(token in EOS for token in completion[:-1]) and (ended or length == 12)
        assert rollout.missing_eos[i] == (not ended)
        with torch.no_grad():
            for model, ours in ((policy, rollout.logprobs), (reference, rollout.ref_logprobs)):
                expected = token_logprobs(model, ids)[0, len(prompt) - 1 :]
                torch.testing.assert_close(ours[i, :length], expected, atol=1e-4, rtol=0)
    assert (rollout.logprobs[~rollout.mask] == 0).all()
    assert rollout.metrics["sampler_gap"] < 1e-4
    assert 0 < rollout.missing_eos.float().mean() < 1

    compute_advantages(rollout, config(beta=0.2))
    metrics = rollout_metrics(rollout)
    k1 = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(-1)
    total = rollout.scores - 0.2 * k1
    assert metrics["rewards"] == pytest.approx(total.mean().item(), abs=1e-5)
    assert metrics["kl"] == pytest.approx(k1.mean().item(), abs=1e-5) and metrics["kl_k3"] > 0
    assert metrics["num_tokens"] == rollout.mask.sum()


def test_entropy_is_that_of_the_policy():
    policy, reference, value, _ = start()
    rollout = collect_rollout(
        policy, reference, value, PROMPTS, even_tokens, sampling(num_generations=400)
    )
    compute_advantages(rollout, config(beta=0.1))
    first = []
    with torch.no_grad():
        for prompt in PROMPTS:
            logprobs = policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            first.append(-(logprobs.exp() * logprobs).sum())
    rollout.mask[:, 1:] = False  # of the first token, the exact one is known
    found = rollout_metrics(rollout)["entropy"]
    assert found == pytest.approx(torch.stack(first).mean().item(), abs=0.1)


def test_the_variance_that_the_values_explain():
    """All of it where they are the returns, none where they are equal, less where they mislead."""
    _, _, _, rollout = start()
    compute_advantages(rollout, config(beta=0.1))
    told = {}
    for name, values in (
        ("all", rollout.returns),
        ("none", torch.full_like(rollout.returns, 0.7)),
        ("worse", -rollout.returns),
    ):
        rollout.values = values
        told[name] = rollout_metrics(rollout)["explained_variance"]
    assert told == pytest.approx({"all": 1, "none": 0, "worse": -3}, abs=1e-5)
    length = rollout_metrics(rollout)["completion_length"]
    assert length == pytest.approx(np.mean([sum(r["completion_mask"]) for r in rollout.rows]))


@pytest.mark.parametrize("whitened", [True, False])
def test_before_an_update_the_ratio_is_1(whitened):
    policy, _, value, rollout = start()
    compute_advantages(rollout, config(whiten_advantages=whitened, beta=0.1))
    _, metrics = ppo_step(policy, value, rollout, [3, 0, 7, 14, 9], config())
    chosen = rollout.mask[[3, 0, 7, 14, 9]]
    mean = rollout.advantages[[3, 0, 7, 14, 9]][chosen].mean().item()
    assert metrics["clipfrac"] == 0 and metrics["approx_kl"].item() == pytest.approx(0, abs=1e-9)
    assert metrics["policy_loss"].item() == pytest.approx(-mean, abs=1e-5)  # mean of 1 * A


def test_masked_tokens_get_no_gradient_and_eos_does():
    _, _, _, rollout = start()
    compute_advantages(rollout, config(beta=0.1))
    torch.manual_seed(0)
    logprobs = (rollout.logprobs + 0.01 * torch.randn_like(rollout.logprobs)).requires_grad_()
    values = rollout.values.clone().requires_grad_()
    mask = rollout.mask
    a, _ = clipped_policy_loss(logprobs, rollout.logprobs, rollout.advantages, mask)
    b, _ = clipped_value_loss(values, rollout.values, rollout.returns, mask)
    (a + b).backward()
    ends = torch.arange(mask.shape[1]) == mask.sum(-1, keepdim=True) - 1
    for gradient in (logprobs.grad, values.grad):
        assert (~mask).any() and (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).all() and (
            gradient[ends & ~rollout.missing_eos[:, None]]
        ).all()


def test_advantages_push_their_token_up():
    """One step of plain descent: the tokens with a positive advantage become likelier."""
    policy, _, value, rollout = start()
    compute_advantages(rollout, config(beta=0.0))
    loss, _ = ppo_step(policy, value, rollout, list(range(15)), config())
    loss.backward()
    with torch.no_grad():
        for weight in policy.parameters():
            weight -= 1e-2 * weight.grad
        logprobs, _ = ppo.forward(policy, None, rollout.rows, rollout.mask)
    gain = (logprobs - rollout.logprobs)[rollout.mask]
    assert (gain * rollout.advantages[rollout.mask]).sum() > 0


def test_a_value_head_on_the_policys_states_cannot_move_the_policy():
    policy, _, value, rollout = start()
    compute_advantages(rollout, config(beta=0.1))
    torch.nn.init.normal_(value.linear.weight)
    assert (rollout.values == 0).all()  # zero at first
    _, values = ppo.forward(policy, value, rollout.rows, rollout.mask)
    values.square().sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert value.linear.weight.grad.abs().sum() > 0


def test_parts_add_up_to_the_minibatch(monkeypatch):
    """Batch 15 = 1 row x accumulation 15."""
    grads, metrics = [], []
    for tokens in (10_000, 1):
        policy, _, value, rollout = start()
        compute_advantages(rollout, config(beta=0.1))
        monkeypatch.setattr(ppo, "forward_tokens", lambda _, n=tokens: n)
        metrics.append(ppo._backward(policy, value, rollout, list(range(15)), config()))
        grads.append([p.grad for m in (policy, value) for p in m.parameters()])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)
    for whole, parts in zip(*grads, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


# --- the loop on a table: the optimum is known


class Table(torch.nn.Module):
    """A causal model of 2 tokens, whose logits are a table: at the start, after 0, after 1."""

    device = torch.device("cpu")

    def __init__(self, logits):
        super().__init__()
        self.head = torch.nn.Linear(*logits.shape, bias=False)
        self.head.weight = torch.nn.Parameter(logits.T.contiguous())

    def base_model(self, input_ids, use_cache):
        after = input_ids.clamp(max=1) + 1
        after[:, 0] = 0  # the prompt
        return SimpleNamespace(last_hidden_state=F.one_hot(after, 3).float())

    def get_output_embeddings(self):
        return self.head

    def sequences(self):
        """(2, 2) log-probabilities of the completions 00, 01, 10, 11."""
        logprobs = self.head.weight.detach().T.log_softmax(-1)
        return logprobs[0, :, None] + logprobs[1:]


def draw_evenly(policy, prompts, *, max_new_tokens, num_generations, seed, **_):
    """As `generate`, with draws that fill the unit square evenly: almost no sampling noise."""
    n = len(prompts) * num_generations
    i = torch.arange(n, dtype=torch.double)
    uniform = torch.stack([(i + 0.5) / n, i * 0.6180339887498949 % 1], 1).float()
    logits = policy.head.weight.detach().T
    first, logp = sample(logits[0].expand(n, -1), uniform[:, 0])
    columns, logprobs = [first], [logp]
    if max_new_tokens == 2:
        second, logp = sample(logits[1 + first], uniform[:, 1])
        columns, logprobs = [first, second], [logprobs[0], logp]
    ids = torch.stack(columns, 1)
    return Generation(ids, torch.ones_like(ids, dtype=torch.bool), torch.stack(logprobs, 1))


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_bandit_reaches_the_optimum_in_closed_form(beta, length, monkeypatch):
    """π* ∝ π_ref exp(r/β) over whole completions of one and of two tokens, to 1% of variation."""
    monkeypatch.setattr(ppo, "generate", draw_evenly)
    monkeypatch.setattr(ppo, "forward_tokens", lambda _: 100_000)
    policy = Table(torch.tensor([[0.5, -0.5], [0.0, 1.0], [-0.3, 0.3]]))
    reference = frozen_copy(policy)
    reward = torch.tensor([[1.0, 0.0], [0.2, 0.7]]) if length == 2 else torch.tensor([0.2, 0.7])

    def score(prompts, completions):
        return reward[tuple(torch.tensor(completions).T)]

    settings = sampling(num_prompts=1, num_generations=128, max_new_tokens=length, eos_ids=[])
    visited = []
    history = train_ppo(
        policy,
        reference,
        ValueHead(3),
        [[0]],
        score,
        settings,
        config(
            num_steps=100,
            learning_rate=0.04,
            num_epochs=2,
            minibatch_size=128,
            beta=beta,
            whiten_advantages=False,
            vf_coef=1.0,
        ),
        progress=lambda row: visited.append(policy.sequences().exp()),
    )
    # Adam's steps have a width of their own, so the policy circles: the mean of the last 30.
    logprobs, ref_logprobs = torch.stack(visited[-30:]).mean(0).log(), reference.sequences()
    if length == 1:
        logprobs, ref_logprobs = logprobs.logsumexp(-1), ref_logprobs.logsumexp(-1)
    best = (ref_logprobs + reward / beta).flatten().softmax(-1)
    distance = (logprobs.exp().flatten() - best).abs().sum() / 2
    moved = (ref_logprobs.exp().flatten() - best).abs().sum() / 2
    assert distance < 0.01 < 0.03 < moved, (distance, moved)
    # There, every completion has the same reward: β log Z, the soft maximum of the scores.
    soft = beta * (ref_logprobs + reward / beta).flatten().logsumexp(0).item()
    assert history[-1]["rewards"] == pytest.approx(soft, abs=0.01)


# --- the loop on a model


def run(kind="llama", lora=False, **more):
    policy, tokenizer = tiny(kind)
    reference = frozen_copy(policy)
    value = ValueHead(policy.config.hidden_size)
    policy = add_lora(policy, r=4) if lora else policy
    documents = [render_text(tokenizer, text) for text in TEXT]
    before = weights(reference)
    seed = more.pop("seed", 0)
    history = train_ppo(
        policy,
        reference,
        value,
        PROMPTS,
        even_tokens,
        sampling(num_generations=8, seed=seed),
        config(**more),
        documents=documents,
    )
    assert same(before, weights(reference))
    return policy, value, history


@pytest.mark.parametrize("options", [{}, {"lora": True, "kind": "qwen3"}])
def test_it_learns_and_reports(options):
    rate, steps = (2e-2, 30) if "lora" in options else (3e-3, 12)
    policy, value, history = run(**options, num_steps=steps, learning_rate=rate, beta=0.01)
    assert np.mean([row["scores/mean"] for row in history[-2:]]) > history[0]["scores/mean"] + 0.1
    assert history[0]["kl"] == pytest.approx(0, abs=1e-3) and history[-1]["kl"] > 0.1
    assert [row["step"] for row in history] == list(range(1, steps + 1)) and not policy.training
    named = (
        "scores/mean scores/std rewards kl kl_k3 entropy clipfrac approx_kl explained_variance "
        "completion_length missing_eos value_loss policy_loss grad_norm num_tokens "
        "sampler_gap seconds/sampling seconds/scoring seconds/update"
    )
    assert all(math.isfinite(row[name]) for row in history for name in named.split())
    assert value.linear.weight.abs().sum() > 0


def test_same_seed_same_bits():
    timeless = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in run(seed=seed)[2]]
        for seed in (0, 0, 1)
    ]
    assert timeless[0] == timeless[1] != timeless[2]


def test_the_pretraining_term_keeps_the_documents():
    losses = {}
    for coef in (0.0, 1.0):
        policy, tokenizer = tiny()
        rows = [render_text(tokenizer, text) for text in TEXT]
        policy, _, history = run(num_steps=8, ptx_coef=coef)
        losses[coef] = ppo.sft_step(policy, ppo.collate(rows, 0))[0].item()
        assert ("ptx_loss" in history[0]) == bool(coef)
    assert losses[1.0] < losses[0.0] - 0.1
    with pytest.raises(CourseError, match="0 documents"):
        policy, _ = tiny()
        train_ppo(
            policy, policy, ValueHead(80), PROMPTS, even_tokens, sampling(), config(ptx_coef=1.0)
        )


def test_kl_beyond_its_limit_stops_and_goes_back():
    def climb(policy, num_steps, seen):
        value = ValueHead(policy.config.hidden_size)
        settings = config(num_steps=num_steps, learning_rate=0.03, beta=0.0, max_kl=5.0)
        more = sampling(num_generations=8), settings
        train_ppo(
            policy, frozen_copy(policy), value, PROMPTS, even_tokens, *more, progress=seen.append
        )

    policy, again, seen = tiny()[0], tiny()[0], []
    with pytest.raises(Diverged, match=r"kl is .* in iteration \d+; .* below 5; .*raise beta"):
        climb(policy, 40, seen)
    assert seen and all(row["kl"] <= 5 for row in seen)
    climb(again, len(seen) - 1, [])  # to the weights that wrote the last iteration on record
    assert same(weights(policy), weights(again))


@pytest.mark.parametrize("epochs", [1, 3])
def test_non_finite_numbers_stop_and_leave_good_weights(epochs):
    policy, _ = tiny()
    value = ValueHead(policy.config.hidden_size)
    before, rate = weights(policy), {"learning_rate": 1e18, "minibatch_size": 99}
    with pytest.raises(Diverged, match="lower learning_rate"):
        train_ppo(
            policy,
            frozen_copy(policy),
            value,
            PROMPTS,
            even_tokens,
            sampling(),
            config(num_epochs=epochs, **rate),
        )
    assert same(before, weights(policy)) and all(p.isfinite().all() for p in value.parameters())


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda p, c: torch.full((len(c),), math.nan), "scores/mean is nan in iteration 1"),
        (lambda p, c: torch.zeros(len(c), 1), r"shape \(15, 1\); .* \(15,\)"),
    ],
)
def test_bad_scores_are_named(bad, message):
    policy, _ = tiny()
    before = weights(policy)
    with pytest.raises(CourseError, match=message):
        train_ppo(policy, frozen_copy(policy), ValueHead(80), PROMPTS, bad, sampling(), config())
    assert same(before, weights(policy))


def test_the_score_sees_prompts_beside_their_completions():
    seen = []

    def score(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return torch.zeros(len(completions))

    policy, _ = tiny()
    rollout = collect_rollout(policy, policy, None, PROMPTS, score, sampling())
    assert [p + c for p, c in seen] == [row["input_ids"] for row in rollout.rows]
    assert (rollout.values == 0).all()


def test_update_alone_improves_its_own_objective():
    policy, _, value, rollout = start()
    settings = config(num_epochs=4, minibatch_size=15, cliprange_value=10.0, beta=0.0)
    compute_advantages(rollout, settings)
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    first = ppo_step(policy, value, rollout, list(range(15)), settings)[0].item()
    metrics = update_policy(policy, value, optimizer, rollout, settings, random.Random(0))
    last = ppo_step(policy, value, rollout, list(range(15)), settings)[0].item()
    assert last < first and metrics["approx_kl"] > 0
