"""The prediction of GPU memory against published peaks, and the defaults of every script against 12 GB."""

import ast

import pytest
import torch
from conftest import ROOT, constants_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
)

# LLaMA-2-7B, 4-bit, LoRA r = 8, batch 1, Unsloth on an A100: context length -> GB, from LLaMA-Factory's wiki.
PUBLISHED = {1024: 5, 2048: 6, 4096: 7, 8192: 8, 16384: 10, 32768: 16, 65536: 25, 100000: 37}
SCRIPTS = ["sft_gongwen.py", "sft_alpaca.py", "sft_medical.py", "grpo_r1.py"]


def on_meta(config):
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


@pytest.fixture(scope="module")
def llama():
    return on_meta(
        LlamaConfig(vocab_size=32000, hidden_size=4096, num_hidden_layers=32, intermediate_size=11008)
    )


@pytest.fixture(scope="module")
def qwen():
    """Qwen2.5-7B by its published dimensions, with the entry that its 4-bit repository adds."""
    sizes = {"hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "vocab_size": 152064}
    config = Qwen2Config(**sizes, num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return on_meta(config)


def settings_of(script: str) -> dict:
    """Return the literal constants that hold with a GPU, before the rehearsal block changes them."""
    source = (ROOT / script).read_text(encoding="utf-8")
    found = {}
    for name, value in constants_of(ast.parse(source[: source.index("if MODEL.startswith")])).items():
        try:
            found[name] = ast.literal_eval(value)
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("tokens,published", PUBLISHED.items())
def test_published_peaks(functions, llama, tokens, published):
    parts = functions("sft_alpaca.py").memory_needed(llama, True, 8, tokens, True)
    assert abs(sum(parts.values()) - published) <= max(1, 0.15 * published), parts


def test_published_peaks_of_a_batch(functions, llama):
    """Batch 4 x 1,024: 7 GB in 4 bit and 16 GB in 16 bit."""
    needed = functions("sft_alpaca.py").memory_needed
    assert sum(needed(llama, True, 8, 4096, True).values()) == pytest.approx(7, abs=1)
    assert sum(needed(llama, False, 8, 4096, True).values()) == pytest.approx(16, abs=1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults_fit_12_gb(functions, qwen, script):
    settings = settings_of(script)
    length = settings.get("MAX_LENGTH") or settings["PROMPT_LENGTH"] + settings["NEW_TOKENS"]
    tokens = settings["BATCH_SIZE"] * length
    parts = functions(script).memory_needed(qwen, True, settings["LORA_R"], tokens, "unsloth")
    assert settings["GRADIENT_CHECKPOINTING"] == "unsloth" and 5 < sum(parts.values()) < 12, parts


def test_vision_default_fits_12_gb(functions):
    """Qwen2.5-VL-3B: 36 layers of 2,048, 151,936 tokens, embeddings tied."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "vocab_size": 151936}
    text = {**sizes, "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
    }
    model = on_meta(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(3.75e9, rel=0.02)
    settings = settings_of("vl_car_insurance.py")
    tokens = settings["BATCH_SIZE"] * (settings["MAX_PIXELS"] // 28**2 + 2 * settings["NEW_TOKENS"])
    parts = functions("vl_car_insurance.py").memory_needed(model, True, settings["LORA_R"], tokens, "unsloth")
    assert 2 < sum(parts.values()) < 12, parts


def test_full_fine_tuning_needs_more_than_an_adapter(functions, qwen):
    needed = functions("sft_medical.py").memory_needed
    adapter, full = needed(qwen, False, 16, 2048, "unsloth"), needed(qwen, False, 0, 2048, "unsloth")
    assert (
        full["training"] == pytest.approx(4 * 7.6, rel=0.01) and full["training"] > 50 * adapter["training"]
    )
