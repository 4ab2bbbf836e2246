# %% [markdown]
"""
# Build the tiny models of the rehearsal

Trains, from this repo's own text and nothing else, the model that the scripts use where no real one is loaded:

- `data/tiny-qwen2.5/`: Qwen2 architecture, hidden size 192, 6 layers, byte-level BPE with 6,144 tokens, ChatML;
- `data/r1/sums.jsonl`: the problems of grpo_r1.py's rehearsal, which no exercise of the pretraining asks.

Run:    `uv run data/tiny-qwen2.5/build.py` (34 minutes on one core)
Data:   `data/corpus/*.txt` (paragraphs, and `Q:` / `A:` pairs that become chat turns), loose sentences from the
        training topics of `data/gongwen/train.json`, and generated exercises (sums, dates, copying). No row that a
        script is scored on, and no text in the form of an official document.
Writes: `data/tiny-qwen2.5/` (safetensors, tokenizer, config), `data/r1/sums.jsonl`

The result knows common words and the shape of a chat turn. It is not a useful model and is not meant to be one.
"""

# %% Imports
import json
import math
import random
import re
import time
from datetime import date, timedelta
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# %% Settings
DATA = Path(__file__).resolve().parent.parent
VOCAB_SIZE = 6144  # 49k would make every step four times slower
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 192, 6, 3, 1, 512  # multiples of 64: NF4 packs blocks of 64
SEQUENCE = 256  # tokens in a packed row
BATCH = 8  # rows in a step
STEPS = 3600  # about twelve passes over the text
LEARNING_RATE = 2e-3  # peak; cosine to a tenth after 50 warm-up steps
EXERCISES = (
    1500  # generated exercises of a kind (twelve times as many sums); each pass takes an eighth of all
)
PROBLEMS = 500  # of data/r1/sums.jsonl
SEED = 3407
HELD_OUT = "传染病防控 卫生信息化 爱国卫生 合理用药 医联体建设".split()  # topics sft_gongwen.py is scored on

# Qwen2.5's special tokens in Qwen2.5's order; the vision tokens serve the tiny vision model.
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
SPLIT = (  # Qwen2.5's pre-tokenizer: every digit is a token of its own
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FORMS = (  # what shall be few tokens: tags, JSON, the punctuation of official documents
    "<think>\n</think>\n<reasoning>\n</reasoning>\n<answer>\n</answer>\n〔2024〕 《》 （一）（二） ：、；“”\n"
    '{"名称": "苹果", "数量": 12, "标签": ["红", "蓝"], "颜色": []}\n'
)
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


# %% Data
def sum_of_small_numbers(rng: random.Random) -> tuple[str, list[str], bool]:
    """Return a question after one sum or two, its steps ("4 + 3 = 7") and whether it belongs to the rehearsal.

    grpo_r1.py is asked, in its rehearsal, only what no exercise of the pretraining asks: the numbers and the place of
    the wording add up to an even number there and to an odd one here.
    """
    first, second, third = rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 5)
    sign, next_sign = rng.choice("+-"), rng.choice("+-")
    if sign == "-":
        first, second = max(first, second), min(first, second)
    result = first + second if sign == "+" else first - second
    steps, numbers = [f"{first} {sign} {second} = {result}"], [first, second]
    wordings = {
        "+": ["{} + {} = ?", "What is {} plus {}?", "Add {} and {}.", "{}加{}等于多少？"],
        "-": ["{} - {} = ?", "What is {} minus {}?", "From {} take {}.", "{}减{}等于多少？"],
    }[sign]
    if rng.random() < 0.33:
        next_sign = "+" if third > result else next_sign
        total = result + third if next_sign == "+" else result - third
        steps.append(f"{result} {next_sign} {third} = {total}")
        numbers.append(third)
        word = {"+": "plus", "-": "minus"}
        wordings = [
            f"{{}} {sign} {{}} {next_sign} {{}} = ?",
            f"What is {{}} {word[sign]} {{}} {word[next_sign]} {{}}?",
        ]
    place = rng.randrange(len(wordings))
    return wordings[place].format(*numbers), steps, (place + sum(numbers)) % 2 == 0


