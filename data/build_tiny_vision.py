# %% [markdown]
"""
# Build the tiny vision model of the rehearsal

Trains, on pictures that it renders itself and on nothing else, the model that vl_car_insurance.py uses where no real one
is loaded:

- `data/tiny-qwen2.5-vl/`: Qwen2.5-VL architecture; the text part and the tokenizer start from `data/tiny-qwen2.5/`,
  the vision part (patches of 8 pixels, two by two merged into a token) starts from nothing.

Run:    `uv run data/build_tiny_vision.py` (no network; minutes are printed), after `data/build_tiny_models.py`
Needs:  the fonts of FONTS and CJK, Debian packages fonts-dejavu-core, fonts-liberation2, fonts-urw-base35 and
        fonts-noto-cjk; without them nothing is built (the result is committed, so nobody else needs them)
Data:   lines of digits, plates, VINs and short words on cluttered backgrounds; the question is what they say, the answer
        is the lines. No picture of data/car_insurance, no JSON, no dashboard, no damage.
Writes: `data/tiny-qwen2.5-vl/` (safetensors, tokenizer, processor, config)

Two losses: for the first LOOK steps only the vision part learns, from the letters whose centres lie in the 16 x 16 pixels
of each of its tokens (a linear layer that is thrown away afterwards); then the whole model reads the lines aloud as well.
The result reads large print, often wrongly. It is not a useful model and is not meant to be one.
"""

# %% Imports
import math
import random
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers import Qwen2ForCausalLM, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

# %% Settings
DATA = Path(__file__).resolve().parent
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS, VISION_INTERMEDIATE = 96, 4, 3, 256
PATCH, MERGE = 8, 2
SIZES = [(112, 48), (160, 64), (208, 96), (224, 160)]  # of pictures, in the order in which reading is learnt
LOOK, READ = 600, 1000  # steps in which only the vision part learns; steps in which the whole model does
BATCH = 16  # pictures in a step
LEARNING_RATE = 3e-3  # peak of the vision part and of the first stage; the text part learns at a half
SLOTS = 3  # letters whose centres can lie in one token's pixels
SEED = 3407

TTF, OTF = "/usr/share/fonts/truetype", "/usr/share/fonts/opentype"
FONTS = [
    f"{TTF}/dejavu/DejaVuSans.ttf", f"{TTF}/dejavu/DejaVuSans-Bold.ttf", f"{TTF}/dejavu/DejaVuSansMono-Bold.ttf",
    f"{TTF}/dejavu/DejaVuSansCondensed-Bold.ttf", f"{TTF}/liberation2/LiberationSans-Bold.ttf",
    f"{TTF}/liberation2/LiberationMono-Bold.ttf", f"{TTF}/liberation2/LiberationSans-Regular.ttf",
    f"{OTF}/urw-base35/NimbusSansNarrow-Bold.otf", f"{OTF}/urw-base35/NimbusMonoPS-Bold.otf",
    f"{OTF}/urw-base35/URWGothic-Book.otf",
]  # fmt: skip
CJK = f"{OTF}/noto/NotoSansCJK-Bold.ttc"
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
WORDS = "ODO TRIP km mi km/h mph RANGE AUTO ECO VIN 公里 英里 里程 总里程 小计 续航".split()
CHARACTERS = sorted(set("0123456789,.·-/" + LETTERS + PROVINCES + "".join(WORDS)))
QUESTIONS = ["图中写着什么？", "读出图中的文字。", "What does the picture say?"]
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]


# %% Data
def line(rng: random.Random) -> str:
    """Return a line as it may stand on a car: a distance, a plate, a VIN or a word with a number."""
    number = rng.choice([rng.randint(0, 999), rng.randint(1000, 99999), rng.randint(1000, 399999)])
    distance = rng.choice([f"{number}", f"{number:,}", f"{number}", f"{number}.{rng.randint(0, 9)}", f"{number:06d}"])
    kind = rng.random()
    if kind < 0.62:
        unit = rng.choice(["", "", " km", " mi", "km", " 公里"])
        word = rng.choice(["", "", "", "ODO ", "TRIP ", "总里程 ", "小计 "])
        return word + distance + unit
    if kind < 0.82:
        green = rng.random() < 0.3
        tail = "".join(rng.choice("0123456789" * 3 + LETTERS) for _ in range(4 + green))
        return rng.choice(PROVINCES) + rng.choice(LETTERS) + rng.choice(["·", "", " "]) + rng.choice(LETTERS + "0123456789") + tail
    if kind < 0.92:
        return "".join(rng.choice(LETTERS + "0123456789" * 2) for _ in range(17))
    return rng.choice(WORDS)


