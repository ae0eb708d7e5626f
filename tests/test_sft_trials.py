"""The experiments' helpers, and what their comparisons rest on."""

import subprocess
import sys

import pytest
from course_runs import ROOT

from course_lib.experiments import sft_trials
from course_lib.inputs.models import load_model

needs_models = pytest.mark.skipif(
    not (ROOT / "data" / "models" / "m" / "config.json").is_file(), reason="no pocket models yet"
)


@needs_models
def test_4bit_weights_stay_near_the_originals():
    """bitsandbytes on a CPU reads blocks that go over a row's end wrongly; ours must not."""
    import bitsandbytes

    plain, quantized = load_model("pocket/m"), load_model("pocket/m", quantize="nf4")
    layers = [
        (name, module)
        for name, module in quantized.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    assert layers
    for name, module in layers:
        weight = plain.get_submodule(name).weight.detach()
        back = bitsandbytes.functional.dequantize_4bit(
            module.weight.data, module.weight.quant_state
        )
        assert ((back.float() - weight).norm() / weight.norm()) < 0.12, name


def test_without_takes_the_mask_off_these_tokens_only():
    row = {"input_ids": [5, 1, 7, 2], "completion_mask": [0, 0, 1, 1]}
    assert sft_trials.without([row], [2]) == [row | {"completion_mask": [0, 0, 1, 0]}]


def test_paste_puts_a_page_before_the_request_and_keeps_the_answer():
    messages = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "reply"}]
    row = {"prompt": "ask", "messages": messages}
    (pasted,) = sft_trials.paste([row], ["one two three"], 2)
    assert pasted["prompt"] == "one two\n\nask" == pasted["messages"][0]["content"]
    assert pasted["messages"][1:] == messages[1:] and row["prompt"] == "ask"


def test_importing_says_nothing():
    """Where bitsandbytes misses something it says so to whoever imports it."""
    done = subprocess.run(
        [sys.executable, "-c", "import course_lib.experiments.sft_trials"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
