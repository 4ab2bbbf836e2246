# %% [markdown]
"""
# Will it fit? GPU memory of a fine-tuning run, before anything is loaded

Predicts the peak of training with Unsloth from the dimensions of a model: by part, as a table over batch and
length, and what fits cards of 8, 12, 16 and 24 GB. It counts what is stored; no constant is fitted. What was
measured is 1 to 5% more on an NVIDIA H200, and 1 to 9% more for the longest rows that Unsloth says fit such cards.

Run:    `uv run tools/will_it_fit.py`, or `uv run tools/will_it_fit.py Qwen3-8B path/to/folder owner/name`
Data:   a name that holds one of PUBLISHED, a folder with config.json, or a name on the hub (config.json only)
Writes: nothing
"""

# %% Imports
import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

# %% Settings
MODELS = ["Qwen2.5-7B", "Qwen3-8B", "Qwen3-4B", "Qwen2.5-VL-3B"]  # where none are named
FOUR_BIT = True  # NF4 weights; False: LoRA on 16-bit weights
RANK = 16  # of the adapter; 0: all weights are trained, which needs FOUR_BIT = False
CHECKPOINTING = "unsloth"  # True keeps the input of each layer on the card, False all that a layer computes
PIXELS = 602_112  # of a row's picture, for vision models that take any size
BATCHES = [1, 2, 4, 8]  # rows in a forward pass
LENGTHS = [512, 1024, 2048, 4096, 8192]  # tokens of a row, its picture included
CARDS = [8, 12, 16, 24]  # GB of 1e9 bytes; a card's own GB are 7% larger, which a desktop takes
CARD = 12  # GB: the card of the table, since Unsloth fits the loss into half of what is free

SIXTEEN_BIT = {"lm_head", "visual", "vision_tower", "multi_modal_projector"}  # never quantized by Unsloth
NF4 = (4 + 8 / 64 + 32 / 64 / 256) / 8  # bytes a weight: a scale for 64 in 8 bit, one for 256 scales in 32
FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim tie_word_embeddings"
).split()
QWEN_EYE = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
QWEN3_EYE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
QWEN3_SMALL_EYE = {**QWEN3_EYE, "depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
SIGLIP = {"num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
SIGLIP = {**SIGLIP, "image_size": 896, "patch_size": 14}
PUBLISHED = {  # type, the values of FIELDS, the vision encoder: these work without a network
    "Qwen2.5-7B": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False, None),
    "Qwen3-1.7B": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True, None),
    "Qwen3-4B": ("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True, None),
    "Qwen3-8B": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False, None),
    "Qwen3-14B": ("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False, None),
    "Llama-3.1-8B": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False, None),
    "Llama-2-7B": ("llama", 32000, 4096, 11008, 32, 32, 32, 128, False, None),
    "Gemma-3-4B": ("gemma3", 262208, 2560, 10240, 34, 8, 4, 256, True, SIGLIP),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 151936, 2048, 11008, 36, 16, 2, 128, True, QWEN_EYE),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 152064, 3584, 18944, 28, 28, 4, 128, False, QWEN_EYE),
    "Qwen3-VL-4B": ("qwen3_vl", 151936, 2560, 9728, 36, 32, 8, 128, True, QWEN3_SMALL_EYE),
    "Qwen3-VL-8B": ("qwen3_vl", 151936, 4096, 12288, 36, 32, 8, 128, False, QWEN3_EYE),
}


