"""DPO: the loss is TRL's, it starts at log 2, bad pairs are counted, a bandit finds its optimum."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from tiny import assert_batches_and_seeds_agree, tiny, tiny_folder, weights

from course_lib import CourseError
from course_lib.algorithms.dpo import (
    DPOConfig,
    add_reference_logps,
    check_pairs,
    collate_pairs,
    dpo_step,
    evaluate_dpo,
    pair_logps,
    render_pairs,
    train_dpo,
)
from course_lib.algorithms.logprobs import token_logprobs
from course_lib.inputs.models import add_lora, frozen_copy, load_model

WORDS = ["moon", "rocket", "pens", "days", "euros", "answer", "problem", "question", "help"]


def pairs(tokenizer, n=12, seed=0):
    """The answer that ends in "moon" is chosen."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        chosen, rejected = (" ".join(rng.choices(WORDS[1:], k=rng.randint(1, 6))) for _ in "cr")
        rows.append({"prompt": rng.choice(WORDS), "chosen": chosen + " moon", "rejected": rejected})
    return render_pairs(tokenizer, rows)


def config(**more):
    return DPOConfig(**{"learning_rate": 1e-3, "batch_size": 4, "num_steps": 4, "warmup": 0} | more)


def other_reference(model, seed=0):
    """A model beside the policy, so that the loss is not log 2."""
    reference = copy.deepcopy(model)
    torch.manual_seed(seed)
    for weight in reference.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return frozen_copy(reference)


