"""Reward models: the loss is TRL's, pads and batching change nothing, the EOS is what is read."""

import math
import random

import numpy as np
import pytest
import torch
from tiny import assert_batches_and_seeds_agree, tiny

from course_lib import CourseError
from course_lib.algorithms.losses import rank_pairs, reward_loss
from course_lib.algorithms.reward import (
    RewardConfig,
    calibration,
    collate_comparisons,
    evaluate_reward,
    make_reward_model,
    normalise,
    pairs_of,
    render_answer,
    render_comparisons,
    reward_step,
    score_ids,
    score_texts,
    sequence_scores,
    set_normalisation,
    to_pairs,
    train_reward,
)
from course_lib.inputs.models import load_reward_model, save_model

WORDS = ["moon", "rocket", "pens", "days", "euros", "answer", "problem", "question", "help"]


def comparisons(tokenizer, n=12, k=4, seed=0):
    """The more often "moon" is said, the better."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(k)]
        ranks = [-text.split().count("moon") for text in texts]
        rows.append({"prompt": rng.choice(WORDS), "completions": texts, "ranks": ranks})
    return render_comparisons(tokenizer, rows)


def reward_model(kind="llama", seed=0):
    return make_reward_model(tiny(kind)[0], seed)


def config(**more):
    return RewardConfig(
        **{"learning_rate": 3e-3, "batch_size": 4, "num_steps": 4, "warmup": 0} | more
    )


def test_loss_and_gradients_are_those_of_trl_which_reads_our_folder(tmp_path):
    from datasets import Dataset
    from trl import RewardConfig as TRLConfig
    from trl import RewardTrainer

    tokenizer = tiny()[1]
    rows = to_pairs(comparisons(tokenizer))[:4]
    model = reward_model()
    save_model(model, tokenizer, tmp_path / "rm")
    args = TRLConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
    )
    data = [dict(zip(("chosen_ids", "rejected_ids"), r["completions"], strict=True)) for r in rows]
    trainer = RewardTrainer(
        str(tmp_path / "rm"),
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    ours, _ = reward_step(model, collate_comparisons(rows))
    ours.backward()
    assert abs(ours.item() - math.log(2)) > 1e-3
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    other = {n: p.grad for n, p in trainer.model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name], atol=1e-5, rtol=1e-4)


def test_batch_of_rankings_by_hand():
    model, tokenizer = reward_model(), tiny()[1]
    rows = comparisons(tokenizer, 2, 3)
    for row in rows:
        del row["pairs"]
    rows[1]["completions"].append([9, 8, 7])  # four answers beside three, one not ranked
    rows[1]["ranks"] = [2, 1, 2, None]
    rows[0]["ranks"] = [3, 1, 2]
    assert sorted(pairs_of(rows[1])) == [(1, 0), (1, 2)]
    loss, _ = reward_step(model, collate_comparisons(rows))
    by_row = []
    for row in rows:
        scores = torch.tensor(score_ids(model, row["completions"]))[None]
        ranks = torch.tensor([[math.nan if r is None else float(r) for r in row["ranks"]]])
        by_row.append(reward_loss(scores, rank_pairs(ranks))[0].item())
    assert loss.item() == pytest.approx(np.mean(by_row), abs=1e-5)
    known = {**rows[0], "pairs": [(1, 0)]}
    assert pairs_of(known) == [(1, 0)] and to_pairs([known])[0]["ranks"] == [1, 2]
    assert pairs_of(to_pairs([known])[0]) == [(0, 1)]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_last_token_is_read_whatever_the_pads(kind):
    """A pad id equal to the last token must not hide it, nor may the company in the batch count."""
    model = reward_model(kind)
    sequences = [[5, 6, 7, 2], [9, 4], [8, 8, 0], [11, 12, 13, 14, 15, 3]]  # 0 is what pads
    alone = [
        sequence_scores(model, torch.tensor([ids]), torch.ones(1, len(ids)).long()).item()
        for ids in sequences
    ]
    assert score_ids(model, sequences) == pytest.approx(alone, abs=1e-5)
    hidden = model.model(torch.tensor([[8, 8, 0]])).last_hidden_state[0, 2]
    assert alone[2] == pytest.approx((model.score.weight[0] @ hidden).item(), abs=1e-5)


def test_rendered_answers_end_with_the_end_of_the_turn():
    tokenizer = tiny()[1]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for text in ("pens and days", ""):
        assert render_answer(tokenizer, "moon?", text)[-1] == end
    talk = [{"role": "user", "content": "moon?"}]
    assert render_answer(tokenizer, talk, "pens") == render_answer(tokenizer, "moon?", "pens")
    row = {"prompt": "moon?", "completions": ["a", "pens " * 99, "b"], "ranks": [3, 1, 2]}
    (cut,) = render_comparisons(tokenizer, [row], max_length=60)
    assert cut["pairs"] == [(2, 0)] and cut["too_long"] == 1 and len(cut["completions"][1]) == 60
    history = train_reward(reward_model(), [cut], config(num_steps=2))
    assert history[0]["too_long"] == 1 and history[0]["num_pairs"] == 4
    model = reward_model()
    one = score_texts(model, tokenizer, ["moon?"], ["pens"])
    assert one == pytest.approx(score_ids(model, [render_answer(tokenizer, "moon?", "pens")]))


def test_it_starts_at_log_2_and_learns_and_reports():
    policy, tokenizer = tiny()
    model, seen = make_reward_model(policy), []
    torch.nn.init.zeros_(model.score.weight)  # all scores are 0
    before = {n: p.clone() for n, p in policy.named_parameters()}
    rows, held_out = comparisons(tokenizer, 48), comparisons(tokenizer, 24, seed=1)
    assert evaluate_reward(model, held_out)["accuracy"] == 0.5
    history = train_reward(model, rows, config(num_steps=30, batch_size=8), seen.append)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and seen == list(history)
    found = evaluate_reward(model, held_out)
    assert found["accuracy"] > 0.8 and found["accuracy"] == found["correct"].mean()
    assert len(found["margins"]) == len(found["prompts"]) == found["num_pairs"]
    assert found["num_pairs"] == sum(len(pairs_of(row)) for row in held_out)
    assert found["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-found["margins"]))))
    assert all(torch.equal(before[n], p) for n, p in policy.named_parameters())  # a copy learned


def test_a_fresh_head_is_small_drawn_from_its_seed_and_moves_all_below_it():
    policy, tokenizer = tiny()
    model = make_reward_model(policy)
    assert torch.equal(model.score.weight, make_reward_model(policy).score.weight)
    assert not torch.equal(model.score.weight, make_reward_model(policy, 1).score.weight)
    size = policy.config.hidden_size
    assert float(model.score.weight.std()) == pytest.approx((size + 1) ** -0.5, rel=0.5)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    rows = comparisons(tokenizer, 8)
    train_reward(model, rows, config(num_steps=1))
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)


def test_batch_4_is_one_prompt_with_accumulation_4_and_same_seed_same_bits():
    tokenizer = tiny()[1]

    def train(**changes):
        model = reward_model()
        return train_reward(model, comparisons(tokenizer), config(**changes)), model

    assert_batches_and_seeds_agree(train)


def test_saved_with_its_normalisation(tmp_path):
    model, tokenizer = reward_model(), tiny()[1]
    ids = [[5, 6, 7, 2], [9, 4], [8, 8, 0]]
    raw = score_ids(model, ids)
    assert normalise(model, raw) == pytest.approx(raw)
    set_normalisation(model, raw)
    unit = normalise(model, raw)
    assert unit.mean() == pytest.approx(0, abs=1e-6) and unit.std() == pytest.approx(1)
    save_model(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    loaded = load_reward_model(tmp_path)
    assert normalise(loaded, score_ids(loaded, ids)) == pytest.approx(unit, abs=1e-5)
    with pytest.raises(CourseError, match=r"no config\.json"):
        load_reward_model(tmp_path / "nothing")


def test_bf16_scores_stay_fp32_and_near():
    model = reward_model()
    batch = collate_comparisons(comparisons(tiny()[1]))
    plain, _ = reward_step(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = reward_step(model, batch)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(plain.item(), abs=0.03)
    rows, losses = comparisons(tiny()[1]), []
    for more in ({}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}):
        history = train_reward(reward_model(), rows, config(**more))
        losses.append([row["loss"] for row in history])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_calibration_of_a_known_world():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    predicted, observed, count = calibration(p, rng.uniform(size=len(p)) < p, num_bins=8)
    assert count.sum() == len(p) and len(count) == 8
    assert np.abs(predicted - observed).max() < 0.03
    over = calibration(1 / (1 + ((1 - p) / p) ** 3), p)  # three times too sure
    assert (over[0][-2:] > over[1][-2:]).all() and (over[0][:2] < over[1][:2]).all()
    assert len(calibration(p[:3], p[:3])[2]) == 3


def test_user_errors():
    model, tokenizer = reward_model(), tiny()[1]
    rows = comparisons(tokenizer, 2)
    for row in rows:
        del row["pairs"]
    tied = [{**row, "ranks": [1, 1, 1, None]} for row in rows]
    for call in (train_reward, lambda model, rows, _: evaluate_reward(model, rows)):
        with pytest.raises(CourseError, match="None of the 2 comparisons has a pair, and 0"):
            call(model, tied, config())
    with pytest.raises(CourseError, match="3 ranks for 4 completions"):
        train_reward(model, [{**rows[0], "ranks": [1, 2, 3]}], config())
    with pytest.raises(CourseError, match=r"at step \d+ .*learning_rate"):
        train_reward(model, rows, config(learning_rate=1e30, num_steps=20, schedule="constant"))
    assert all(p.isfinite().all() for p in model.parameters())