# %% Shapes
def line_of(error: Exception) -> str:
    """Return an error as one line that any terminal takes: what a file holds may be part of it."""
    text = " ".join(str(error).split())[:300]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_sizes(config) -> None:
    """ValueError for sizes that a model cannot have: negative, text, a million layers, an empty config.json."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    sizes = {name: getattr(text, name, None) for name in FIELDS[:6]}
    sizes |= {"head_dim": text.head_dim} if getattr(text, "head_dim", None) is not None else {}
    if vision is not None:
        names = "hidden_size", "patch_size", "intermediate_size"
        sizes |= {f"vision {name}": getattr(vision, name, None) for name in names}
        depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None)
        sizes["vision num_hidden_layers"] = depth
    for name, size in sizes.items():
        most = 300 if name.endswith("layers") else 10**7
        if type(size) is not int or not 0 < size <= most:
            raise ValueError(f"{name} is {size!r:.40}, not a number from 1 to {most:,}")


def load_config(name: str):
    """Return the configuration of a folder, a published or a hub model; ValueError if there is none."""
    published = [key for key in PUBLISHED if key.lower() in name.rpartition("/")[2].lower()]
    if published and not Path(name).is_dir():
        kind, *values, vision = PUBLISHED[max(published, key=len)]
        text = dict(zip(FIELDS, values))
        if not vision:
            return AutoConfig.for_model(kind, **text)
        vision = {**vision, "out_hidden_size": text["hidden_size"]}
        tied = text["tie_word_embeddings"]
        return AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=tied)
    try:
        if Path(name).is_dir():
            if not Path(name, "config.json").is_file():  # missing, or a pipe
                raise ValueError("no file of that name")
            given = json.loads(Path(name, "config.json").read_text(encoding="utf-8"))
            if not {"hidden_size", "n_embd", "d_model"} & (given | (given.get("text_config") or {})).keys():
                raise ValueError("it states no hidden_size")  # else that of some other model would be taken
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers checks what it reads, with errors of many kinds
        reason = line_of(error)
        raise ValueError(f"{name} is no folder with a config.json, and not on the hub: {reason}") from None


def load_shapes(name: str):
    """Return a model on the meta device: shapes, no weights. ValueError for one that is not predicted here."""
    config = load_config(name)
    text = config.get_text_config()
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ValueError(f"{name} is a mixture of experts, which is not predicted here")
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    try:
        check_sizes(config)
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # the same, of torch and of every architecture
        raise ValueError(f"{name} cannot be predicted: {line_of(error)}") from None


def picture(config, pixels: int) -> tuple[int, int]:
    """Return (patches that the vision encoder sees, tokens that the text model sees) of a picture."""
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return 0, 0
    if getattr(config, "mm_tokens_per_image", None):  # Gemma 3 scales every picture to one size
        return (vision.image_size // vision.patch_size) ** 2, config.mm_tokens_per_image
    patches = pixels // vision.patch_size**2
    return patches, patches // getattr(vision, "spatial_merge_size", 1) ** 2


# %% Memory
def is_sixteen_bit(name: str, config) -> bool:
    """Return whether a layer of a 4-bit model stays in 16 bit: by Unsloth's list, or config.json's own."""
    quantization = getattr(config, "quantization_config", None)
    listed = quantization.get("llm_int8_skip_modules") if isinstance(quantization, dict) else None
    if not isinstance(listed or [], list) or not all(isinstance(key, str) for key in listed or []):
        raise ValueError("llm_int8_skip_modules in config.json is no list of names")
    listed = [key.replace("language_model.", "").replace("model.", "") for key in [name, *(listed or [])]]
    return bool(SIXTEEN_BIT & set(name.split("."))) or any(
        f".{key}." in f".{listed[0]}." for key in listed[1:]
    )


def allocated(size: float) -> float:
    """Return the bytes that PyTorch's allocator takes for a tensor: 2 MiB at a time from 10 MiB on."""
    return math.ceil(size / 2**21) * 2**21 if size >= 10 * 2**20 else size


def weight_bytes(model, four_bit: bool) -> float:
    """Return the bytes of the weights, and of the buffers in which 4-bit layers are unpacked to 16 bit.

    Unsloth's text kernels keep one, of the largest layer, and in the backward pass unpack gate and up into another.
    """
    linear = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    four = {f"{name}.weight" for name in linear if four_bit and not is_sixteen_bit(name, model.config)}
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    stored = sum(allocated(size * (NF4 if name in four else 2)) for name, size in sizes.items())
    buffers = 1 if hasattr(model.config, "vision_config") else 2
    return stored + buffers * allocated(2 * max((sizes[name] for name in four), default=0))


def adapter_size(model, rank: int) -> int:
    """Return the number of the adapter's weights, on all linear layers of the text and vision blocks."""
    size = 0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ("layers." in name or "blocks." in name):
            size += rank * (layer.in_features + layer.out_features)
    return size


def working(hidden: int, queries: int, keys: int, inner: int, fused: bool) -> int:
    """Return how many 16-bit numbers a token takes in a layer at the height of its backward pass.

    Five of the hidden size (two normed inputs, the sum between, the output, its gradient), queries and
    what attention returns, keys and values, gate, up and a gradient. Unsloth's kernels for text models work
    in place, and xformers gets keys and values once for each query head. Without them rotated queries and
    keys, the activated gate and its product with up are kept.
    """
    if fused:
        return 5 * hidden + 4 * queries + 3 * inner
    return 5 * hidden + 3 * queries + 3 * keys + 5 * inner