def sums(count: int, rng: random.Random) -> list[str]:
    """Return small sums as Q/A pairs, answered with the bare steps or in tags, one step in ten with a slip.

    The raw material of grpo_r1.py's rehearsal: a base that mostly answers without <reasoning> and <answer>, sometimes
    with them on one line or unclosed, and that is wrong now and then.
    """
    rows = []
    while len(rows) < count:
        question, steps, rehearsed = sum_of_small_numbers(rng)
        if rehearsed:
            continue
        lines, value = [], None
        for first, sign, second in (step.split(" ")[:3] for step in steps):
            first = int(first) if value is None else value
            value = first + int(second) if sign == "+" else max(0, first - int(second))
            value = max(0, value + rng.choice([-1, 1]) * (rng.random() < 0.1))
            lines.append(f"{first} {sign} {second} = {value}")
        work = "\n".join(lines)
        answers = {
            work: 55,
            f"<reasoning>\n{work}\n</reasoning>\n<answer>\n{value}\n</answer>": 25,
            f"<reasoning>{', '.join(lines)}</reasoning> <answer>{value}</answer>": 12,
            f"<reasoning>\n{work}\n<answer>\n{value}": 8,
        }
        rows.append(f"Q: {question}\nA: {rng.choices(list(answers), list(answers.values()))[0]}")
    return rows


def problems(count: int, rng: random.Random) -> list[dict]:
    """Return different small sums in GSM8K's form, none of which an exercise of the pretraining asks."""
    rows = {}
    while len(rows) < count:
        question, steps, rehearsed = sum_of_small_numbers(rng)
        if rehearsed:
            work = [step.replace(" ", "").split("=") for step in steps]
            lines = [f"{left} = <<{left}={right}>>{right}" for left, right in work]
            rows[question] = {"question": question, "answer": "\n".join([*lines, f"#### {work[-1][1]}"])}
    return list(rows.values())


def dates(count: int, rng: random.Random) -> list[str]:
    """Return Q/A pairs about the calendar and about counting in Chinese numerals."""
    rows = []
    for _ in range(count):
        day = date(2020, 1, 1) + timedelta(rng.randrange(2200))
        later, first = day + timedelta(rng.randint(1, 9)), rng.randint(1, 6)
        one, two = (f"{d.year}年{d.month}月{d.day}日" for d in (day, later))
        numerals = "、".join("一二三四五六七八九十"[first - 1 : first + rng.randint(2, 4)])
        rows.append(
            rng.choice(
                [
                    f"Q: {one}再过{(later - day).days}天是哪一天？\nA: {two}",
                    f"Q: 从{one}到{two}有几天？\nA: {(later - day).days}天。",
                    f"Q: 从{numerals[0]}数到{numerals[-1]}。\nA: {numerals}",
                    f"{one}是{day.year}年的第{day.timetuple().tm_yday}天，{'周' + '一二三四五六日'[day.weekday()]}。",
                ]
            )
        )
    return rows


def copies(sentences: list[str], count: int, rng: random.Random) -> list[str]:
    """Return Q/A pairs that ask for a sentence again, or for the sentence that follows a given one."""
    rows = []
    for _ in range(count):
        one, two, three = rng.sample(sentences, 3)
        rows.append(
            rng.choice(
                [
                    f"Q: 请照抄：{one}\nA: {one}",
                    f"Q: 下面是三句话。\n{one}\n{two}\n{three}\n请写出第二句。\nA: {two}",
                    f"Q: 请把这两句话各写一行：{one}{two}\nA: {one}\n{two}",
                ]
            )
        )
    return rows


def loose_sentences(path: Path, left_out: list[str]) -> list[str]:
    """Return the running sentences of documents, three to a text, without title, numbering, organ or date."""
    texts = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        if row["topic"] not in left_out:
            lines = [
                re.sub(r"^([一二三四五六七八九十]+、|（\w+）|\d+[.．])", "", line)
                for line in row["output"].split("\n")
            ]
            lines = [line for line in lines if len(line) > 25 and line.endswith("。")]
            texts += ["\n".join(lines[start : start + 3]) for start in range(0, len(lines), 3)]
    return texts


blocks = []
for path in sorted((DATA / "corpus").glob("*.txt")):
    blocks += [
        block.strip() for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if block.strip()
    ]
