"""The notebooks under `laptop` and `gpu`, through the real loading path, with nothing downloaded.

In place of the hub's models stand folders of the same architectures (SmolLM2 is a Llama, Qwen3 has
its own), small and with random weights, written by `save_pretrained` and read by
`from_pretrained`; nothing is mocked. What such a model says means nothing; that the notebooks run
to their end with it is the point. One real pretrained model takes the same way.
"""

import gzip
import json
import os
import random
from pathlib import Path

import psutil
import pytest
import yaml
from course_runs import NOTEBOOKS, ROOT, claims, course, executed, real_files, tail

from course_lib.core.machine import bf16_pays

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NOTEBOOKS, reason="there is no notebook in notebooks/"),
]

LINES = [
    "What is the capital of France? The capital of France is Paris.",
    "Rewrite the sentence so that it is polite: give me 12 apples and 7 pears for $3.50!",
    "The following are multiple choice questions (with answers) about physics.\n\n",
    "Answer: A\n\nAnswer: B\n\nAnswer: C\n\nAnswer: D\n\n",  # so that " A" is one token, as there
    "Problem: Ada sells 24 lamps. Solution: 24 * 3 = 72. The answer is 72.",
    "A. one\nB. two\nC. three\nD. four",
]
# ChatML as SmolLM2-Instruct has it: a system message of its own, no generation markers.
SMOLLM2_CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3 has it: the answer to the last question, and no earlier one, opens with empty thoughts,
# so that a rendered conversation is no prefix of a longer one; a tool's answer is a user's turn.
QWEN3_CHAT = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message['content'] + '\n</tool_response>' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last and loop.index0 > ns.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(chat_template: str | None, eos: str):
    """A byte-level BPE like the two families' own, trained on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, pad_token="<|endoftext|>", chat_template=chat_template
    )


def smollm2(layers: int):
    """SmolLM2-135M's configuration, smaller: three heads share a key, widths are multiples of 64
    (as 4-bit weights want them), tied embeddings, theta 100000."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=192,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def qwen3(layers: int):
    """Qwen3-0.6B's configuration, smaller: heads wider than the hidden size, norms on q and k."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=400,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=16,
            max_position_embeddings=32_768,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


# profile -> the architecture, the templates of its base and its instruct model, further settings.
# Where this CPU has no instructions for bf16, the gpu profile's would take twenty times as long.
FAMILIES = {
    "laptop": (smollm2, None, SMOLLM2_CHAT, []),
    "gpu": (
        *(qwen3, QWEN3_CHAT, QWEN3_CHAT),
        ["device=cpu"] + ([] if bf16_pays() else ["dtype=float32"]),
    ),
}
# Knobs of the notebooks that make a run short; what is not a knob there is left out. With fewer
# prompts a model that knows nothing may score 0 on all of them, and a ratio of scores is no number.
SHORT = {"NUM_EXAMPLES": "512", "NUM_PROMPTS": "32", "NUM_ITEMS": "16", "NUM_TEST": "24"}
SHORT |= {"NUM_STEPS": "4"}
ALL_CORES = str(os.cpu_count())  # for a notebook alone
# 06 needs a model that solves a problem now and then; random weights teach a verifier nothing.
STAND_INS = [path for path in NOTEBOOKS if not path.name.startswith("06")]


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    """Folders by profile and role, as a download would leave them: bf16 safetensors, tokenizer."""
    import torch

    folders = {}
    for profile, (family, base_chat, instruct_chat, _) in FAMILIES.items():
        for role, layers in (("base", 2), ("instruct", 2), ("large", 3)):
            torch.manual_seed(layers)
            folder = tmp_path_factory.mktemp(f"{profile}-{role}")
            chat, eos = base_chat, "<|endoftext|>"
            if role == "instruct":
                chat, eos = instruct_chat, "<|im_end|>"
            tokenizer, model = make_tokenizer(chat, eos), family(layers).to(torch.bfloat16)
            model.config.eos_token_id = model.generation_config.eos_token_id = (
                tokenizer.eos_token_id
            )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            folders[profile, role] = folder
    return folders


@pytest.fixture(scope="module")
def data_environment(tmp_path_factory) -> dict[str, str]:
    """The published data through the downloader where they are here, else rows of their formats."""
    folder, real = tmp_path_factory.mktemp("data"), os.environ.get("COURSE_TEST_DATA")
    if real and (Path(real) / "data" / "mmlu").is_dir():
        base = str(Path(real).resolve() / "data")
        return {"COURSE_DATA_BASE": base, "COURSE_DATA": str(folder)}
    write_stand_ins(folder)
    return {"COURSE_DATA": str(folder)}


def write_stand_ins(folder) -> None:
    """Made-up rows in the published formats of the four sets that the profiles name."""
    rng = random.Random(0)
    sums = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(1200)]

    def write(name: str, rows: list[dict]) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        lines = "\n".join(json.dumps(row) for row in rows).encode()
        if name.endswith(".json"):
            lines = json.dumps(rows).encode()
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)

    write(
        "rasbt_instruction/instruction-data.json",
        [
            {"instruction": f"Add {a} and {b} ({i}).", "input": "", "output": f"It is {a + b}."}
            for i, (a, b) in enumerate(sums)
        ],
    )
    for part in ("harmless", "helpful"):
        turns = [f"\n\nHuman: Is {a} > {b} ({i})?\n\nAssistant: " for i, (a, b) in enumerate(sums)]
        rows = [{"chosen": turn + "Let us see.", "rejected": turn + "No."} for turn in turns]
        write(f"hh_rlhf/{part}-base-test.jsonl.gz", rows)
    for split, each in (("dev", 5), ("test", 80)):
        items = [
            {
                "subject": subject,
                "question": f"What is {a} + {b}?",
                "choices": [str(a + b + k) for k in range(4)],
                "answer": 0,
            }
            for subject in ("elementary_mathematics", "high_school_physics", "marketing")
            for a, b in rng.sample(sums, each)
        ]
        write(f"mmlu/{split}.jsonl", items)
    problems = [
        {"question": f"{a} plus {b}?", "answer": f"<<{a}+{b}={a + b}>>\n#### {a + b}"}
        for a, b in sums
    ]
    write("gsm8k/test.jsonl", problems)
    write("gsm8k/train.jsonl", problems)


def settings(notebooks: list, *pairs: str) -> list[str]:
    """`--set` for each pair, and for the short knobs that the notebooks have and no pair gives."""
    knobs = "\n".join(path.read_text(encoding="utf-8") for path in notebooks)
    short = {name: value for name, value in SHORT.items() if f"{name} = " in knobs}
    given = short | dict(pair.split("=", 1) for pair in pairs)
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(
    ("profile", "notebooks"),
    [("laptop", STAND_INS), ("gpu", NOTEBOOKS[4:5])],
    ids=["laptop", "gpu"],
)
def test_notebooks_run_under_the_profile(
    profile, notebooks, model_folders, data_environment, tmp_path
):
    """All but 06 with the laptop's models; with the gpu's 05, which samples and trains in turn."""
    described = yaml.safe_load((ROOT / f"data/profiles/{profile}.yaml").read_text(encoding="utf-8"))
    free = psutil.virtual_memory().available / 1e9
    if free < described["memory_gb"]:
        pytest.skip(
            f"{profile} asks for {described['memory_gb']} GB of memory, {free:.1f} are free"
        )
    models = [
        f"{role}_model={model_folders[profile, role]}" for role in ("base", "instruct", "large")
    ]
    process = course(
        "run",
        *(path.name[:2] for path in notebooks),
        "--profile",
        profile,
        *settings(notebooks, *models, *FAMILIES[profile][3]),
        build=tmp_path,
        timeout=600 * len(notebooks),
        OMP_NUM_THREADS=ALL_CORES if len(notebooks) == 1 else "1",
        **data_environment,
    )
    assert process.returncode == 0, tail(process)
    rows = claims(tmp_path).values()
    assert {row["profile"] for row in rows} == {profile}
    for path in notebooks:
        executed(tmp_path, path)
        claimed = any(int(row["id"].split(".")[0]) == int(path.name[:2]) for row in rows)
        assert claimed or path.name.startswith("08")  # whose claims all need a second model


def test_the_tiny_models_are_of_the_profiles_architectures(model_folders):
    for profile, name in (("laptop", "LlamaForCausalLM"), ("gpu", "Qwen3ForCausalLM")):
        config = json.loads((model_folders[profile, "base"] / "config.json").read_text())
        assert config["architectures"] == [name]


def test_a_real_pretrained_model_takes_the_base_models_place(tmp_path):
    folder = real_files("models/stories260k")
    # The largest model that it is compared with is the smallest of the course, to save time.
    models = [f"base_model={folder}", "large_model=pocket/s"]
    process = course(
        "run",
        "01",
        *settings(NOTEBOOKS[:1], *models, "NUM_EXAMPLES=64"),
        build=tmp_path,
        OMP_NUM_THREADS=ALL_CORES,
    )
    assert process.returncode == 0, tail(process)
    executed(tmp_path, NOTEBOOKS[0])
    assert claims(tmp_path)