@pytest.mark.parametrize("loss_type, label_smoothing", [("sigmoid", 0.0), ("aot", 0.1)])
def test_loss_and_gradients_are_those_of_trl(tmp_path, loss_type, label_smoothing):
    """TRL's "sigmoid" has no smoothing; its "aot" has, and is the same loss for a single pair."""
    from datasets import Dataset
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    class Prepared(DPOTrainer):
        """Takes rows that are rendered."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    model, tokenizer = tiny()
    reference = other_reference(model)
    rows = pairs(tokenizer, 4 if loss_type == "sigmoid" else 1)
    args = TRLConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        beta=0.3,
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
    )
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = Prepared(
        load_model(str(tiny_folder())),
        ref_model=copy.deepcopy(reference),
        args=args,
        train_dataset=Dataset.from_list([{key: row[key] for key in keys} for row in rows]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model.train(), batch)
    theirs.backward()
    rows = [row | {"preference": 1 - label_smoothing} for row in rows]
    with pytest.raises(CourseError, match="add_reference_logps"):
        dpo_step(model, collate_pairs(rows), beta=0.3)
    rows = add_reference_logps(reference, rows)
    ours, metrics = dpo_step(model, collate_pairs(rows), beta=0.3)
    ours.backward()
    assert abs(ours.item() - math.log(2)) > 1e-3
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    other = {n: p.grad for n, p in trainer.model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name], atol=1e-5, rtol=1e-4)
    logged = {key: np.mean(values) for key, values in trainer._metrics["train"].items()}
    for key in ("rewards/margin", "rewards/chosen", "rewards/rejected", "logps/chosen"):
        theirs = logged[key.replace("margin", "margins")]
        assert metrics[key].item() == pytest.approx(theirs, abs=1e-3), key


def test_one_forward_gives_what_two_give_and_sums_not_means():
    model, tokenizer = tiny()
    rows = pairs(tokenizer, 3)
    with torch.no_grad():
        both = pair_logps(model, collate_pairs(rows))
        for side, logps in zip(("chosen_ids", "rejected_ids"), both, strict=True):
            for row, logp in zip(rows, logps, strict=True):
                ids = torch.tensor([row["prompt_ids"] + row[side]])
                alone = token_logprobs(model, ids)[0, len(row["prompt_ids"]) - 1 :].sum()
                assert logp.item() == pytest.approx(alone.item(), abs=1e-3)


def test_it_starts_at_log_2_learns_and_leaves_the_reference():
    policy, tokenizer = tiny()
    reference, seen = frozen_copy(policy), []
    before = weights(reference)
    rows, held_out = pairs(tokenizer, 48), pairs(tokenizer, 24, seed=1)
    held_out = add_reference_logps(reference, held_out)
    start = evaluate_dpo(policy, held_out, beta=0.1)
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-5)
    history = train_dpo(policy, rows, config(num_steps=30, batch_size=8), seen.append)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and seen == list(history)
    assert history[0]["malformed"] == 0 and "malformed" not in history[1]
    found = evaluate_dpo(policy, held_out, beta=0.1)
    assert found["rewards/accuracy"] > 0.8 and found["rewards/margin"] > 0
    assert found["rewards/accuracy"] == pytest.approx(found["correct"].mean())
    assert found["rewards/margin"] == pytest.approx(found["margins"].mean())
    twice = evaluate_dpo(policy, held_out, beta=0.2)
    assert twice["margins"] == pytest.approx(2 * found["margins"])
    assert all(torch.equal(before[n], p) for n, p in reference.named_parameters())


def test_batch_4_is_one_pair_with_accumulation_4_and_same_seed_same_bits():
    tokenizer = tiny()[1]

    def train(**changes):
        model = tiny()[0]
        return train_dpo(model, pairs(tokenizer), config(**changes)), model

    assert_batches_and_seeds_agree(train)


def test_bf16_starts_at_its_own_reference_and_lora_moves_only_its_weights():
    model, tokenizer = tiny()
    model = add_lora(model, r=2)
    before = weights(model)
    more = {"dtype": "bfloat16", "gradient_checkpointing": True, "learning_rate": 0.01}
    history = train_dpo(model, pairs(tokenizer), config(**more))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name, weight in weights(model).items():
        assert torch.equal(weight, before[name]) == ("lora" not in name), name


def test_malformed_pairs_are_counted_by_reason():
    tokenizer = tiny()[1]
    talk = [{"role": "user", "content": "moon?"}]
    said = [{"role": "assistant", "content": "pens"}]
    rows = [
        {"prompt": "moon?", "chosen": "pens", "rejected": "days"},
        {"prompt": "moon?", "chosen": "", "rejected": "days"},
        {"prompt": "moon?", "chosen": "pens", "rejected": "  \n"},
        {"prompt": "moon?", "chosen": "pens"},
        {"prompt": "moon?", "chosen": [], "rejected": None},
        {},
        {"prompt": "moon?", "chosen": "pens", "rejected": "pens"},
        {"prompt": "", "chosen": "pens", "rejected": "days"},
        {"chosen": "pens", "rejected": "days"},
        {"chosen": said, "rejected": said},
        {"prompt": "moon?", "chosen": "pens " * 99, "rejected": "days"},
        {"chosen": talk + said, "rejected": [{"role": "user", "content": "days?"}, *said]},
        {"chosen": talk + said, "rejected": [*talk, {"role": "assistant", "content": "days"}]},
    ]
    rendered = render_pairs(tokenizer, rows)
    good, counts = check_pairs(rendered, max_length=60)
    assert counts == {"good": 2, "empty": 5, "no_prompt": 4, "identical": 1, "too_long": 1}
    assert good == [rendered[0], rendered[-1]] and sum(counts.values()) == len(rows)
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert all(good[0][key] == good[1][key] for key in keys)  # two ways to write one pair
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert good[0]["chosen_ids"][-1] == good[0]["rejected_ids"][-1] == end
    history = train_dpo(tiny()[0], rendered, config(max_length=60, num_steps=2))
    assert history[0]["malformed"] == 11
    with pytest.raises(CourseError, match=r"None of the pairs .*'empty': 5.*max_length=60"):
        train_dpo(tiny()[0], rendered[1:-1], config(max_length=60))


def test_user_errors():
    model, tokenizer = tiny()
    rows = pairs(tokenizer, 4)
    with pytest.raises(CourseError, match="add_reference_logps"):
        evaluate_dpo(model, rows, beta=0.1)
    with pytest.raises(CourseError, match=r"at step \d+ .*learning_rate"):
        train_dpo(model, rows, config(learning_rate=1e20, num_steps=20, schedule="constant"))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_a_language_model_as_a_two_token_bandit_reaches_the_tilted_reference(beta):
    """Trained with soft labels, pi(a) / pi(b) becomes that of pi_ref * exp(r / beta)."""
    model, _ = tiny()
    reference = frozen_copy(model)
    gap = 1.2  # r(a) - r(b)
    row = {"prompt_ids": [5, 6, 7], "chosen_ids": [10], "rejected_ids": [11]}
    rows = [{**row, "preference": 1 / (1 + math.exp(-gap))}]
    more = {"beta": beta, "batch_size": 1, "num_steps": 150, "learning_rate": 3e-3}
    train_dpo(model, rows, config(**more))
    with torch.no_grad():
        before, after = (
            m(torch.tensor([[5, 6, 7]])).logits[0, -1, 10:12].double() for m in (reference, model)
        )
    optimum = (before + torch.tensor([gap / beta, 0.0])).softmax(0)
    assert (after.softmax(0) - optimum).abs().sum() / 2 < 0.01
    assert (before.softmax(0) - optimum).abs().sum() / 2 > 0.01