def segments(draw: ImageDraw.ImageDraw, digit: str, box: tuple, colour: tuple, width: int) -> None:
    """Draw a digit of seven segments into a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    middle = (top + bottom) / 2
    ends = {
        "a": (left, top, right, top), "g": (left, middle, right, middle), "d": (left, bottom, right, bottom),
        "f": (left, top, left, middle), "e": (left, middle, left, bottom),
        "b": (right, top, right, middle), "c": (right, middle, right, bottom),
    }  # fmt: skip
    for name in SEGMENTS[int(digit)]:
        draw.line(ends[name], fill=colour, width=width)


def background(rng: random.Random, width: int, height: int) -> Image.Image:
    """Return a gradient with arcs, ticks and bars on it, dark or light."""
    base = rng.choice([rng.randint(0, 60), rng.randint(0, 60), rng.randint(90, 230)])
    low, high = (np.clip(base + np.array([rng.gauss(0, 14) for _ in range(3)]), 0, 255) for _ in range(2))
    ramp = np.linspace(0, 1, height)[:, None, None]
    image = Image.fromarray(np.repeat((low * (1 - ramp) + high * ramp), width, 1).astype("uint8"))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 5)):
        colour = tuple(int(min(255, max(0, base + rng.gauss(0, 60)))) for _ in range(3))
        x, y, r = rng.randint(0, width), rng.randint(0, height), rng.randint(8, 70)
        shape, start = rng.random(), rng.randint(0, 360)
        if shape < 0.4:
            draw.arc((x - r, y - r, x + r, y + r), start, start + rng.randint(60, 360), colour, rng.randint(1, 5))
        elif shape < 0.7:
            for angle in range(start, start + 240, rng.randint(10, 40)):
                c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                draw.line((x + r * c, y + r * s, x + 0.85 * r * c, y + 0.85 * r * s), colour, rng.randint(1, 2))
        else:
            draw.rounded_rectangle((x, y, x + r, y + r * rng.uniform(0.1, 1)), 3, colour)
    return image


@cache
def font_of(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font, read from disk once."""
    return ImageFont.truetype(path, size)


