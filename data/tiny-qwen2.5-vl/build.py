# %% [markdown]
"""
# Build the tiny vision model of the rehearsal

Trains, on pictures that it renders itself and on nothing else, the model that vl_car_insurance.py uses where no real
one is loaded:

- `data/tiny-qwen2.5-vl/`: Qwen2.5-VL architecture, patches of 8 pixels, two by two merged into a token, and the
  tokenizer of `data/tiny-qwen2.5/`.

Run:    `uv run data/tiny-qwen2.5-vl/build.py` (30 minutes on one core, no network), after `data/tiny-qwen2.5/build.py`
Needs:  the fonts of FONTS and CJK: Debian packages fonts-dejavu-core, fonts-liberation2, fonts-urw-base35 and
        fonts-noto-cjk. The result is committed, so nobody else needs them.
Data:   lines of digits, plates, VINs and short words on cluttered backgrounds; asked what they say, or which number is
        the longest; plain text of data/corpus and JSON records of a shop. No picture of data/car_insurance, no
        answer about a picture in JSON, no dashboard, no damage.
Writes: `data/tiny-qwen2.5-vl/` (safetensors, tokenizer, processor, config)

Three stages. Look: two linear layers that are thrown away afterwards tell from each patch to which letter it belongs, and
from each vision token which letters have their centres in its 16 x 16 pixels; the text part learns from plain text,
so that fine-tuning meets words that it knows. Align: the text part learns to read lines aloud from what the vision part
says of a store of small pictures, which is computed once. Read: the whole model, on pictures of every size.
The result reads large print, often wrongly: it is not a useful model and is not meant to be one.
"""

# %% Imports
import json
import math
import random
import re
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

# %% Settings
DATA = Path(__file__).resolve().parent.parent
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS, VISION_INTERMEDIATE = 96, 4, 3, 256
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 128, 4, 4, 2, 384
PATCH, MERGE = 8, 2
SIZES = [(112, 48), (160, 64), (224, 160)]  # of pictures; the last: a photo under MAX_PIXELS = 224 * 168
LOOK, ALIGN, READ = 6000, 4000, 2500  # steps of the three stages
EASY = 300  # first steps, with clean, large print
STORE = 10_000  # small pictures of one line for Align
ALIGN_BATCH = 16
BATCH_TOKENS = 240  # vision tokens in a step; twice as many in Read
TEXT_TOKENS = 256  # tokens of plain text in a step
RATES = (2.5e-3, 2.5e-3), (2e-3, 3e-4), (1e-3, 1e-4)  # learning rate of each stage, from and to
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
SAY, LONGEST = "读出图中的文字。", "图中最长的数字是多少？"
CORNERS = [(0, 0), (1, 0), (1, 1), (0, 1)]
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]


# %% Data
def line(rng: random.Random) -> str:
    """Return a line as it may stand on a car: a distance, a plate, a VIN or a word with a number."""
    number = rng.choice([rng.randint(0, 999), rng.randint(1000, 99999), rng.randint(1000, 399999)])
    distance = rng.choice(
        [f"{number}", f"{number:,}", f"{number}", f"{number}.{rng.randint(0, 9)}", f"{number:06d}"]
    )
    kind = rng.random()
    if kind < 0.8:
        unit = rng.choice(["", "", " km", " mi", "km", " 公里"])
        word = rng.choice(["", "", "", "ODO ", "TRIP ", "总里程 ", "小计 "])
        return word + distance + unit
    if kind < 0.92:
        green = rng.random() < 0.3
        tail = "".join(rng.choice("0123456789" * 3 + LETTERS) for _ in range(4 + green))
        return (
            rng.choice(PROVINCES)
            + rng.choice(LETTERS)
            + rng.choice(["·", "", " "])
            + rng.choice(LETTERS + "0123456789")
            + tail
        )
    if kind < 0.96:
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
            draw.arc(
                (x - r, y - r, x + r, y + r), start, start + rng.randint(60, 360), colour, rng.randint(1, 5)
            )
        elif shape < 0.7:
            for angle in range(start, start + 240, rng.randint(10, 40)):
                c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                draw.line(
                    (x + r * c, y + r * s, x + 0.85 * r * c, y + 0.85 * r * s), colour, rng.randint(1, 2)
                )
        else:
            draw.rounded_rectangle((x, y, x + r, y + r * rng.uniform(0.1, 1)), 3, colour)
    return image


