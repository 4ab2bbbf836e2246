"""MODEL alone switches the base: other families, two layers each, with their own configs, templates and end tokens.

The templates are those that TRL ships, byte for byte those of the hub; the tokenizer is the rehearsal's with the family's
special tokens. Per family: the labels hold the answer and what ends it and nothing else, generation stops there, a
base that thinks by default neither learns nor writes empty thoughts, and the adapter says the same when it is loaded.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import trl
from conftest import ROOT
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SIZE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
DELTA_NET = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
DELTA_NET |= {"linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32}


@dataclass
class Family:
    """A model family: transformers' name of its config, its template, what ends a turn, what begins an answer."""

    kind: str
    template: str
    end: str
    opening: str
    special: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)


NO_THOUGHT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
FAMILIES = {
    "Qwen2.5": Family("qwen2", "qwen2_5", "<|im_end|>", "<|im_start|>assistant\n"),
    "Qwen3": Family("qwen3", "qwen3", "<|im_end|>", NO_THOUGHT),
    "Qwen3-2507": Family("qwen3", "qwen3_instruct_2507", "<|im_end|>", "<|im_start|>assistant\n"),
    "Qwen3.5": Family("qwen3_5_text", "qwen3_5_think", "<|im_end|>", NO_THOUGHT, [], DELTA_NET),
    "Llama-3.2": Family("llama", "llama3_2", "<|eot_id|>", "assistant<|end_header_id|>\n\n", LLAMA),
    "Gemma-3": Family("gemma3_text", "gemma3", "<end_of_turn>", "<start_of_turn>model\n", ["<bos>", "<eos>"]),
}

PROGRAM = """
import json, os, sys, traceback
from pathlib import Path

root, folder, families, path = sys.argv[1:]
sys.path.insert(0, f"{root}/tests")
if path == "gpu":
    import simulated_cuda
    simulated_cuda.install()
from conftest import with_constants

constants = {"SYSTEM": "甲", "GENERAL": "none", "LOAD_IN_4BIT": False, "GRADIENT_CHECKPOINTING": False}
constants |= {"BATCH_SIZE": 4, "LEARNING_RATE": 1e-2, "LORA_R": 16, "EPOCHS": 100, "MAX_LENGTH": 256}
constants |= {"MAX_STEPS": 1, "NEW_TOKENS": 1} if path == "gpu" else {"MAX_STEPS": 40, "NEW_TOKENS": 24}
source = with_constants(Path(root, "sft_alpaca.py").read_text(encoding="utf-8"), **constants)
source = source.replace("# %% Data", "DTYPE = torch.float32\\n# %% Data", 1)
for family in families.split(","):
    os.environ |= {"MODEL": f"{folder}/{family}", "OUTPUT": f"{folder}/{family}/{path}"}
    cells = {"__name__": "__main__"}
    exec(compile(source, "sft_alpaca.py", "exec"), cells)
    batch = cells["trainer"].data_collator([cells["trainer"].train_dataset[0]])
    tokens, labels = batch["input_ids"][0], batch["labels"][0]
    decode, first = cells["tokenizer"].decode, cells["trainer"].state.log_history
    result = {"trained_on": decode(labels[labels != -100]), "prompt": decode(tokens[labels == -100])}
    result["answer"] = cells["train_dataset"][0]["completion"][0]["content"]
    result["loss"], result["norm"] = [(entry["loss"], entry["grad_norm"]) for entry in first if "loss" in entry][0]
    with cells["torch"].no_grad():
        cells["model"].eval()
        result["logits"] = cells["model"](input_ids=tokens[None].to(cells["model"].device)).logits[0, -1, :50].tolist()
    result["tokens"] = tokens.tolist()
    Path(folder, family, f"{path}.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an untrained model of each family, and rows whose answers are easy to learn."""
    folder = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-qwen2.5")
        tokens = ["<|im_start|>", "<|im_end|>", family.end, *family.special]
        tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(tokens))})
        tokenizer.add_tokens(["<think>", "</think>"])  # as in Qwen3, where they are tokens but not special
        tokenizer.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text(encoding="utf-8")
        tokenizer.eos_token = "<eos>" if "<eos>" in family.special else family.end
        if family.special:
            tokenizer.bos_token = family.special[0]
        ends = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, family.end])
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family.kind](
            vocab_size=len(tokenizer),
            eos_token_id=ends[0],
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **SIZE,
            **family.config,
        )
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = ends
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {
            "instruction": f"{i}？",
            "output": "多喝水，早点休息。",
            "meta": {"split": "train" if i > 2 else "test"},
        }
        for i in range(1, 15)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def results(folder, families, path) -> dict[str, dict]:
    """Return what sft_alpaca.py did with each family, one after the other in one process."""
    variables = {"DATA": str(folder / "rows.jsonl"), "OMP_NUM_THREADS": "1", "SIMULATED_CAPABILITY": "7.5"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), str(folder), ",".join(families), path],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-1500:] + process.stderr[-3000:]
    texts = {name: (folder / name / f"{path}.json").read_text(encoding="utf-8") for name in families}
    return {name: json.loads(text) for name, text in texts.items()}