def picture(rng: random.Random, width: int, height: int, tries: int) -> tuple[Image.Image, list[str], list[tuple]]:
    """Return a picture, its lines from top to bottom, and (letter, x, y, line) of each letter.

    A line is drawn where it finds room in `tries` tries; at least one is drawn.
    """
    image, lines, marks, taken = background(rng, width, height), [], [], []
    draw = ImageDraw.Draw(image)
    while tries > 0 or not lines:
        tries -= 1
        text = line(rng)
        size = rng.randint(11, 24) if len(text) < 17 else rng.randint(12, 18)
        latin, han = font_of(rng.choice(FONTS), size), font_of(CJK, size)
        space, lcd = rng.choice([0, 0, 1, 2]), rng.random() < 0.25 and text[0].isdigit()
        fonts = [han if letter > "\u2e80" else latin for letter in text]
        widths = [size * 0.5 + 3 if lcd and c.isdigit() else font.getlength(c) for c, font in zip(text, fonts)]
        total = sum(widths) + space * len(text)
        if total > width - 6 or size * 1.2 > height - 6:
            continue
        left, top = rng.uniform(3, width - 3 - total), rng.uniform(2, height - 4 - size * 1.2)
        box = (left - 3, top - 2, left + total + 3, top + size * 1.2 + 2)
        if any(box[1] < other[3] and other[1] < box[3] for other in taken):  # one line in a row: no doubt about order
            continue
        taken.append(box)
        shade = np.array(image.crop(tuple(map(int, box)))).mean()
        if rng.random() < 0.6:
            shade = rng.choice([10, 30, 120, 190, 230])
            tint = tuple(int(min(255, max(0, shade + rng.gauss(0, 25)))) for _ in range(3))
            draw.rounded_rectangle(box, rng.randint(0, 4), tint)
            shade = sum(tint) / 3
        ink = rng.uniform(0, 40) if shade > 125 else rng.uniform(190, 255)
        colour = tuple(int(min(255, max(0, ink + rng.gauss(0, 20)))) for _ in range(3))
        x = left
        for letter, font, step in zip(text, fonts, widths):
            if lcd and letter.isdigit():
                segments(draw, letter, (x + 1, top + 2, x + step - 3, top + size), colour, max(1, size // 9))
            else:
                draw.text((x, top), letter, colour, font=font)
            if letter != " ":
                marks.append((letter, x + step / 2, top + size * 0.6, len(lines)))
            x += step + space
        lines.append((top, text))
    order = sorted(range(len(lines)), key=lambda i: lines[i][0])
    if rng.random() < 0.5:
        angle = rng.uniform(-4, 4)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=image.getpixel((1, 1)))
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turned = ((m, x - width / 2, y - height / 2, n) for m, x, y, n in marks)
        marks = [(m, c * x + s * y + width / 2, c * y - s * x + height / 2, n) for m, x, y, n in turned]
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    pixels = np.asarray(image, dtype="float32") * rng.uniform(0.6, 1.1) + rng.uniform(-10, 25)
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([0, 3, 8]), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8")), [lines[i][1] for i in order], marks


def letters_of_tokens(marks: list[tuple], width: int, height: int) -> torch.Tensor:
    """Return (tokens, SLOTS) with the class of each letter whose centre lies in a token's pixels, 0 for none."""
    side, columns, rows = PATCH * MERGE, width // (PATCH * MERGE), height // (PATCH * MERGE)
    target = torch.zeros(rows * columns, SLOTS, dtype=torch.long)
    for letter, x, y, _ in sorted(marks, key=lambda mark: (mark[3], mark[1])):
        if 0 <= x < width and 0 <= y < height:
            slots = target[int(y // side) * columns + int(x // side)]
            free = (slots == 0).nonzero()
            if len(free):
                slots[free[0]] = 1 + CHARACTERS.index(letter)
    return target


# %% Model
torch.manual_seed(SEED)
tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-qwen2.5")
text_model = Qwen2ForCausalLM.from_pretrained(DATA / "tiny-qwen2.5", dtype=torch.float32)
text = text_model.config.to_dict()
half = text["hidden_size"] // text["num_attention_heads"] // 2
section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]  # as Qwen2.5-VL: 16, 24, 24 of 64
kept = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size rms_norm_eps"
ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in "vision_start vision_end image_pad video_pad".split()}
config = Qwen2_5_VLConfig(
    text_config={name: text[name] for name in kept.split()}
    | {
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"], "mrope_section": section},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    },
    vision_config={
        "depth": VISION_LAYERS, "hidden_size": VISION_HIDDEN, "num_heads": VISION_HEADS,
        "intermediate_size": VISION_INTERMEDIATE, "out_hidden_size": text["hidden_size"], "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 8 * PATCH * MERGE,
        "fullatt_block_indexes": [VISION_LAYERS - 1], "initializer_range": 0.06,
    },
    vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], tie_word_embeddings=True,
)  # fmt: skip
model = Qwen2_5_VLForConditionalGeneration(config)
renamed = {name.replace("model.", "model.language_model.", 1): value for name, value in text_model.state_dict().items()}
missing, unexpected = model.load_state_dict(renamed, strict=False)
assert not [name for name in missing if "visual" not in name] and set(unexpected) <= {"lm_head.weight"}, (missing, unexpected)
tokenizer.chat_template = (  # Qwen2.5-VL's form: text, or a list of images and texts
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.text is defined and part.text %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
pixels = {"shortest_edge": 64 * 64, "longest_edge": 448 * 336}
processor = Qwen2_5_VLProcessor(
    image_processor=Qwen2VLImageProcessor(**sizes, size=dict(pixels)),
    video_processor=Qwen2VLVideoProcessor(**sizes, size=dict(pixels)),
    tokenizer=tokenizer,
    chat_template=tokenizer.chat_template,
)
probe = torch.nn.Linear(text["hidden_size"], SLOTS * (len(CHARACTERS) + 1))
seen = {}
model.model.visual.register_forward_hook(lambda module, given, output: seen.update(tokens=output.pooler_output))
print(f"{model.num_parameters():,} parameters, {model.model.visual.num_parameters():,} of them see")

# %% Train
vision = [*model.model.visual.parameters(), *probe.parameters()]
groups = [{"params": vision, "peak": LEARNING_RATE}, {"params": model.model.language_model.parameters(), "peak": LEARNING_RATE / 2}]
optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
rng, start, totals = random.Random(SEED), time.time(), [0.0, 0.0, 0.0]


def conversation(question: str, answer: str | None = None) -> str:
    """Return a chat about one picture, up to the assistant's turn or with it."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)


for step in range(1, LOOK + READ + 1):
    reading = step > LOOK
    done = (step - LOOK) / READ if reading else step / LOOK
    for group in optimizer.param_groups:  # a warm-up and a cosine for each stage
        peak = group["peak"] / (1 if not reading or group["peak"] < LEARNING_RATE else 2)
        group["lr"] = peak * min(1, done * 20) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
    size = rng.choice(SIZES[: 1 + int(done * 8)]) if reading else SIZES[2]
    pictures = [picture(rng, *size, rng.randint(1, 3) if reading else 20) for _ in range(BATCH)]
    images, letters = [row[0] for row in pictures], torch.cat([letters_of_tokens(row[2], *size) for row in pictures])
    if reading:
        chats = [conversation(rng.choice(QUESTIONS), "\n".join(lines)) for _, lines, _ in pictures]
        inputs = processor(images=images, text=chats, padding=True, padding_side="right", return_tensors="pt")
        hidden = model.model(**inputs).last_hidden_state
        labels = inputs.input_ids.clone()
        for row, (_, lines, _) in zip(labels, pictures):
            length = len(tokenizer("\n".join(lines) + "<|im_end|>\n").input_ids)
            end = int((row != tokenizer.pad_token_id).sum())
            row[: end - length] = -100
            row[end:] = -100
        wanted = labels[:, 1:] != -100
        read = cross_entropy(model.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])
    else:
        inputs = processor.image_processor(images=images, return_tensors="pt")
        model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
        read = torch.zeros(())
    guess = probe(seen["tokens"]).view(-1, len(CHARACTERS) + 1)
    goal = letters.flatten()
    weight = torch.where(goal > 0, 1.0, 0.1)
    look = (cross_entropy(guess, goal, reduction="none") * weight).sum() / weight.sum()
    (look + read).backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *probe.parameters()], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    hits = (guess.argmax(-1) == goal)[goal > 0].float().mean().item()
    totals = [total + value for total, value in zip(totals, (look.item(), hits, read.item()))]
    if step % 50 == 0:
        means = " ".join(f"{total / 50:.3f}" for total in totals)
        print(f"step {step}: look, letters right, read {means}, {(time.time() - start) / 60:.1f} min", flush=True)
        totals = [0.0, 0.0, 0.0]

# %% Save
folder = DATA / "tiny-qwen2.5-vl"
model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]  # as Qwen2.5-VL does
model.generation_config.pad_token_id = tokenizer.pad_token_id
model.to(torch.bfloat16).save_pretrained(folder)
processor.save_pretrained(folder)
print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir()) / 2**20:.1f} MB")

# %% Try it
model.float().eval()
right = 0
for number in range(40):
    image, lines, _ = picture(rng, *SIZES[-1], 1)
    inputs = processor(images=[image], text=[conversation(QUESTIONS[0])], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    told = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
    right += told == "\n".join(lines)
    if number < 8:
        print(lines, "->", told)
print(f"{right} of 40 fresh lines read without an error")