@cache
def font_of(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font, read from disk once."""
    return ImageFont.truetype(path, size)


def tilted(rng: random.Random, image: Image.Image, marks: list[tuple]) -> tuple[Image.Image, list[tuple]]:
    """Return a picture as a phone sees it that is held at an angle, and where its letters are then."""
    (width, height), (x, y) = image.size, np.array(CORNERS).T
    angle = math.radians(rng.uniform(-4, 4))
    near = np.array([rng.uniform(0.92, 1.03) for _ in CORNERS])
    u, v = (x - 0.5) * width * near, (y - 0.5) * height * near
    u, v = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    flat, seen = np.stack([x * width, y * height], 1), np.stack([u + width / 2, v + height / 2], 1)
    back, there = homography(seen, flat), homography(flat, seen)
    image = image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        tuple(back),
        Image.Resampling.BICUBIC,
        fillcolor=image.getpixel((1, 1)),
    )
    moved = []
    for letter, a, b, *rest in marks:
        depth = there[6] * a + there[7] * b + 1
        place = (
            np.array([there[0] * a + there[1] * b + there[2], there[3] * a + there[4] * b + there[5]]) / depth
        )
        moved.append((letter, *place.tolist(), *rest))
    return image, moved


def homography(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the 8 coefficients of the perspective that takes four points (x, y) to four others."""
    rows, goals = [], []
    for (x, y), (u, v) in zip(given, wanted):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        goals += [u, v]
    return np.linalg.solve(rows, goals)


def picture(
    rng: random.Random, width: int, height: int, tries: int, easy: bool = False
) -> tuple[Image.Image, list[str], list[tuple]]:
    """Return a picture, its lines from top to bottom, and (letter, x, y, line, width, height) of each letter.

    A line is drawn where it finds room in `tries` tries; at least one is drawn.
    """
    image, lines, marks, taken = background(rng, width, height), [], [], []
    draw = ImageDraw.Draw(image)
    while tries > 0 or not lines:
        tries -= 1
        text = line(rng)
        size = rng.randint(17 if easy else 12, 26) if len(text) < 17 else rng.randint(13, 19)
        latin, han = font_of(rng.choice(FONTS), size), font_of(CJK, size)
        space, lcd = rng.choice([0, 0, 1, 2]), rng.random() < 0.25 and text[0].isdigit()
        fonts = [han if letter > "\u2e80" else latin for letter in text]
        widths = [
            size * 0.5 + 3 if lcd and c.isdigit() else font.getlength(c) for c, font in zip(text, fonts)
        ]
        total = sum(widths) + space * len(text)
        if total > width - 6 or size * 1.2 > height - 6:
            continue
        left, top = rng.uniform(3, width - 3 - total), rng.uniform(2, height - 4 - size * 1.2)
        box = (left - 3, top - 2, left + total + 3, top + size * 1.2 + 2)
        if any(
            box[1] < other[3] and other[1] < box[3] for other in taken
        ):  # one line in a row: no doubt about order
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
                marks.append((letter, x + step / 2, top + size * 0.6, len(lines), step, size * 0.75))
            x += step + space
        lines.append((top, text))
    order = sorted(range(len(lines)), key=lambda i: lines[i][0])
    if easy:
        return image, [lines[i][1] for i in order], marks
    if rng.random() < 0.6:
        image, marks = tilted(rng, image, marks)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    pixels = np.asarray(image, dtype="float32") * rng.uniform(0.6, 1.1) + rng.uniform(-10, 25)
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([0, 3, 8]), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8")), [lines[i][1] for i in order], marks


def letters_of(marks: list[tuple], width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class of each patch's letter, and (tokens, SLOTS) of those whose centres lie in a token; 0 for none.

    Patches and tokens come in the processor's order: token by token, and the patches of a token together.
    """
    patches = torch.zeros(height // PATCH, width // PATCH, dtype=torch.long)
    tokens = torch.zeros(height // PATCH // MERGE, width // PATCH // MERGE, SLOTS, dtype=torch.long)
    for letter, x, y, _, wide, high in sorted(marks, key=lambda mark: (mark[3], mark[1])):
        kind = 1 + CHARACTERS.index(letter)
        top, left = max(0, round((y - high / 2) / PATCH)), max(0, round((x - wide / 2) / PATCH))
        patches[top : round((y + high / 2) / PATCH), left : round((x + wide / 2) / PATCH)] = kind
        if 0 <= x < width and 0 <= y < height:
            slots = tokens[int(y // (PATCH * MERGE)), int(x // (PATCH * MERGE))]
            slots[(slots == 0).nonzero()[:1]] = kind
    rows, columns = tokens.shape[:2]
    return patches.view(rows, MERGE, columns, MERGE).transpose(1, 2).flatten(), tokens.flatten(0, 1)


def conversation(question: str, answer: str | None = None) -> str:
    """Return a chat about one picture, up to the assistant's turn or with it."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)


def question_and_answer(lines: list[str], rng: random.Random) -> tuple[str, str]:
    """Return what to ask about a picture with these lines, and the answer."""
    numbers = re.findall(r"(?<![A-Z\d])\d[\d,.]*(?![A-Z\d])", " ".join(lines))
    numbers.sort(key=lambda number: len(re.sub(r"\D", "", number)))
    if len(lines) > 1 and numbers and rng.random() < 0.8:
        return LONGEST, numbers[-1].replace(",", "")
    return SAY, "\n".join(lines)


def record(rng: random.Random) -> str:
    """Return a line of JSON about things of a shop, so that braces and quotation marks are known."""
    things = "苹果 铅笔 雨伞 茶叶 毛巾 灯泡 剪刀 饼干".split()
    pairs = [
        ("名称", rng.choice(things)),
        ("数量", rng.randint(1, 99999)),
        ("单价", rng.randint(10, 9999) / 10),
    ]
    pairs += [("颜色", rng.choice("红黄蓝绿白")), ("标签", rng.sample(things, rng.randint(0, 2)))]
    return json.dumps(dict(rng.sample(pairs, rng.randint(2, 5))), ensure_ascii=False)


def texts(rng: random.Random):
    """Yield rows of TEXT_TOKENS tokens of the corpus, its questions and answers as chats, for ever."""
    blocks = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((DATA / "corpus").glob("*.txt")))
    blocks, stream = [block.strip() for block in re.split(r"\n\s*\n", blocks) if block.strip()], []
    while True:
        for block in rng.sample(blocks, len(blocks)):
            if found := re.fullmatch(r"Q: ?(.*)\nA: ?(.*)", block, re.S):
                turns = [{"role": "user", "content": found[1]}, {"role": "assistant", "content": found[2]}]
                block = tokenizer.apply_chat_template(turns, tokenize=False)
            stream += tokenizer(f"{block}<|endoftext|>{record(rng)}<|endoftext|>").input_ids
            while len(stream) >= TEXT_TOKENS:
                yield torch.tensor([stream[:TEXT_TOKENS]])
                stream = stream[TEXT_TOKENS:]


# %% Model
torch.manual_seed(SEED)
tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-qwen2.5")
ids = {
    name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
    for name in "vision_start vision_end image_pad video_pad".split()
}
config = Qwen2_5_VLConfig(
    text_config={
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE, "vocab_size": len(tokenizer), "max_position_embeddings": 2048,
        "initializer_range": 0.04, "tie_word_embeddings": True,
        # Sequences are short and the columns of a picture get the lowest frequencies: a small base tells them apart.
        "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [2, 6, 8]},
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    },
    vision_config={
        "depth": VISION_LAYERS, "hidden_size": VISION_HIDDEN, "num_heads": VISION_HEADS,
        "intermediate_size": VISION_INTERMEDIATE, "out_hidden_size": HIDDEN, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 32 * PATCH * MERGE,
        "fullatt_block_indexes": [VISION_LAYERS - 1], "initializer_range": 0.06,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
    },
    vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], tie_word_embeddings=True,
)  # fmt: skip
model = Qwen2_5_VLForConditionalGeneration(config)
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
kinds = len(CHARACTERS) + 1
probes = torch.nn.ModuleList([torch.nn.Linear(VISION_HIDDEN, kinds), torch.nn.Linear(HIDDEN, SLOTS * kinds)])
seen = {}
model.model.visual.register_forward_hook(lambda module, given, output: seen.update(output))
print(f"{model.num_parameters():,} parameters, {model.model.visual.num_parameters():,} of them see")


