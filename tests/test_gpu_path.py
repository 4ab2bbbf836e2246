"""The path that a real card takes, on a simulated one: it runs to its end and agrees with the CPU's path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, kill_in_training, with_constants
from PIL import Image
from safetensors.torch import load_file
from test_runs import without_workers
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIMULATED = [str(ROOT / "tests" / "simulated_cuda.py")]
# An interpreted kernel takes its time: short rows, few of them, none of the files that ship.
SMALL = {"DTYPE": torch.float32, "ACCUMULATION": 1, "BATCH_SIZE": 2, "NEW_TOKENS": 2, "EVAL_ROWS": 2}
SFT = SMALL | {"SYSTEM": "甲", "MAX_STEPS": 2, "GENERAL": "none"}
MEDICAL = SMALL | {"SYSTEM": "甲", "RUNS": [("lora", 8)], "EQUAL_STEPS": 2, "VAL_ROWS": 2}
MEDICAL |= {"GENERAL": "none", "RED_TEAM": "none", "EXAM": "none"}
GRPO = SMALL | {"SYSTEM": "a", "MAX_STEPS": 2, "NUM_GENERATIONS": 2, "NEW_TOKENS": 6}
VISION = SMALL | {"MAX_STEPS": 2, "MAX_PIXELS": 3136, "LORA_R": 4}
SCRIPTS = {
    "sft_gongwen.py": SFT,
    "sft_alpaca.py": SFT,
    "sft_medical.py": MEDICAL,
    "grpo_r1.py": GRPO,
    "vl_car_insurance.py": VISION,
}
SYMPTOMS = "发热 咳嗽 头痛 腹泻 皮疹 乏力 胸闷 失眠 眩晕 呕吐 耳鸣 腰痛 便秘 牙疼 心慌 盗汗 脱发 鼻塞 咽痛 浮肿".split()
THEN = """
classes = [f"{kind.__module__}.{kind.__name__}" for kind in (type(model), type(trainer))]
history = {"loss": first["loss"], "grad_norm": first["grad_norm"], "labels": labels.tolist(), "classes": classes}
Path(OUTPUT, "history.json").write_text(json.dumps(history))
"""
FIRST = """
first = next(entry for entry in trainer.state.log_history if "loss" in entry)
labels = trainer.data_collator([trainer.train_dataset[0]])["labels"]
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


def write(path, rows) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Return script -> the environment with an untrained model of a layer (an eye of two) and a file of short rows."""
    folder = tmp_path_factory.mktemp("untrained")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-qwen2.5")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=256,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
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
        {
            "instruction": f"{name}？",
            "input": "",
            "output": f"休息{i}天。",
            "meta": {"split": "train" if i > 3 else "test"},
        }
        for i, name in enumerate(SYMPTOMS, 1)
    ]
    write(folder / "rows.jsonl", rows)
    for name, part in {"train": rows[3:], "val": rows[:2], "test": rows[1:3], "gold": rows[2:3]}.items():
        write(folder / f"{name}.jsonl", part)
    write(folder / "sums.jsonl", [{"question": f"{i} + 2 = ?", "answer": f"#### {i + 2}"} for i in range(20)])
    photos = []
    for i in range(20):
        Image.new("RGB", (48, 48), (9 * i, 255 - 9 * i, 90)).save(folder / f"{i}.png")
        photos.append(
            {"file_names": [f"{i}.png"], "prompt": "数？", "answer": json.dumps({"数": i}), "style": str(i)}
        )
        photos[-1] |= {"number": i, "split": "train" if i > 3 else "held_out"}
    write(folder / "metadata.jsonl", photos)
    data = {"sft_medical.py": ".", "grpo_r1.py": "sums.jsonl", "vl_car_insurance.py": "metadata.jsonl"}
    return {
        script: {
            "MODEL": str(folder / ("vision" if script.startswith("vl") else "text")),
            "DATA": str(folder / data.get(script, "rows.jsonl")),
            "SIMULATED_CAPABILITY": "7.5",  # with bfloat16 at hand Unsloth autocasts float32 to it
        }
        for script in SCRIPTS
    }


ONE_AFTER_THE_OTHER = """
import json, os, sys

for job in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    os.environ |= job["environment"]
    print(f"=== {job['script']}", file=sys.stderr, flush=True)
    code = compile(open(job["source"], encoding="utf-8").read(), job["script"], "exec")
    exec(code, {"__name__": "__main__"})