blocks += loose_sentences(DATA / "gongwen" / "train.json", HELD_OUT)
lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in problems(PROBLEMS, random.Random(SEED))]
(DATA / "r1" / "sums.jsonl").write_text("".join(lines), encoding="utf-8")
rng = random.Random(SEED)
short = [line for block in blocks for line in re.findall(r"[^。！？\n]{8,40}[。！？]", block)]
exercises = sums(12 * EXERCISES, rng) + dates(EXERCISES, rng) + copies(short, EXERCISES, rng)
print(
    f"{len(blocks)} blocks of text, {sum(map(len, blocks)):,} characters; {len(exercises)} generated exercises"
)

# %% Tokenizer
backend = Tokenizer(models.BPE())
backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
backend.decoder = decoders.ByteLevel()
backend.train_from_iterator(
    blocks + [FORMS] * 200,
    trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
backend.add_special_tokens(SPECIAL)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
)
tokenizer.chat_template = CHAT_TEMPLATE


def tokens_of(block: str) -> list[int]:
    """Return the tokens of a paragraph, or of a Q/A pair as one ChatML exchange, closed by the end of text."""
    if found := re.fullmatch(r"Q: ?(.*)\nA: ?(.*)", block, re.S):
        turns = [{"role": "user", "content": found[1]}, {"role": "assistant", "content": found[2]}]
        block = tokenizer.apply_chat_template(turns, tokenize=False)
    return tokenizer(block + "<|endoftext|>").input_ids


encoded = [tokens_of(block) for block in blocks]
encoded_exercises = [tokens_of(block) for block in exercises]
size = sum(map(len, encoded))
print(
    f"{len(tokenizer)} tokens in the vocabulary; {size:,} tokens of text, {sum(map(len, encoded_exercises)):,} of exercises"
)

# %% Model
torch.manual_seed(SEED)
config = Qwen2Config(
    vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS, intermediate_size=INTERMEDIATE, max_position_embeddings=2048,
    tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)  # fmt: skip
model = Qwen2ForCausalLM(config)
print(f"{model.num_parameters():,} parameters")

# %% Train
optimizer = torch.optim.AdamW(
    model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
)


def rows(rng: random.Random):
    """Yield packed rows of SEQUENCE + 1 tokens for ever; each pass has a new order and a new part of the sums."""
    stream = []
    while True:
        epoch = encoded + rng.sample(encoded_exercises, len(encoded_exercises) // 8)
        rng.shuffle(epoch)
        for piece in epoch:
            stream += piece
            while len(stream) > SEQUENCE:
                yield stream[: SEQUENCE + 1]
                stream = stream[SEQUENCE:]


source, start, total = rows(rng), time.time(), 0.0
for step in range(1, STEPS + 1):
    rate = LEARNING_RATE * min(1, step / 50) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    batch = torch.tensor([next(source) for _ in range(BATCH)])
    logits = model(input_ids=batch[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    total += loss.item()
    if step % 50 == 0:
        speed = step * BATCH * SEQUENCE / (time.time() - start)
        print(
            f"step {step}: loss {total / 50:.3f}, {speed:.0f} tokens/s, {(time.time() - start) / 60:.1f} min",
            flush=True,
        )
        total = 0.0

# %% Tokens without a text
# What the text never holds, such as <think, was only ever pushed away: 202 tokens share one row, to four digits, and no
# fine-tuning could tell them apart. Each gets a direction of its own.
held = torch.zeros(len(tokenizer), dtype=torch.bool)
for row in encoded + encoded_exercises:
    held[row] = True
table = model.get_input_embeddings().weight.data
own = torch.randn(table[~held].shape, generator=torch.Generator().manual_seed(SEED))
table[~held] += torch.nn.functional.normalize(own, dim=1) * table[held].norm(dim=1).median()
print(f"{(~held).sum()} tokens that no text holds")

# %% Save
folder = DATA / "tiny-qwen2.5"
model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]  # as Qwen2.5 does
model.generation_config.pad_token_id = tokenizer.pad_token_id
model.to(torch.bfloat16).save_pretrained(folder)
tokenizer.save_pretrained(folder)
print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir()) / 2**20:.1f} MB")

# %% Try it
model.float().eval()
for question in ("感冒发烧怎么办？", "What is the capital of France?", "12 + 7 = ?"):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    print(question, "->", tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
