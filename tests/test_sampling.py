"""The sampler against transformers and against the training forward."""

import pytest
import torch
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms.logprobs import shift_mask, token_logprobs
from course_lib.algorithms.sampling import generate, sample

KINDS = ["llama", "smollm2", "qwen3"]
PROMPTS = [[5, 9, 30], [7] * 12, [40, 41, 42, 43, 44], [12], [60, 61, 62]]
NONE = -1  # no token ends a completion


def options(**more):
    return {"max_new_tokens": 12, "eos_ids": NONE, "pad_id": 3, "seed": 0} | more


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(kind):
    model, _ = tiny(kind)
    ours = generate(model, PROMPTS, **options(temperature=0.0))
    for prompt, ids in zip(PROMPTS, ours.completion_ids, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=3,
        )
        assert ids.tolist() == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_training_forward(kind, temperature):
    model, _ = tiny(kind)
    eos = list(range(100, 200))  # so many that rows end at different times and are dropped
    out = generate(model, PROMPTS * 4, **options(temperature=temperature, eos_ids=eos))
    assert len(set(out.completion_mask.sum(-1).tolist())) > 1
    for prompt, ids, logprobs in zip(PROMPTS * 4, out.lists, out.logprobs, strict=True):
        whole = torch.tensor([prompt + ids])
        mask = torch.tensor([[0] * len(prompt) + [1] * len(ids)])
        with torch.no_grad():
            theirs = token_logprobs(model, whole, mask=mask, temperature=temperature)
        theirs = theirs[shift_mask(mask)]
        torch.testing.assert_close(logprobs[: len(ids)], theirs, atol=1e-4, rtol=0)


def test_mask_ends_with_the_first_eos_inclusive():
    model, _ = tiny()
    eos = set(range(60, 240))
    out = generate(model, PROMPTS * 8, **options(eos_ids=sorted(eos)))
    assert any(len(ids) < 12 for ids in out.lists)
    for ids, row, mask in zip(out.lists, out.completion_ids, out.completion_mask, strict=True):
        assert not any(token in eos for token in ids[:-1])
        assert len(ids) == 12 or ids[-1] in eos
        assert mask.tolist() == [True] * len(ids) + [False] * (len(mask) - len(ids))
        assert (row[~mask] == 3).all()
    assert (out.logprobs[~out.completion_mask] == 0).all()


def test_same_seed_same_bits_and_batch_size_changes_nothing():
    model, _ = tiny()
    first = generate(model, PROMPTS, **options(num_generations=3))
    again = generate(model, PROMPTS, **options(num_generations=3))
    other = generate(model, PROMPTS, **options(num_generations=3, seed=1))
    small = generate(model, PROMPTS, **options(num_generations=3, batch_size=2))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.completion_ids, other.completion_ids)
    assert torch.equal(first.completion_ids, small.completion_ids)


def test_generations_of_a_prompt_stand_side_by_side():
    model, _ = tiny()
    out = generate(model, PROMPTS, **options(num_generations=2, temperature=0.0))
    one = generate(model, PROMPTS, **options(temperature=0.0))
    assert torch.equal(out.completion_ids, one.completion_ids.repeat_interleave(2, 0))


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -float("inf")])
    ids, logprobs = sample(logits.expand(40_000, 5), torch.rand(40_000))
    shares = torch.bincount(ids, minlength=5) / 40_000
    probs = logits.softmax(-1)
    torch.testing.assert_close(shares, probs, atol=0.01, rtol=0)
    torch.testing.assert_close(logprobs, probs.log()[ids])
    hot, _ = sample(logits.expand(40_000, 5), torch.rand(40_000), temperature=3.0)
    expected = (logits / 3).softmax(-1)
    torch.testing.assert_close(
        torch.bincount(hot, minlength=5) / 40_000, expected, atol=0.01, rtol=0
    )


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    logits = torch.tensor([[-float("inf"), 0.0, 1.0, -float("inf")]] * 2)
    ids, _ = sample(logits, torch.tensor([0.0, 1 - 2**-24]))
    assert ids.tolist() == [1, 2]


def test_stops_at_the_end_of_the_context():
    model, _ = tiny()
    context = model.config.max_position_embeddings
    prompts = [[5] * (context - 4), [5, 6], [7] * (context - 4), [5] * (context - 6)]
    out = generate(model, prompts, **options())
    assert [len(ids) for ids in out.lists] == [4, 12, 4, 6]  # nobody is cut by another's length


@pytest.mark.parametrize(
    "prompts, more, message",
    [
        ([[]], {}, "0 tokens"),
        ([[5] * 9999], {}, "9999 tokens"),
        ([[5]], {"temperature": -1.0}, "temperature"),
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_wrong_requests_say_what_is_wrong(prompts, more, message):
    model, _ = tiny()
    with pytest.raises(CourseError, match=message):
        generate(model, prompts, **options(**more))


def test_training_mode_and_random_state_are_left_alone():
    model, _ = tiny()
    model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(model, PROMPTS, **options())
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_no_prompts_no_completions():
    model, _ = tiny()
    assert generate(model, [], **options()).lists == []
