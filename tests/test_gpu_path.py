"""The path that a real card takes, on a simulated one: it runs to its end and agrees with the CPU's path."""

import json

import pytest
import torch
from conftest import ROOT, kill_in_training
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

SIMULATED = [str(ROOT / "tests" / "simulated_cuda.py")]
SMALL = {
    "SYSTEM": "甲",  # an interpreted kernel takes its time over each token
    "DTYPE": "float32",
    "ACCUMULATION": 1,
    "MAX_STEPS": 2,
    "EVALUATIONS": 2,
    "EVAL_ROWS": 1,
    "NEW_TOKENS": 2,
    "TRY": "乙",
}
SYMPTOMS = "发热 咳嗽 头痛 腹泻 皮疹 乏力 胸闷 失眠 眩晕 呕吐 耳鸣 腰痛".split()
THEN = """
import json
from pathlib import Path
classes = [f"{kind.__module__}.{kind.__name__}" for kind in (FastLanguageModel, type(trainer))]
history = {"log": trainer.state.log_history, "labels": labels.tolist(), "classes": classes}
Path(OUTPUT, "history.json").write_text(json.dumps(history))
"""


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory):
    """Return a file of short rows, each of a topic of its own."""
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    rows = [
        {
            "instruction": f"{name}？",
            "input": "",
            "output": f"休息{i}天。",
            "topic": name,
        }
        for i, name in enumerate(SYMPTOMS, 1)
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory):
    """Return the folder of an untrained Qwen2 of two layers with the tiny model's tokenizer."""
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("script", ["sft_gongwen.py", "sft_alpaca.py"])
def test_gpu_path_runs_and_agrees_with_the_cpu(run_script, two_layers, few_rows, tmp_path, script):
    """In float32 loss and gradient norm of both paths are equal to 1e-5 on the same rows, the labels to the letter."""
    environment, histories = {"MODEL": str(two_layers), "DATA": str(few_rows)}, {}
    environment["SIMULATED_CAPABILITY"] = "7.5"  # with bfloat16 at hand Unsloth autocasts float32 to it
    for name, runner in (("cpu", []), ("gpu", SIMULATED)):
        output = tmp_path / name
        run = run_script(script, output, runner, environment, then=THEN, LOAD_IN_4BIT=False, **SMALL)
        assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
        histories[name] = json.loads((run.output / "history.json").read_text())
        assert load_file(run.output / "lora" / "adapter_model.safetensors")
    cpu, gpu = histories["cpu"], histories["gpu"]
    assert cpu["labels"] == gpu["labels"] and cpu["classes"] != gpu["classes"]
    first = [next(entry for entry in history["log"] if "loss" in entry) for history in (cpu, gpu)]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-5)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("script", ["sft_gongwen.py"])
def test_gpu_path_in_4_bit_resumes(run_script, two_layers, few_rows, tmp_path, script):
    """What a card runs by default, NF4 weights: killed after its first checkpoint, the run goes on to its end."""
    output, environment = tmp_path / "run", {"MODEL": str(two_layers), "DATA": str(few_rows)}
    kill_in_training(script, output, 1, SIMULATED, environment, **SMALL)
    run = run_script(script, output, SIMULATED, environment, **SMALL)
    assert run.status == 0, run.stdout[-2000:] + run.stderr[-3000:]
    assert "Going on from" in run.stdout
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["steps"] == 2 and metrics["device"] == "simulated"
    assert load_file(output / "lora" / "adapter_model.safetensors")
