"""Instructions: splits that do not leak, nested subsets, determinism, right conversations."""

import pytest

from course_lib import CourseError
from course_lib.world.instructions import (
    KINDS,
    arithmetic_prompts,
    demonstrate_sum,
    demonstrations,
    explain_prompts,
    safe_prompts,
    unsafe_prompts,
    wordings,
)
from course_lib.world.judge import AUDIENCES, FORMATS, is_refusal, judge
from course_lib.world.topics import load_topics


def pair(row):
    return row["topic"], row["audience"]


def test_splits_are_disjoint_by_topic_and_audience():
    train, test = ({pair(r) for r in explain_prompts(split)} for split in ("train", "test"))
    assert not train & test
    assert train | test == {(t, a) for t in load_topics() for a in AUDIENCES}
    assert 0.15 < len(test) / len(train | test) < 0.25
    for split, own in (("train", train), ("test", test)):
        for row in demonstrations(300, 0, split, kinds=["explain", "chat"]):
            assert "topic" not in row or pair(row) in own
    prompts = [{r["prompt"] for r in explain_prompts(split)} for split in ("train", "test")]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0]) == len(explain_prompts("train")) >= 4096


def test_the_moon_landing_for_a_child_is_the_first_test_prompt():
    assert explain_prompts("test", 1)[0]["prompt"] == "Explain the moon landing to a 6-year-old"
    assert explain_prompts("test", 1, seed=5)[0]["topic"] == "moon_landing"
    every = {r["prompt"] for r in explain_prompts("train")}
    assert not any("the moon landing" in p and "6-year-old" in p for p in every)


def test_prompts_nest_and_too_many_are_refused():
    assert explain_prompts("train", 10) == explain_prompts("train", 50)[:10]
    assert explain_prompts("train", 10) != explain_prompts("train", 10, seed=1)
    with pytest.raises(CourseError, match="999999"):
        explain_prompts("test", 999_999)
    with pytest.raises(CourseError, match="dev"):
        explain_prompts("dev")


def test_demonstrations_nest_and_repeat_bit_by_bit():
    many = demonstrations(120, 0)
    assert demonstrations(30, 0) == many[:30]
    assert demonstrations(120, 0) == many
    assert demonstrations(30, 1) != many[:30]
    assert demonstrations(30, 0, "test") != many[:30]
    with pytest.raises(CourseError, match="poem"):
        demonstrations(1, 0, kinds=["poem"])


def test_the_default_mix_and_the_shape_of_rows():
    rows = demonstrations(1500, 0)
    for kind, share in KINDS.items():
        assert abs(sum(r["kind"] == kind for r in rows) / len(rows) - share) < 0.04
    for row in rows:
        messages = row["messages"]
        assert messages[-1] == {"role": "assistant", "content": row["completion"]}
        assert [m for m in messages if m["role"] == "user"][-1]["content"] == row["prompt"]
        assert row["completion"].isascii() and "{" not in row["completion"]
        assert "  " not in row["completion"]
        if row["kind"] == "explain":
            assert row["format"] in FORMATS and len(messages) == 2
            assert 15 <= len(row["completion"].split()) <= 110
        if row["kind"] == "chat":
            assert [m["role"] for m in messages] == ["user", "assistant"] * 2


def test_refusals_and_look_alikes():
    for split in ("train", "test"):
        unsafe = unsafe_prompts(split)
        assert len({r["theme"] for r in unsafe}) >= 5
        assert {r["theme"] for r in unsafe} == {r["theme"] for r in safe_prompts(split)}
    assert not {r["theme"] for r in unsafe_prompts("train")} & {
        r["theme"] for r in unsafe_prompts("test")
    }
    for row in demonstrations(300, 0, kinds=["refusal", "safe"]):
        assert is_refusal(row["completion"]) == (row["kind"] == "refusal")
        assert judge(row, row["completion"]).score > 7
    wordings_of_refusals = wordings()["refusals"]["openings"]
    assert all(map(is_refusal, wordings_of_refusals))


def test_sums_call_the_calculator_and_do_without():
    for row in arithmetic_prompts(40, 0):
        a, op, b = row["expression"].split()
        truth = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op]
        assert row["answer"] == truth
        assert a in row["prompt"] and b in row["prompt"]
        with_tool, without = demonstrate_sum(row), demonstrate_sum(row, tool=False)
        assert [m["role"] for m in with_tool["messages"]] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert with_tool["messages"][1]["content"] == f"<calc>{row['expression']}</calc>"
        assert with_tool["messages"][2]["content"] == str(truth)
        assert with_tool["completion"] == f"{row['expression']} is {truth}."
        assert [m["role"] for m in without["messages"]] == ["user", "assistant"]
        assert judge(row, without["completion"]).score > 9
    assert arithmetic_prompts(40, 0) == arithmetic_prompts(40, 0)