@pytest.fixture(scope="module")
def on_cpu(folder):
    return results(folder, FAMILIES, "cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_answer_and_its_end(on_cpu, name):
    family, result = FAMILIES[name], on_cpu[name]
    assert result["trained_on"].rstrip("\n") == result["answer"] + family.end
    assert result["prompt"].endswith(family.opening) and "甲" in result["prompt"]


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_end_of_the_turn(folder, on_cpu, name):
    lines = (folder / name / "cpu" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == 2
    for answer in answers:
        assert answer["after_ended"] and answer["after"] == "多喝水，早点休息。", answer


@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_says_the_same_when_loaded(folder, on_cpu, name):
    base = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / name / "cpu" / "lora").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([on_cpu[name]["tokens"]])).logits[0, -1, :50]
    assert logits.tolist() == pytest.approx(on_cpu[name]["logits"], abs=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(folder / name / "cpu" / "lora")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1？"}], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith(FAMILIES[name].opening), "served, it is asked as it was trained"


def test_gpu_path_trains_other_families(folder, on_cpu):
    """On the simulated card the first loss and gradient norm equal the CPU's."""
    # Not Qwen2.5, which test_gpu_path.py runs, nor Qwen3.5, whose kernels Triton's interpreter cannot run.
    families = ["Qwen3", "Llama-3.2", "Gemma-3"]
    for name, result in results(folder, families, "gpu").items():
        assert result["trained_on"] == on_cpu[name]["trained_on"]
        assert result["loss"] == pytest.approx(on_cpu[name]["loss"], abs=1e-3)
        assert result["norm"] == pytest.approx(on_cpu[name]["norm"], rel=1e-2)


THOUGHT = "<think>发热三天，先看精神。</think>先物理降温，再去医院。"


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_8", "llama3_2"]
)
@pytest.mark.parametrize("thinks", [True, False])
def test_medical_rows_think_where_the_prompt_asks_for_it(functions, name, thinks):
    """A prompt is the beginning of its row, so that the mask is right, and ends as the row's kind has to begin."""
    module = functions("sft_medical.py")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-qwen2.5")
    source = (ROOT / "sft_medical.py").read_text(encoding="utf-8")
    told = re.search(r'^template = "(\{% set enable_thinking.*?%\})"', source, re.M)[1]
    tokenizer.chat_template = told + (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    row = {"instruction": module.THINK if thinks else module.PLAIN, "input": "宝宝发热怎么办？"}
    chat = module.to_prompt_completion(row | {"output": THOUGHT if thinks else "先物理降温。"})
    prompt = tokenizer.apply_chat_template(chat["prompt"], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat["prompt"] + chat["completion"], tokenize=False)
    assert whole.startswith(prompt)
    completion = whole.removeprefix(prompt)
    assert ("发热三天" in completion) == thinks and "先物理降温" in completion
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, whole)]
    assert ids[1][: len(ids[0])] == ids[0], "in tokens, too"
    if name.startswith("qwen3"):
        assert prompt.endswith("<think>\n\n</think>\n\n") != thinks


IMAGE_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
EYE = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128}
EYE |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
SEEN = """
batch = trainer.data_collator([trainer.train_dataset[0]])
labels = batch["labels"][0]
seen = {"trained_on": processor.decode(labels[labels != -100]), "grid": batch["image_grid_thw"].tolist()}
seen |= {"patches": int((batch["input_ids"] == model.config.image_token_id).sum()), "norm": 0.0}
seen["tuned"] = sorted({name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name})
seen["norm"] = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry][0]
Path(OUTPUT, "seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.parametrize("runner", [[], [str(ROOT / "tests" / "simulated_cuda.py")]], ids=["cpu", "gpu"])
def test_a_younger_base_that_sees(run_script, tmp_path, runner):
    """Qwen3-VL: patches of 16 pixels, four of which are a token, and another eye with other names of its layers."""
    processor = AutoProcessor.from_pretrained(ROOT / "data" / "tiny-qwen2.5-vl")
    tokenizer, images = processor.tokenizer, processor.image_processor
    tokenizer.chat_template = (TEMPLATES / "qwen3_vl.jinja").read_text(encoding="utf-8")
    images.patch_size, images.merge_size = 16, 2
    videos = Qwen3VLVideoProcessor(patch_size=16)
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)
    torch.manual_seed(0)
    text = {
        **SIZE,
        "vocab_size": len(tokenizer),
        "rope_parameters": ROPE,
        "eos_token_id": tokenizer.eos_token_id,
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE_TOKENS.items()}
    config = CONFIG_MAPPING["qwen3_vl"](text_config=text, vision_config=EYE, tie_word_embeddings=True, **ids)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = []
    for i in range(8):
        Image.new("RGB", (192, 128), (30 * i, 255 - 30 * i, 90)).save(tmp_path / f"{i}.png")
        rows.append(
            {"file_names": [f"{i}.png"], "prompt": "数？", "answer": json.dumps({"数": i}), "style": str(i)}
        )
        rows[-1] |= {"number": i, "split": "train" if i > 2 else "held_out"}
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    environment = {"MODEL": str(tmp_path / "model"), "DATA": str(tmp_path / "metadata.jsonl")}
    environment["SIMULATED_CAPABILITY"] = "7.5"
    constants = {
        "DTYPE": torch.float32,
        "LOAD_IN_4BIT": False,
        "GRADIENT_CHECKPOINTING": False,
        "MAX_STEPS": 2,
    }
    constants |= {"BATCH_SIZE": 2, "ACCUMULATION": 1, "NEW_TOKENS": 4, "MAX_PIXELS": 32 * 32 * 6}
    run = run_script("vl_car_insurance.py", runner=runner, environment=environment, then=SEEN, **constants)
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    seen = json.loads((run.output / "seen.json").read_text(encoding="utf-8"))
    assert seen["trained_on"].rstrip("\n").endswith("}<|im_end|>") and seen["trained_on"].startswith('{"')
    [[frames, height, width]] = seen["grid"]
    assert frames == 1 and height * width // 4 == seen["patches"] <= 6
    assert {"qkv", "proj", "linear_fc1", "linear_fc2", "q_proj", "down_proj"} <= set(seen["tuned"])
    assert seen["norm"] > 0 and load_file(run.output / "lora" / "adapter_model.safetensors")