"""


def run_scripts(folder, inputs, constants, runner=(), then="") -> None:
    """Run scripts with constants of their own in one process, which imports Unsloth once; each has folder/script."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for script, values in constants.items():
        source = folder / f"source-{script}"
        text = with_constants((ROOT / script).read_text(encoding="utf-8"), **values)
        source.write_text(
            text + then.replace("{given}", GIVEN_SAMPLES if script == "grpo_r1.py" else FIRST),
            encoding="utf-8",
        )
        environment = inputs[script] | {"OUTPUT": str(folder / script)}
        jobs.append({"script": script, "source": str(source), "environment": environment})
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (folder / "run.py").write_text(ONE_AFTER_THE_OTHER, encoding="utf-8")
    command = [sys.executable, *runner, str(folder / "run.py"), str(folder / "jobs.json")]
    variables = {**os.environ, **jobs[0]["environment"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "max_length` seem to have been set" not in done.stderr


@pytest.fixture(scope="session")
def histories(inputs, tmp_path_factory):
    """Return path -> script -> what its first step was, in float32, on the CPU's path and on the card's."""
    folder = tmp_path_factory.mktemp("paths")
    in_16_bit = {script: values | {"LOAD_IN_4BIT": False} for script, values in SCRIPTS.items()}
    in_16_bit["sft_medical.py"] = MEDICAL
    found = {}
    for path, runner in (("cpu", []), ("gpu", SIMULATED)):
        run_scripts(folder / path, inputs, in_16_bit, runner, "{given}" + THEN)
        texts = {script: (folder / path / script / "history.json").read_text() for script in SCRIPTS}
        found[path] = {script: json.loads(text) for script, text in texts.items()}
        for script in SCRIPTS:
            assert load_file(folder / path / script / "lora" / "adapter_model.safetensors")
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_gpu_path_runs_and_agrees_with_the_cpu(histories, script):
    """In float32 loss and gradient norm of both paths are equal to 1e-5 on the same rows, the labels to the letter."""
    cpu, gpu = histories["cpu"][script], histories["gpu"][script]
    assert cpu["labels"] == gpu["labels"] and cpu["classes"] != gpu["classes"]
    assert cpu["loss"] == pytest.approx(gpu["loss"], abs=1e-5) and cpu["loss"] != 0
    assert cpu["grad_norm"] == pytest.approx(gpu["grad_norm"], rel=1e-5) and cpu["grad_norm"] > 0


def test_gpu_path_in_4_bit_resumes(inputs, tmp_path):
    """What a card runs by default, NF4 weights: killed after its first checkpoint, each run goes on to its end."""
    constants = SCRIPTS | {"sft_medical.py": MEDICAL | {"RUNS": [("qlora", 8)]}}
    del constants["sft_gongwen.py"]  # trains and resumes by the lines of sft_alpaca.py
    file = "checkpoints-*/checkpoint-1/trainer_state.json"
    for script, values in constants.items():
        kill_in_training(script, tmp_path / script, file, SIMULATED, inputs[script], **values)
        assert not (tmp_path / script / "metrics.json").exists()
    run_scripts(tmp_path, inputs, constants, SIMULATED, "assert newest.parent.name == 'checkpoint-1'")
    for script in constants:
        metrics = json.loads((tmp_path / script / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["train"]["steps"] == 2 and metrics["device"] == "simulated"
        assert load_file(tmp_path / script / "lora" / "adapter_model.safetensors")


ALONE_AND_TOGETHER = """
def batch_of(*rows):
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])

def loss_of(*rows):
    model.eval()
    return trainer.prediction_step(model, batch_of(*rows), prediction_loss_only=True)[0].item()

lengths = [int((batch_of(row)["labels"] != -100).sum()) for row in range(len(trainer.train_dataset))]
short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
losses = {"short": loss_of(short), "long": loss_of(long), "both": loss_of(short, long), "turned": loss_of(long, short)}
losses |= {"tokens": [lengths[short], lengths[long]], "sequences": batch_of(short, long)["input_ids"].shape[0]}
config.packing, config.eval_strategy, config.load_best_model_at_end = True, "no", False
both = Dataset.from_list([train_dataset[short], train_dataset[long]])
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=both, args=config)
losses |= {"packed": loss_of(0), "packed_rows": len(trainer.train_dataset)}
Path(OUTPUT, "losses.json").write_text(json.dumps(losses))
"""


def test_rows_in_one_pass_do_not_see_each_other(run_script, inputs, tmp_path):
    """Padding-free or packed, rows stand in one sequence: their loss is the token-weighted mean of that alone."""
    lines = Path(inputs["sft_alpaca.py"]["DATA"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows[10]["output"] = "先测体温，再看有没有皮疹，多喝温水，三天不退就去医院。"
    write(tmp_path / "rows.jsonl", rows)
    environment = inputs["sft_alpaca.py"] | {"DATA": str(tmp_path / "rows.jsonl")}
    options = {"runner": SIMULATED, "environment": environment, "then": ALONE_AND_TOGETHER}
    options["edit"] = without_workers
    run = run_script("sft_alpaca.py", tmp_path / "run", **options, **SFT | {"LOAD_IN_4BIT": False})
    assert run.status == 0, run.stderr[-3000:]
    losses = json.loads((run.output / "losses.json").read_text())
    few, many = losses["tokens"]
    weighted = (few * losses["short"] + many * losses["long"]) / (few + many)
    assert losses["sequences"] == losses["packed_rows"] == 1, "both rows in one sequence"
    assert few < many and abs(losses["short"] - losses["long"]) > 1e-3
    assert [losses[way] for way in ("both", "turned", "packed")] == pytest.approx([weighted] * 3, abs=1e-5)


def test_eight_rows_at_once_make_the_same_step(run_script, inputs, tmp_path):
    """8 x 1 is the optimizer step of 2 x 4 in fewer passes: equal losses and gradients."""
    found = {}
    for batch, passes in ((8, 1), (2, 4)):
        options = {"runner": SIMULATED, "environment": inputs["sft_alpaca.py"], "then": FIRST + THEN}
        constants = SFT | {"LOAD_IN_4BIT": False, "BATCH_SIZE": batch, "ACCUMULATION": passes, "MAX_STEPS": 1}
        run = run_script("sft_alpaca.py", tmp_path / str(batch), **options, **constants)
        assert run.status == 0, run.stderr[-3000:]
        found[batch] = json.loads((run.output / "history.json").read_text())
    assert found[8]["loss"] == pytest.approx(found[2]["loss"], abs=1e-3)
    assert found[8]["grad_norm"] == pytest.approx(found[2]["grad_norm"], rel=1e-2)