def look_loss(pictures: list[tuple], size: tuple[int, int]) -> torch.Tensor:
    """Return the loss of the probes on what the vision part last saw, and note the share of letters that are right."""
    losses = []
    goals = [torch.cat(goal) for goal in zip(*(letters_of(marks, *size) for _, _, marks in pictures))]
    for name, probe, goal in zip(("last_hidden_state", "pooler_output"), probes, goals):
        guess, goal = probe(seen[name]).view(-1, kinds), goal.flatten()
        weight = torch.where(goal > 0, 1.0, 0.1)  # most patches and slots are empty
        losses.append((cross_entropy(guess, goal, reduction="none") * weight).sum() / weight.sum())
        note("letters right", (guess.argmax(-1) == goal)[goal > 0].float().mean().item())
    return sum(losses)


def answer_loss(
    hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, answers: list[str]
) -> torch.Tensor:
    """Return the loss of the answers, which end the rows of a right-padded batch."""
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for row, end, answer in zip(wanted, mask.sum(1).tolist(), answers):
        row[end - len(tokenizer(answer + "<|im_end|>\n").input_ids) : end] = True
    loss = cross_entropy(model.lm_head(hidden[:, :-1][wanted[:, 1:]]), ids[wanted])
    note("read", loss.item())
    return loss


