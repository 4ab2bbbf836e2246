"""The path that a real card takes, on a simulated one: it runs to its end and agrees with the CPU's path."""

import json

import pytest
import torch
from conftest import ROOT, kill_in_training
from openpyxl import Workbook
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIMULATED = [str(ROOT / "tests" / "simulated_cuda.py")]
SMALL = {"DTYPE": "float32", "ACCUMULATION": 1, "BATCH_SIZE": 2}  # an interpreted kernel takes its time
SFT = SMALL | {"SYSTEM": "甲", "MAX_STEPS": 2, "EVALUATIONS": 2, "EVAL_ROWS": 1, "NEW_TOKENS": 2, "TRY": "乙"}
GRPO = SMALL | {
    "SYSTEM": "a", "MAX_STEPS": 2, "NUM_GENERATIONS": 2, "NEW_TOKENS": 6, "EVAL_ROWS": 1, "TRY": "2 + 2 = ?",
}  # fmt: skip
MEDICAL = SMALL | {
    "SYSTEM": "甲", "RUNS": [("lora", 8)], "EQUAL_STEPS": 2, "EVALUATIONS": 2, "VAL_ROWS": 1,
    "EVAL_ROWS": 1, "RED_ROWS": 1, "NEW_TOKENS": 2, "TRY": "胸痛怎么办？",
}  # fmt: skip
VISION = SMALL | {
    "MAX_STEPS": 2, "EVALUATIONS": 2, "EVAL_ROWS": 1, "NEW_TOKENS": 2, "MAX_PIXELS": 3136, "LORA_R": 4,
}  # fmt: skip
SCRIPTS = {
    "sft_gongwen.py": SFT,
    "sft_alpaca.py": SFT,
    "sft_medical.py": MEDICAL,
    "grpo_r1.py": GRPO,
    "vl_car_insurance.py": VISION,
}
SYMPTOMS = "发热 咳嗽 头痛 腹泻 皮疹 乏力 胸闷 失眠 眩晕 呕吐 耳鸣 腰痛 便秘 牙疼 心慌 盗汗 脱发 鼻塞 咽痛 浮肿".split()
THEN = """
import json
from pathlib import Path
classes = [f"{kind.__module__}.{kind.__name__}" for kind in (type(model), type(trainer))]
history = {"loss": first["loss"], "grad_norm": first["grad_norm"], "labels": labels.tolist(), "classes": classes}
Path(OUTPUT, "history.json").write_text(json.dumps(history))
"""
FIRST = """
first = next(entry for entry in trainer.state.log_history if "loss" in entry)
labels = batch["labels"] if "batch" in globals() else labels
"""
GIVEN_SAMPLES = """
torch.manual_seed(1)  # samples of an untrained model all earn nothing: these have an advantage
labels, prompts = torch.randint(500, 900, (2, 6)), torch.randint(500, 900, (2, 5))
labels[1, 4:] = tokenizer.pad_token_id
given = {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": labels}
given |= {"completion_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]), "advantages": torch.tensor([1.0, -0.5])}
given |= {"num_items_in_batch": torch.tensor(10)}
model.train()
trainer.optimizer.zero_grad()
loss = trainer.compute_loss(trainer.model_wrapped, given, num_items_in_batch=torch.tensor(10))
loss.backward()
norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
first = {"loss": loss.item(), "grad_norm": norm.item()}
"""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Return script -> the environment with an untrained model of two layers and a file of short rows."""
    folder = tmp_path_factory.mktemp("two_layers")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-qwen2.5")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=256, max_position_embeddings=2048, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    tiny = ROOT / "data" / "tiny-qwen2.5-vl"
    config = AutoConfig.from_pretrained(tiny)
    config.text_config.num_hidden_layers = config.vision_config.depth = 2
    config.vision_config.fullatt_block_indexes = [1]
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:2]
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.save_pretrained(folder / "vision")
    AutoProcessor.from_pretrained(tiny).save_pretrained(folder / "vision")

    rows = [
        {"instruction": f"{name}？", "input": "", "output": f"休息{i}天。", "topic": name}
        for i, name in enumerate(SYMPTOMS, 1)
    ]
    questions = [
        {"question": f"{name}怎么办呢", "answer": f"多休息，多喝水，{i}天后复查。"}
        for i, name in enumerate(SYMPTOMS, 1)
    ]
    sums = [{"question": f"{i} + 2 = ?", "answer": f"#### {i + 2}"} for i in range(20)]
    for name, part in (("rows", rows), ("questions", questions), ("sums", sums)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    book = Workbook()
    book.active.append(["image", "prompt", "response", "style"])
    for i in range(20):
        Image.new("RGB", (48, 48), (9 * i, 255 - 9 * i, 90)).save(folder / f"{i}.png")
        book.active.append([f"{i}.png", "数？", json.dumps({"数": i}, ensure_ascii=False), f"style {i % 5}"])
    book.save(folder / "sheet.xlsx")
    data = {
        "sft_medical.py": "questions.jsonl",
        "grpo_r1.py": "sums.jsonl",
        "vl_car_insurance.py": "sheet.xlsx",
    }
    return {
        script: {
            "MODEL": str(folder / ("vision" if script.startswith("vl") else "text")),
            "DATA": str(folder / data.get(script, "rows.jsonl")),
            "SIMULATED_CAPABILITY": "7.5",  # with bfloat16 at hand Unsloth autocasts float32 to it
        }
        for script in SCRIPTS
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_gpu_path_runs_and_agrees_with_the_cpu(run_script, inputs, tmp_path, script):
    """In float32 loss and gradient norm of both paths are equal to 1e-5 on the same rows, the labels to the letter."""
    histories = {}
    for name, runner in (("cpu", []), ("gpu", SIMULATED)):
        four_bit = {} if script == "sft_medical.py" else {"LOAD_IN_4BIT": False}
        then = (GIVEN_SAMPLES if script == "grpo_r1.py" else FIRST) + THEN
        options = {"runner": runner, "environment": inputs[script], "then": then}
        run = run_script(script, tmp_path / name, **options, **SCRIPTS[script], **four_bit)
        assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
        histories[name] = json.loads((run.output / "history.json").read_text())
        assert load_file(run.output / "lora" / "adapter_model.safetensors")
    cpu, gpu = histories["cpu"], histories["gpu"]
    assert cpu["labels"] == gpu["labels"] and cpu["classes"] != gpu["classes"]
    assert cpu["loss"] == pytest.approx(gpu["loss"], abs=1e-5) and cpu["loss"] != 0
    assert cpu["grad_norm"] == pytest.approx(gpu["grad_norm"], rel=1e-5) and cpu["grad_norm"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_gpu_path_in_4_bit_resumes(run_script, inputs, tmp_path, script):
    """What a card runs by default, NF4 weights: killed after its first checkpoint, the run goes on to its end."""
    output, constants = tmp_path / "run", dict(SCRIPTS[script])
    if script == "sft_medical.py":
        constants["RUNS"] = [("qlora", 8)]
    kill_in_training(script, output, 1, SIMULATED, inputs[script], **constants)
    run = run_script(script, output, runner=SIMULATED, environment=inputs[script], **constants)
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    assert "oing on from" in run.stdout
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["steps"] == 2 and metrics["device"] == "simulated"
    assert load_file(output / "lora" / "adapter_model.safetensors")
