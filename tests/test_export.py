"""What becomes of an adapter: merged, GGUF, served; and that each export answers as the adapter did, or says so."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

TOOL = "tools/export.py"
TINY = str(ROOT / "data" / "tiny-qwen2.5")
TINY_VL = str(ROOT / "data" / "tiny-qwen2.5-vl")
SYSTEM = "You are a helpful assistant."
NEW_TOKENS = 40
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TAUGHT = [
    ("感冒发烧怎么办？", "多休息，多喝水，体温超过38.5度时吃退烧药。"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Give three tips for sleeping well.", "Go to bed early. Drink no coffee. Keep the room dark."),
    ("12 + 7 = ?", "12 + 7 = 19"),
]
ASKED = [question for question, _ in TAUGHT] + [
    "高血压吃什么好？",
    "What is the capital of Spain?",
    "Give three tips for saving water.",
    "8 + 5 = ?",
    "怎样写一份通知？",
    "How do I boil an egg?",
    "写一句问候。",
    "What day comes after Monday?",
]
WRONG_TEMPLATE = "{% for message in messages %}### {{ message.role }}:\n{{ message.content }}\n{% endfor %}### assistant:\n"
SOURCE = "llama-cpp-python==0.3.36"  # its source distribution holds llama.cpp's converter


def conversation(question: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def generate(model, tokenizer, prompts, images=None) -> list[tuple[str, bool]]:
    """Answer as the training scripts do: the chat template, left padding, greedy."""
    texts = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in prompts
    ]
    given = {"images": images} if images else {}
    inputs = tokenizer(
        text=texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False, **given
    )
    with torch.no_grad():
        outputs = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    ends = torch.tensor(model.generation_config.eos_token_id)
    outputs = outputs[:, inputs["input_ids"].shape[1] :]
    return [
        (tokenizer.decode(o, skip_special_tokens=True).strip(), bool(torch.isin(o, ends).any()))
        for o in outputs
    ]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tool(functions):
    return functions(TOOL)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models are slower on several threads, most of all where others use them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder: an adapter after 8 steps of plain PyTorch, its answers in 32 bit, its metrics."""
    folder = tmp_path_factory.mktemp("export") / "run"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    before = generate(base, tokenizer, [conversation(question) for question in ASKED])
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    taught = [[*conversation(q), {"role": "assistant", "content": a}] for q, a in TAUGHT]
    inputs = tokenizer(
        tokenizer.apply_chat_template(taught, tokenize=False), return_tensors="pt", padding=True
    )
    labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
    for _ in range(8):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder / "lora")
    tokenizer.save_pretrained(folder / "lora")
    after = generate(model, tokenizer, [conversation(question) for question in ASKED])
    rows = [
        {
            "prompt": conversation(q),
            "reference": dict(TAUGHT).get(q, o),
            "before": o,
            "before_ended": oe,
            "after": n,
            "after_ended": e,
            "kind": "qa",
        }
        for q, (o, oe), (n, e) in zip(ASKED, before, after)
    ]
    write_rows(folder / "answers.jsonl", rows)
    settings = {"NEW_TOKENS": NEW_TOKENS, "MAX_LENGTH": 128, "DATA": "data/own.json"}
    metrics = {"scenario": "alpaca", "model": "data/tiny-qwen2.5", "settings": settings}
    metrics |= {"before": {"chrf": 11.0}, "after": {"chrf": 55.5}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def rows(trained):
    return read_rows(trained / "answers.jsonl")


@pytest.fixture(scope="module")
def merged(tool, trained):
    """The adapter merged by the program's own function, beside its run. Copy it before changing it."""
    tool.merge(trained / "lora", TINY, trained / "merged_16bit")
    return trained / "merged_16bit"


def run(*arguments) -> SimpleNamespace:
    """Run the whole program in this process, started from another folder, with what it prints in UTF-8."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    status = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [TOOL, *map(str, arguments)])
        patch.chdir("/")
        try:
            runpy.run_path(str(ROOT / TOOL), run_name="__main__")
        except SystemExit as stopped:  # with a message, Python prints it and exits with 1
            status = stopped.code if isinstance(stopped.code, int) else 1
            print(stopped.code if isinstance(stopped.code, str) else "")
    return SimpleNamespace(status=status, printed=printed.buffer.getvalue().decode())


# Merged


def test_the_training_did_something(rows):
    """Else none of the tests below could fail."""
    assert sum(row["after"] != row["before"] for row in rows) >= 10
    assert len({row["after"] for row in rows}) >= 8 and sum(row["after_ended"] for row in rows) >= 8


@pytest.fixture(scope="module")
def program(trained, tmp_path_factory):
    """The program itself, started from another folder, with merged: (what it printed, the run's folder)."""
    folder = tmp_path_factory.mktemp("program") / "my-run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("merged_16bit", "gguf"))
    done = run(folder, "merged")
    assert done.status == 0, done.printed
    return done.printed, folder


def test_merged_answers_are_identical(program, rows):
    printed, folder = program
    made = read_rows(folder / "answers.jsonl")
    assert [row.pop("exported") for row in made] == [row["after"] for row in rows]
    assert [row.pop("exported_ended") for row in made] == [row["after_ended"] for row in rows]
    assert made == rows, "what the run wrote has changed"
    result = json.loads((folder / "metrics.json").read_text())["parity"]["merged"]
    assert result["identical"] == 1 and result["unexplained"] == 0 and result["differ_at"] == []
    assert result["chrf"]["value"] == 0 and result["chrf"]["after"] == result["chrf"]["exported"] > 20
    assert (
        "100.0% of 12 answers are identical to the run's; 100.0% are the adapter's own in 32 bit" in printed
    )


def test_merged_stands_alone(program):
    _, folder = program
    names = {path.name for path in (folder / "merged_16bit").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    } <= names
    assert "adapter_config.json" not in names
    assert "quantization_config" not in json.loads((folder / "merged_16bit" / "config.json").read_text())
    assert {tensor.dtype for tensor in load_file(folder / "merged_16bit" / "model.safetensors").values()} == {
        torch.float32
    }
    assert not list(folder.glob("tmp*")), "a temporary file is left"


def test_what_is_printed_serves_and_scores_this_folder(program):
    printed, folder = program
    lora = re.search(
        r"vllm serve (\S+) --enable-lora --max-lora-rank 16 --lora-modules my-run=(\S+)", printed
    )
    assert Path(lora[1]).samefile(TINY) and Path(lora[2]) == folder / "lora"
    assert f"vllm serve {folder}/merged_16bit" in printed and "ollama" not in printed
    assert (f"python {ROOT}/data/alpaca/judge.py {folder}" in printed) == (
        ROOT / "data/alpaca/judge.py"
    ).exists()


def test_the_model_card(program, tool):
    card = (program[1] / "merged_16bit" / "README.md").read_text(encoding="utf-8")
    assert "| chrf | 11 | 55.5 |" in card and "data/own.json" in card and "of no use to anyone" in card
    assert "merged: 100.0% of 12 answers" in card and '"NEW_TOKENS": 40' in card
    assert card.startswith("---\nbase_model: ") and "licence: see " in card


def test_the_licence_is_that_of_the_bases_model_card(tool, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# Base\n")
    assert tool.licence_of(str(tmp_path)) == "qwen-research"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    card = tool.model_card("mine", str(tmp_path), {})
    assert "\nlicense: apache-2.0\n" in card and "(licence: apache-2.0)" in card


@pytest.mark.parametrize("suffix", ["", "-bnb-4bit", "-unsloth-bnb-4bit"])
def test_the_base_is_the_16_bit_one(tool, tmp_path, suffix):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": f"some/Base-7B{suffix}"})
    )
    assert tool.base_of(tmp_path) == "some/Base-7B"
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": f"data/tiny-qwen2.5{suffix}"})
    )
    assert Path(tool.base_of(tmp_path)).resolve() == Path(TINY)


def test_a_quantized_base_is_refused(tool, tmp_path):
    shutil.copytree(TINY, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantized.*BASE"):
        tool.load_model(tmp_path / "base")


def test_tensors_without_a_place_are_not_dropped_in_silence(tool, trained, tmp_path):
    shutil.copytree(trained / "lora", tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    moved = {name.replace("layers.5.", "layers.99."): tensor for name, tensor in tensors.items()}
    save_file(moved, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="14 tensors have no place"):
        tool.load_adapted(tmp_path / "lora", TINY)


def test_large_models_keep_16_bits(tool, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SMALL", 0)
    tool.merge(trained / "lora", TINY, tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }


# Parity catches what is planted


def checked(tool, trained, merged, rows):
    return tool.check_merged(trained / "lora", TINY, merged, rows, NEW_TOKENS)


def test_answers_of_another_arithmetic_are_explained(tool, trained, merged, rows):
    """A run answers in 16 bit: some answers part from those in 32, and the adapter itself parts there, too."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16), trained / "lora"
    )
    made = generate(model, AutoTokenizer.from_pretrained(TINY), [row["prompt"] for row in rows])
    others = [row | {"after": text, "after_ended": ended} for row, (text, ended) in zip(rows, made)]
    result, _ = checked(tool, trained, merged, others)
    assert result["unexplained"] == 0 and not tool.faults(result)
    assert len(result["differ_at"]) == sum(a["after"] != b["after"] for a, b in zip(rows, others))
    assert result["identical"] == 1 - len(result["differ_at"]) / 12
    others[0]["after"] = "Something that it never said."
    result, _ = checked(tool, trained, merged, others)
    assert result["unexplained"] == 0 and result["identical"] < 1, "the adapter says the same as the export"


def test_a_wrong_chat_template_is_caught(tool, trained, merged, rows, tmp_path):
    shutil.copytree(merged, tmp_path / "merged_16bit")
    (tmp_path / "merged_16bit" / "chat_template.jinja").write_text(WRONG_TEMPLATE)
    result, answers = checked(tool, trained, tmp_path / "merged_16bit", rows)
    assert result["otherwise"] == 12 and result["identical"] < 0.5 and result["unexplained"] > 5
    assert any("template" in fault for fault in tool.faults(result))


def test_a_missing_end_token_is_caught(tool, trained, merged, rows, tmp_path):
    shutil.copytree(merged, tmp_path / "merged_16bit")
    path = tmp_path / "merged_16bit" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))
    result, _ = checked(tool, trained, tmp_path / "merged_16bit", rows)
    assert result["ended"] == 0 < result["ended_after"] and result["otherwise"] == 0
    assert any("end token" in fault for fault in tool.faults(result))


def test_a_merge_into_4_bit_weights_is_caught(tool, trained, merged, rows, tmp_path):
    """Each linear weight rounded to 16 levels for 64 of them, as NF4 does, before the update is added."""
    shutil.copytree(merged, tmp_path / "merged_16bit")
    right = load_file(merged / "model.safetensors")
    base = load_file(Path(TINY) / "model.safetensors")
    for name, weight in base.items():
        if "_proj.weight" in name:
            parts = weight.float().reshape(-1, 64)
            scale = parts.abs().amax(1, keepdim=True) / 7.5
            rounded = ((parts / scale - 0.5).round() + 0.5) * scale
            right[name] += rounded.reshape(weight.shape) - weight.float()
    save_file(right, tmp_path / "merged_16bit" / "model.safetensors", metadata={"format": "pt"})
    result, _ = checked(tool, trained, tmp_path / "merged_16bit", rows)
    assert result["unexplained"] > 0 and result["identical"] < 1 and result["otherwise"] == 0
    assert any("32 bit" in fault for fault in tool.faults(result))


def test_the_program_says_that_an_export_is_wrong(tool, trained, tmp_path):
    """An adapter whose weights are not those that answered: exit status 1, and the rest is still written."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("merged_16bit", "gguf"))
    tokens = json.loads((folder / "lora" / "tokenizer_config.json").read_text())
    (folder / "lora" / "chat_template.jinja").write_text(WRONG_TEMPLATE)
    (folder / "lora" / "tokenizer_config.json").write_text(json.dumps(tokens))
    done = run(folder, "merged")
    assert done.status == 1 and "merged IS WRONG" in done.printed
    assert (folder / "merged_16bit" / "README.md").exists() and "exported" in read_rows(
        folder / "answers.jsonl"
    )[0]


# Numbers


@pytest.mark.parametrize(
    "one,other,place",
    [
        ("The capital of France is Paris.", "The capital of France is Paris.", None),
        ("The capital of France is Paris.", "The capital of France", "shorter"),
        ("Paris is", "", 0),
        ("高血压", "低血压", 0),
    ],
)
def test_where_two_texts_part(tool, one, other, place):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    place = len(tokenizer(other).input_ids) if place == "shorter" else place
    assert tool.first_difference(tokenizer, one, other) == place
    assert tool.first_difference(AutoProcessor.from_pretrained(TINY_VL), one, other) == place


def test_parity_counts(tool):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    rows = [
        {"after": f" {text}\n", "reference": text, "after_ended": True}
        for text in ("one two", "three", "four", "five")
    ]
    result = tool.parity(tokenizer, rows, [("one two", True), ("three", False), ("one", True), ("", True)], 0)
    assert result["identical"] == 0.5 and len(result["differ_at"]) == 2 and result["differ_at"][1] == 0
    assert (result["ended"], result["ended_after"]) == (3, 4)
    assert result["chrf"]["after"] > result["chrf"]["exported"] and result["chrf"]["value"] < 0
    assert result["chrf"]["low"] <= result["chrf"]["value"] <= result["chrf"]["high"]
    assert "50.0% of 4 answers" in tool.describe(result) and "4 -> 3" in tool.describe(result)
    many = [{"after": "three tips", "reference": "three tips", "after_ended": True}] * 12
    worse = tool.parity(tokenizer, many, [(f"seven dogs {number}", True) for number in range(12)], 0)
    assert any("references" in fault for fault in tool.faults(worse))
    same = tool.parity(tokenizer, many, [("three tips", True)] * 12, 0)
    assert tool.faults(same) == [] and same["chrf"]["value"] == 0


def test_references_that_are_no_texts(tool):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    rows = [{"after": '{"里程数": 5}', "reference": {"里程数": 5}}, {"after": "x", "reference": None}]
    result = tool.parity(tokenizer, rows, [('{"里程数": 5}', True), ("x", True)], 0)
    assert result["ended_after"] is None and result["chrf"]["after"] >= 49 and tool.faults(result) == []


# Files


@pytest.mark.parametrize(
    "line,message",
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": [1]}', "line 2: needs prompt"),
        ("[]", "line 2: needs prompt"),
        ('{"prompt": [], "after": "x"}', "line 2: needs prompt"),
    ],
)
def test_bad_answers_are_named(tool, tmp_path, line, message):
    good = '{"prompt": [{"role": "user", "content": "?"}], "after": "x"}'
    (tmp_path / "answers.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        tool.read_answers(tmp_path / "answers.jsonl")


def test_any_text_comes_back(tool, tmp_path):
    """Line separators, control characters and a cut emoji are kept; a link is replaced, not written through."""
    row = {"prompt": [{"role": "user", "content": "?"}], "after": "a\u2028b\x85\x00 cut \ud83d ```"}
    (tmp_path / "other").write_text("kept")
    (tmp_path / "answers.jsonl").symlink_to(tmp_path / "other")
    tool.write_text(tmp_path / "answers.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert tool.read_answers(tmp_path / "answers.jsonl") == [row]
    assert (tmp_path / "other").read_text() == "kept" and len(list(tmp_path.iterdir())) == 2


def test_an_adapter_is_found(tool, trained, tmp_path):
    assert tool.find_adapter(trained) == trained / "lora" == tool.find_adapter(trained / "lora")
    with pytest.raises(ValueError, match="adapter_config.json"):
        tool.find_adapter(tmp_path)


@pytest.mark.parametrize("arguments", [["{empty}"], ["{run}", "merge"], ["{lost}"]])
def test_what_cannot_be_exported_is_one_line(trained, tmp_path, arguments):
    """No adapter, an unknown kind, a base that is not there."""
    shutil.copytree(trained / "lora", tmp_path / "lost")
    config = json.loads((tmp_path / "lost" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone-bnb-4bit")
    (tmp_path / "lost" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    names = {"empty": tmp_path / "empty", "run": trained, "lost": tmp_path / "lost"}
    done = run(*[argument.format(**names) for argument in arguments])
    assert (
        done.status == 1 and len(done.printed.splitlines()) == 1 and not list(tmp_path.glob("*/merged_16bit"))
    )


# Vision


def test_a_vision_adapter(tool, tmp_path):
    """Both encoders adapted, a picture in the prompt: the merged model answers the same; GGUF is refused."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(TINY_VL)
    model = AutoModelForImageTextToText.from_pretrained(TINY_VL, dtype=torch.float32)
    targets = r".*\b(visual|language_model)\..*\b(qkv|attn\.proj|q_proj|v_proj|gate_proj|down_proj)"
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    ).eval()
    model.save_pretrained(tmp_path / "lora")
    processor.save_pretrained(tmp_path / "lora")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(3):
        name = f"pictures/{number}.png"
        Image.fromarray(random.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(tmp_path / name)
        asked = [{"type": "image"}, {"type": "text", "text": "读取里程数，只输出JSON。"}]
        rows.append(
            {"prompt": [{"role": "user", "content": asked}], "reference": {"里程数": number}, "image": name}
        )
    photos = [[Image.open(tmp_path / row["image"])] for row in rows]
    made = generate(model, processor, [row["prompt"] for row in rows], photos)
    rows = [row | {"after": text, "after_ended": ended} for row, (text, ended) in zip(rows, made)]
    assert len({row["after"] for row in rows}) > 1, "the picture has no say"
    tool.merge(tmp_path / "lora", TINY_VL, tmp_path / "merged_16bit")
    result, answers = tool.check_merged(
        tmp_path / "lora", TINY_VL, tmp_path / "merged_16bit", rows, NEW_TOKENS
    )
    assert answers == made and result["identical"] == 1 and tool.faults(result) == []
    (tmp_path / "pictures" / "1.png").unlink()
    with pytest.raises(ValueError, match="pictures/1.png"):
        tool.pictures(rows[1], tmp_path)


# llama.cpp


@pytest.fixture(scope="module")
def converter(request):
    """llama.cpp's converter: from a clone that LLAMA_CPP names, else from PyPI, kept in pytest's cache."""
    if os.getenv("LLAMA_CPP"):
        return Path(os.environ["LLAMA_CPP"])
    cache = request.config.cache.mkdir("llama_cpp")
    if not (cache / "llama.cpp" / "convert_hf_to_gguf.py").exists():
        uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
        # Without build isolation pip needs 12 s instead of 90 to learn the source's name and version.
        options = "--no-build-isolation --no-deps --no-binary :all: -q -d"
        command = [
            uv,
            *"tool run --with scikit-build-core pip download".split(),
            *options.split(),
            str(cache),
            SOURCE,
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(
                f"no llama.cpp converter: {SOURCE} cannot be downloaded ({error}); LLAMA_CPP may name a clone"
            )
        wanted = r"[^/]+/vendor/llama\.cpp/(conversion/|gguf-py/|convert_\w+\.py)"
        with tarfile.open(next(cache.glob("*.tar.gz"))) as archive:
            members = [member for member in archive if re.match(wanted, member.name)]
            archive.extractall(cache / "unpacked", members, filter="data")
        next((cache / "unpacked").glob("*/vendor/llama.cpp")).rename(cache / "llama.cpp")
        shutil.rmtree(cache / "unpacked")
        next(cache.glob("*.tar.gz")).unlink()
    return cache / "llama.cpp"


FAILING = """#!/bin/sh
if test "$1" = --help; then echo usage: llama-quantize; exit; fi
echo half > "$2"
echo no space left on this device >&2
exit 1
"""


@pytest.fixture(scope="module")
def llama_cpp(converter, tmp_path_factory):
    """A llama.cpp folder as Unsloth expects one, whose converter knows the tiny model's tokenizer.

    llama.cpp recognises a tokenizer by a hash of its output and refuses others. The tiny one splits text by
    Qwen2.5's own pattern and differs in its vocabulary, so here an unknown hash means "qwen2". No wheel holds
    llama-quantize; where a clone has not built it, Unsloth finds one that says that it fails.
    """
    folder = tmp_path_factory.mktemp("llama") / "llama.cpp"
    shutil.copytree(converter, folder, ignore=shutil.ignore_patterns(".git", "models", "tests", "build"))
    for built in converter.glob("build/bin/llama-quantize"):
        shutil.copy(built, folder)
    base = folder / "conversion" / "base.py"
    text = base.read_text(encoding="utf-8")
    assert text.count("        res = None\n") == 1
    base.write_text(text.replace("        res = None\n", '        res = "qwen2"\n'), encoding="utf-8")
    (folder / "UNSLOTH_PREBUILT_INFO.json").write_text("{}", encoding="utf-8")
    if not (folder / "llama-quantize").exists():
        (folder / "llama-quantize").write_text(FAILING)
        (folder / "llama-quantize").chmod(0o755)
    return folder


def export_with(llama_cpp, folder, *kinds) -> subprocess.CompletedProcess:
    """Run the program itself, with that copy of llama.cpp."""
    changed = {"UNSLOTH_LLAMA_CPP_PATH": str(llama_cpp), "UNSLOTH_AUTO_INSTALL": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / TOOL), str(folder), *kinds]
    return subprocess.run(command, env=os.environ | changed, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def gguf(trained, llama_cpp, tmp_path_factory):
    """The program itself with q8_0: (what it printed, the run's folder)."""
    pytest.importorskip("xllamacpp", reason="llama.cpp itself: xllamacpp is not installed")
    folder = tmp_path_factory.mktemp("gguf") / "my-run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("merged_16bit", "gguf"))
    done = export_with(llama_cpp, folder, "merged", "q8_0")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, folder


def test_llama_cpp_answers_as_the_adapter(gguf, rows, tool):
    """8 bits a weight instead of 32: most answers are the same, none is cut, the difference comes with its interval."""
    printed, folder = gguf
    made = read_rows(folder / "answers.jsonl")
    result = json.loads((folder / "metrics.json").read_text())["parity"]["q8_0"]
    assert result["identical"] == sum(row["exported"] == row["after"] for row in made) / 12 >= 0.5
    assert result["otherwise"] == 0 and tool.faults(result) == []
    assert result["identical_to_merged"] == result["identical"]
    assert abs(result["ended"] - sum(row["after_ended"] for row in rows)) <= 2
    assert not [row for row in made if "<|im_" in row["exported"]]
    assert result["chrf"]["low"] <= result["chrf"]["value"] <= result["chrf"]["high"]
    assert "q8_0: " in printed and "UNSLOTH_AUTO_INSTALL=0" in printed


def test_q4_k_m(gguf, llama_cpp, trained, tmp_path):
    """Smaller than 8 bits, read by llama.cpp, no worse by more than chance, and the Modelfile names it.

    The tiny model's rows of 192 weights are no multiple of 256, so that 36 of its 74 matrices become 5- and 8-bit
    blocks instead (6.5 bits a weight on the whole); rows of 512 get the 4- and 6-bit blocks that the name promises.
    """
    if (llama_cpp / "llama-quantize").read_bytes()[:2] == b"#!":
        built = "cmake -B build && cmake --build build --target llama-quantize"
        pytest.skip(f"no package holds llama-quantize: LLAMA_CPP may name a clone of llama.cpp after {built}")
    folder = tmp_path / "my-run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("merged_16bit", "gguf"))
    done = export_with(llama_cpp, folder, "q4_k_m")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [path.name for path in (folder / "gguf").glob("*.gguf")] == ["model.Q4_K_M.gguf"]
    size = (folder / "gguf" / "model.Q4_K_M.gguf").stat().st_size
    assert size < 0.8 * (gguf[1] / "gguf" / "model.Q8_0.gguf").stat().st_size
    assert "converting to q4_K" in done.stdout and "fallback" in done.stdout
    result = json.loads((folder / "metrics.json").read_text())["parity"]["q4_k_m"]
    assert result["rows"] == 12 and result["otherwise"] == 0 and 0 < result["identical"] < 1
    assert "FROM ./model.Q4_K_M.gguf" in (folder / "gguf" / "Modelfile").read_text(encoding="utf-8")


def test_a_failing_quantization_leaves_nothing_half(tool, llama_cpp, merged, tmp_path, monkeypatch, capfd):
    """No file of that name and no 16-bit one beside it; the reason is printed, and what to do is said."""
    shutil.copytree(llama_cpp, tmp_path / "llama.cpp")
    (tmp_path / "llama.cpp" / "llama-quantize").write_text(FAILING)
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(tmp_path / "llama.cpp"))
    monkeypatch.setenv("UNSLOTH_AUTO_INSTALL", "0")
    with pytest.raises(ValueError, match="GGUF failed.*(?s:.*)--target llama-quantize"):
        tool.convert(merged, "q4_k_m", tmp_path / "gguf" / "model.Q4_K_M.gguf")
    assert "no space left on this device" in "".join(capfd.readouterr())
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q6_k", "q4_k_m"])
def test_what_is_missing_is_said_with_the_remedy(tool, merged, tmp_path, monkeypatch, kind):
    """16 and 8 bits need the converter only; the others llama-quantize, which has to be built."""
    monkeypatch.setattr(tool, "CONVERT", "raise SystemExit(1)")
    target = tmp_path / "gguf" / f"model.{kind.upper()}.gguf"
    with pytest.raises(ValueError, match="complete; by hand") as failed:
        tool.convert(merged, kind, target)
    commands = [line.split() for line in re.findall(r"(?m)^  (.+)$", str(failed.value))]
    if kind in ("bf16", "q8_0"):
        assert [command[0] for command in commands] == ["python"]
        assert commands[0][-4:] == ["--outfile", str(target), "--outtype", kind]
    else:
        assert [command[0] for command in commands] == ["python", "llama-quantize", "cmake"]
        plain = commands[0][commands[0].index("--outfile") + 1]
        assert commands[1][1:] == [plain, str(target), kind] and plain != str(target)
        assert "UNSLOTH_LLAMA_CPP_PATH" in str(failed.value)


def test_the_modelfile_words_prompts_as_the_model_knows_them(gguf, rows, tool):
    printed, folder = gguf
    text = (folder / "gguf" / "Modelfile").read_text(encoding="utf-8")
    assert (folder / "gguf" / re.search(r"(?m)^FROM (.+)$", text)[1]).exists()
    assert set(re.findall(r'(?m)^PARAMETER stop "(.+)"$', text)) == {"<|im_end|>", "<|endoftext|>"}
    assert dict(re.findall(r"(?m)^PARAMETER (\w+) ([-\d.]+)$", text)) == {
        "temperature": "0",
        "repeat_penalty": "1.0",
        "repeat_last_n": "-1",
        "num_ctx": "168",
    }
    assert re.search(r'(?s)\nSYSTEM """(.+?)"""\n', text)[1] == SYSTEM
    template = re.search(r'(?s)\nTEMPLATE """(.+?)"""\n', text)[1]
    turn, rest = re.fullmatch(r"(?s)\{\{ range \.Messages \}\}(.*?)\{\{ end \}\}(.*)", template).groups()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for row in rows:
        turns = [
            turn.replace("{{ .Role }}", t["role"]).replace("{{ .Content }}", t["content"])
            for t in row["prompt"]
        ]
        assert (
            "".join(turns) + rest == tool.prompt_text(tokenizer, row["prompt"]) == tool.chatml(row["prompt"])
        )
    assert f"ollama create my-run -f {folder}/gguf/Modelfile" in printed


def test_other_chat_templates_and_penalties_in_the_modelfile(tool, merged, tmp_path):
    shutil.copytree(merged, tmp_path / "other")
    written = tool.modelfile(tmp_path / "other", "m.gguf", [], 99)
    assert f'SYSTEM """{SYSTEM}"""' in written, "the template adds it where a conversation has none"
    assert "repeat_penalty 1.0\n" in written and 'stop "<|im_end|>"' in written and "TEMPLATE" in written
    (tmp_path / "other" / "chat_template.jinja").write_text(WRONG_TEMPLATE)
    GenerationConfig(repetition_penalty=1.05).save_pretrained(tmp_path / "other")
    brief = [{"prompt": [{"role": "system", "content": "Be brief."}]}] * 2
    written = tool.modelfile(tmp_path / "other", "m.gguf", brief, 99)
    assert "TEMPLATE" not in written and 'SYSTEM """Be brief."""' in written
    assert "repeat_penalty 1.05\n" in written and 'stop "<|im_end|>"' in written


@pytest.fixture(scope="module")
def wrong(merged, llama_cpp, tmp_path_factory, tool):
    """A GGUF file made from a folder with another chat template, by the commands that a failure prints."""
    folder = tmp_path_factory.mktemp("wrong") / "run"
    shutil.copytree(merged, folder / "merged_16bit")
    (folder / "merged_16bit" / "chat_template.jinja").write_text(WRONG_TEMPLATE)
    file = folder / "gguf" / "model.Q8_0.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder / "none"))
        patch.setenv("UNSLOTH_AUTO_INSTALL", "0")
        patch.setattr(tool, "CONVERT", "raise SystemExit(1)")
        with pytest.raises(ValueError, match="complete; by hand") as failed:
            tool.convert(folder / "merged_16bit", "q8_0", file)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{llama_cpp}:{os.environ['PATH']}"}
    commands = re.findall(r"(?m)^  (.+)$", str(failed.value))
    assert [command.split()[0] for command in commands] == ["python"]
    for command in commands:
        done = subprocess.run(command.split(), cwd=llama_cpp, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, command + done.stderr[-2000:]
    return file


def test_the_commands_printed_for_a_failure_make_the_file(wrong):
    assert wrong.read_bytes()[:4] == b"GGUF" and wrong.stat().st_size > 3e6


def test_a_wrong_chat_template_in_the_file_is_caught(wrong, merged, rows, tool):
    pytest.importorskip("xllamacpp", reason="llama.cpp itself: xllamacpp is not installed")
    result, _ = tool.check_gguf(merged, wrong, rows, NEW_TOKENS)
    assert result["otherwise"] == 12 and result["identical"] < 0.5
    assert any("template" in fault for fault in tool.faults(result))


def test_a_failing_conversion_loses_nothing(trained, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("merged_16bit", "gguf"))
    (tmp_path / "unsloth.py").write_text("raise ImportError('no llama.cpp here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run(folder, "q8_0")
    assert (
        done.status == 1 and "GGUF failed" in done.printed and "no llama.cpp here" in capfd.readouterr().err
    )
    assert (folder / "merged_16bit" / "model.safetensors").exists() and not list(folder.rglob("*.gguf"))
    assert (folder / "answers.jsonl").read_bytes() == (trained / "answers.jsonl").read_bytes()


def test_an_openai_client_is_answered(gguf, rows, tool):
    """The server that `llama-server` is, on 127.0.0.1: one chat request over HTTP."""
    server = tool.start_server(gguf[1] / "gguf" / "model.Q8_0.gguf", 512)
    assert server.listening_address.startswith("http://127.0.0.1:")
    body = {"model": "any", "messages": rows[1]["prompt"], "temperature": 0, "max_tokens": NEW_TOKENS}
    asked = Request(f"{server.listening_address}/v1/chat/completions", json.dumps(body).encode())
    asked.add_header("Content-Type", "application/json")
    with urlopen(asked, timeout=60) as reply:
        answer = json.load(reply)
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["role"] == "assistant"
    assert (
        answer["choices"][0]["message"]["content"].strip()
        == read_rows(gguf[1] / "answers.jsonl")[1]["exported"]
    )


def test_ollama_takes_the_modelfile(gguf):
    if not shutil.which("ollama"):
        pytest.skip(
            "ollama is not installed here: the Modelfile's text is checked, not that ollama create takes it"
        )
    command = ["ollama", "create", "export-test", "-f", str(gguf[1] / "gguf" / "Modelfile")]
    assert subprocess.run(command, capture_output=True).returncode == 0