def activation_bytes(config, tokens: int, patches: int, checkpointing: bool | str) -> tuple[float, float]:
    """Return the bytes that layers keep for the backward pass, and those that the layer at work holds."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    layers, inputs = [text.num_hidden_layers], [text.hidden_size * tokens]
    busy = [working(text.hidden_size, queries, keys, text.intermediate_size, vision is None) * tokens]
    if vision:
        width = vision.hidden_size
        layers.append(getattr(vision, "depth", None) or vision.num_hidden_layers)
        inputs.append(width * patches)
        busy.append(working(width, width, width, vision.intermediate_size, False) * patches)
    if checkpointing == "unsloth":  # in RAM, but for the last layer's; two buffers bring them back
        kept = 3 * max(inputs)
    else:
        kept = sum(size * count for size, count in zip(inputs if checkpointing else busy, layers))
    return 2 * kept, 2 * max(busy)


def loss_bytes(config, tokens: int, free: float) -> float:
    """Return the bytes of Unsloth's loss: the 16-bit logits of a chunk of tokens, and their gradient.

    There is one chunk, or a multiple of four: 16 bytes a logit shall fit half of the free bytes, and 4 GiB.
    """
    text = config.get_text_config()
    chunks = 16 * tokens * text.vocab_size / min(max(free, 1e9) / 2, 4 * 2**30)
    chunks = 4 * math.ceil(chunks / 4) if chunks > 1 else 1
    return 4 * math.ceil(tokens / chunks) * text.vocab_size + 4 * tokens * text.hidden_size


def memory_needed(model, four_bit, rank, tokens, checkpointing, patches=0, card=12.0) -> dict[str, float]:
    """Return what fills the GPU at the peak of training, in GB of 1e9 bytes, for a model on the meta device.

    `tokens` and `patches` (of pictures) are those of a forward pass, `card` the GB of the GPU. A weight of
    the adapter takes 10 bytes (float32, gradient, 8-bit AdamW); rank 0 trains all weights, 4 bytes each
    beside their own 2. Generating answers (Before, After, GRPO) is not counted: it may take more. Nor is that on
    Windows and WSL PyTorch cannot give the layers' memory to the loss: that is up to an eighth of what is free.
    """
    if four_bit and not rank:
        raise ValueError("weights in 4 bit cannot be trained themselves: set RANK, or FOUR_BIT = False")
    kept, busy = activation_bytes(model.config, tokens, patches, checkpointing)
    parts = {
        "weights": weight_bytes(model, four_bit),
        "training": 10 * adapter_size(model, rank) if rank else 4 * model.num_parameters(),
        "activations": kept,
        "CUDA itself": 5e8,
    }
    loss = loss_bytes(model.config, tokens, card * 1e9 - sum(parts.values()))
    parts["activations"] += max(busy, loss)  # never at the same time
    return {part: size / 1e9 for part, size in parts.items()}


# %% Table
def needed(model, batch: int, length: int, card: float) -> float:
    """Return the GB of a batch, by the Settings; infinity where a row cannot hold its picture."""
    patches, tokens = picture(model.config, PIXELS)
    if tokens >= length:
        return math.inf
    parts = memory_needed(model, FOUR_BIT, RANK, batch * length, CHECKPOINTING, batch * patches, card)
    return sum(parts.values())


def table(model) -> str:
    """Return the Markdown table of GB over batch and length on CARD, and what fits each of CARDS."""
    lines = ["| batch | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |"]
    lines.append("|---" * (len(LENGTHS) + 1) + "|")
    for batch in BATCHES:
        sizes = [needed(model, batch, length, CARD) for length in LENGTHS]
        lines.append(f"| {batch} | " + " | ".join(f"{size:.1f}" for size in sizes).replace("inf", "-") + " |")
    lines.append("")
    for card in CARDS:
        fits = []
        for batch in BATCHES:
            lengths = [length for length in LENGTHS if needed(model, batch, length, card) <= card]
            fits += [f"{batch} x {lengths[-1]:,}"] if lengths else []
        lines.append(f"{card} GB: {', '.join(fits) or 'nothing of this table'}")
    return "\n".join(lines)


# %% Run
sys.stdout.reconfigure(errors="replace")  # a terminal in GBK or cp1252 shows ? for letters it lacks
kind = "NF4" if FOUR_BIT else "16-bit"
print(
    f"GB at the peak of training, card of {CARD}: {kind} weights, rank {RANK}, checkpointing {CHECKPOINTING}"
)
print("A short batch can need more than a longer one: Unsloth works out the loss in one piece while that")
print("fits half of the free memory, else in four or more.")
for name in sys.argv[1:] or MODELS:
    try:
        model = load_shapes(name)
        rows = table(model)
    except Exception as error:  # a config.json may hold anything
        print(f"\n{error if name in str(error) else f'{name} cannot be predicted: {line_of(error)}'}")
        continue
    patches, _ = picture(model.config, PIXELS)
    parts = memory_needed(model, FOUR_BIT, RANK, LENGTHS[2], CHECKPOINTING, patches, CARD)
    print(f"\n## {name}: {model.num_parameters() / 1e9:.2f} billion weights\n\n{rows}")
    print(f"1 x {LENGTHS[2]:,} tokens:", ", ".join(f"{part} {size:.2f}" for part, size in parts.items()))