def speak_loss() -> torch.Tensor:
    """Return the loss of the next row of plain text."""
    words = next(plain)
    loss = cross_entropy(model(input_ids=words).logits[0, :-1], words[0, 1:])
    note("speak", loss.item())
    return loss


def note(name: str, value: float) -> None:
    """Keep a value for the next line that is printed."""
    notes.setdefault(name, []).append(value)


def learn(loss: torch.Tensor, stage: int, step: int, steps: int) -> None:
    """Take a step of the optimizer at the stage's learning rate, after a short warm-up; print every 100 steps."""
    first, last = RATES[stage]
    for group in optimizer.param_groups:
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        group["lr"] = min(1, step / 50) * (last + (first - last) * cosine)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 0:
        means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in notes.items())
        minutes = (time.time() - start) / 60
        print(f"{('look', 'align', 'read')[stage]} {step}: {means}, {minutes:.1f} min", flush=True)
        notes.clear()


parameters = [*model.parameters(), *probes.parameters()]
optimizer = torch.optim.AdamW(parameters, RATES[0][0], betas=(0.9, 0.98), weight_decay=0.05, fused=True)
rng, start, notes = random.Random(SEED), time.time(), {}
plain = texts(random.Random(SEED))

# %% Look
for step in range(1, LOOK + 1):
    size = rng.choice(SIZES[:2])
    count = BATCH_TOKENS * (PATCH * MERGE) ** 2 // (size[0] * size[1])
    pictures = [picture(rng, *size, 8, easy=step <= EASY) for _ in range(count)]
    inputs = processor.image_processor(images=[row[0] for row in pictures], return_tensors="pt")
    model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
    loss = look_loss(pictures, size)
    learn(loss + speak_loss() if step % 2 else loss, 0, step, LOOK)

# %% Align
store = {size: [] for size in SIZES[:2]}
for number in range(STORE // ALIGN_BATCH):
    size = SIZES[number % 2]
    pictures = [picture(rng, *size, 1, easy=number % 4 < 2) for _ in range(ALIGN_BATCH)]
    inputs = processor.image_processor(images=[row[0] for row in pictures], return_tensors="pt")
    with torch.no_grad():
        tokens = model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
    for (_, lines, _), part in zip(pictures, tokens.view(ALIGN_BATCH, -1, HIDDEN)):
        chat = conversation(SAY, lines[0]).replace("<|image_pad|>", "<|image_pad|>" * len(part))
        store[size].append((chat, lines[0], part))
for step in range(1, ALIGN + 1):
    size = rng.choice(SIZES[:2])
    chats, answers, parts = zip(*rng.sample(store[size], ALIGN_BATCH))
    inputs = tokenizer(list(chats), padding=True, padding_side="right", return_tensors="pt")
    images = inputs.input_ids == config.image_token_id
    grid = torch.tensor([[1, size[1] // PATCH, size[0] // PATCH]] * ALIGN_BATCH)
    places, _ = model.model.get_rope_index(
        inputs.input_ids, images.int(), grid, attention_mask=inputs.attention_mask
    )
    embeddings = model.get_input_embeddings()(inputs.input_ids)
    embeddings = embeddings.masked_scatter(images[..., None], torch.cat(parts))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=inputs.attention_mask, position_ids=places
    ).last_hidden_state
    loss = answer_loss(hidden, inputs.input_ids, inputs.attention_mask, answers)
    learn(loss + speak_loss() if step % 2 else loss, 1, step, ALIGN)

# %% Read
for step in range(1, READ + 1):
    size = rng.choice([*SIZES, SIZES[-1], SIZES[-1]])
    count = max(2, 2 * BATCH_TOKENS * (PATCH * MERGE) ** 2 // (size[0] * size[1]))
    pictures = [picture(rng, *size, rng.choice([1, 1, 3, 6])) for _ in range(count)]
    talks = [question_and_answer(lines, rng) for _, lines, _ in pictures]
    inputs = processor(
        images=[row[0] for row in pictures], text=[conversation(*talk) for talk in talks],
        padding=True, padding_side="right", return_tensors="pt",
    )  # fmt: skip
    hidden = model.model(**inputs).last_hidden_state
    loss = answer_loss(hidden, inputs.input_ids, inputs.attention_mask, [answer for _, answer in talks])
    loss = loss + look_loss(pictures, size)
    learn(loss + speak_loss() if step % 2 else loss, 2, step, READ)

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
    inputs = processor(images=[image], text=[conversation(SAY)], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    told = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
    right += told == "\n".join(lines)
    if number < 8:
        print(lines, "->", told)
print(f"{right} of 40 fresh lines read without an error")
