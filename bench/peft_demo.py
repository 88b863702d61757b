#!/usr/bin/env python3
"""What PEFT reaches on the demo's rows with the demo's options.

    bench/export_demo_data.sh DIR
    python bench/peft_demo.py --data DIR --gguf cache/SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch, transformers, peft and gguf.  The base is the same file, dequantised to f32; rows are
rendered by the file's own chat template, the loss is taken at the completion and its end token only,
and an optimizer step's loss is the mean over its trained tokens.  The order of the rows, their division
into steps and the first values of the adapter are drawn as the engine draws them (src/engine/random.h,
packing.c, adapter.c), so that chance decides nothing between the two.  Accuracy is exact match under
greedy decoding.  The last line is the result; --out adds it to a file.
"""

import argparse
import collections
import json
import math
import os
import re
import time

import numpy
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=512, help="tokens of an optimizer step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--warmup-ratio", type=float, default=0.03)
    parser.add_argument("--min-lr-ratio", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-steps", type=int, help="stop early, to try the script")
    parser.add_argument("--out", help="file that the result is appended to")
    return parser.parse_args()


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def naive_bayes(train, validation):
    """Accuracy of multinomial naive Bayes with Laplace smoothing over the words of the prompt."""

    def words(text):
        return re.findall("[a-z0-9]+", text.lower())

    classes = collections.Counter(row["completion"] for row in train)
    counts = collections.defaultdict(collections.Counter)
    for row in train:
        counts[row["completion"]].update(words(row["prompt"]))
    size = len(set().union(*counts.values()))

    def score(name, text):
        total = sum(counts[name].values()) + size
        return math.log(classes[name]) + sum(
            math.log((counts[name][word] + 1) / total) for word in words(text))

    right = 0
    for row in validation:
        guess = max(sorted(classes), key=lambda name: score(name, row["prompt"]))
        right += guess == row["completion"]
    return right / len(validation)


STREAM_LORA_INIT = 2 << 32
STREAM_EPOCH = 4 << 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def philox(seed, stream, counter):
    """Philox4x32-10 for an array of counters: uint64 array [n, 4] of 32-bit words."""
    counter = numpy.asarray(counter, dtype=numpy.uint64)
    low, shift = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    c0, c1 = counter & low, counter >> shift
    c2 = numpy.full_like(counter, stream & 0xFFFFFFFF)
    c3 = numpy.full_like(counter, stream >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = numpy.uint64(0xD2511F53) * c0, numpy.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = ((p1 >> shift) ^ c1 ^ numpy.uint64(k0), p1 & low,
                          (p0 >> shift) ^ c3 ^ numpy.uint64(k1), p0 & low)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return numpy.stack([c0, c1, c2, c3], axis=-1)


def shuffled(seed, stream, n):
    """Fisher-Yates with the number drawn at i for i items left."""
    words = philox(seed, stream, numpy.arange(n + 1))
    items = list(range(n))
    for i in range(n, 1, -1):
        bits = int(words[i, 1]) << 32 | int(words[i, 0])
        j = bits * i >> 64
        items[j], items[i - 1] = items[i - 1], items[j]
    return items


def epoch_steps(rows, seed, epoch, batch_size):
    """The rows of one epoch, shuffled and cut into steps of about equal numbers of tokens."""
    order = shuffled(seed, STREAM_EPOCH + epoch, len(rows))
    left = sum(len(row[0]) for row in rows)
    count = max(1, min(len(rows), (left + batch_size // 2) // batch_size))
    steps, at = [], 0
    for steps_left in range(count, 0, -1):
        share, taken, step = left // steps_left, 0, []
        while len(rows) - at >= steps_left:
            length = len(rows[order[at]][0])
            if taken > 0 and steps_left > 1 and taken + length // 2 > share:
                break
            taken += length
            step.append(rows[order[at]])
            at += 1
        left -= taken
        steps.append(step)
    return steps


@torch.no_grad()
def set_first_values(model, seed):
    """A uniform in ±1/sqrt(in), the numbers keyed by layer and target; B is zero already."""
    for name, parameter in model.named_parameters():
        match = re.search(r"layers\.(\d+)\..*\.(\w+_proj)\.lora_A", name)
        if match:
            index = int(match[1]) * len(TARGETS) + TARGETS.index(match[2])
            count = parameter.numel()
            words = philox(seed, STREAM_LORA_INIT + index, numpy.arange((count + 3) // 4)).reshape(-1)[:count]
            uniform = (words >> numpy.uint64(8)).astype(numpy.float32) * numpy.float32(2.0 ** -24)
            bound = numpy.float32(1) / numpy.sqrt(numpy.float32(parameter.shape[1]))
            parameter.copy_(torch.from_numpy(((2 * uniform - 1) * bound).reshape(parameter.shape)))


def encode(tokenizer, row):
    """Ids of a row and the position where its completion begins."""
    head = prompt_ids(tokenizer, row)
    tail = tokenizer(row["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return head + tail, len(head)


def prompt_ids(tokenizer, row):
    text = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=False,
                                         add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def batches(rows, budget):
    """Rows in their order, as many to a batch as fit into the budget of tokens."""
    batch, used = [], 0
    for row in rows:
        if batch and used + len(row[0]) > budget:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += len(row[0])
    if batch:
        yield batch


def pad(sequences, value, left=False):
    longest = max(map(len, sequences))
    return torch.tensor([[value] * (longest - len(s)) + s if left else s + [value] * (longest - len(s))
                         for s in sequences])


def loss_sum(model, batch, pad_id):
    """Sum of the losses at the trained tokens of a batch, and their number.

    The head runs at those positions only: its logits over the whole batch would cost more than the rest.
    """
    ids = pad([row[0] for row in batch], pad_id)
    mask = pad([[1] * len(row[0]) for row in batch], 0)
    labels = pad([[-100] * row[1] + row[0][row[1]:] for row in batch], -100)[:, 1:]
    llama = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = llama.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    chosen = labels != -100
    logits = llama.lm_head(hidden[chosen])
    return torch.nn.functional.cross_entropy(logits.float(), labels[chosen], reduction="sum"), int(chosen.sum())


@torch.no_grad()
def validation_loss(model, rows, budget, pad_id):
    model.eval()
    total, count = 0.0, 0
    for batch in batches(rows, budget):
        value, n = loss_sum(model, batch, pad_id)
        total, count = total + value.item(), count + n
    model.train()
    return total / count


@torch.no_grad()
def answers(model, tokenizer, rows, max_tokens):
    model.eval()
    result = []
    for start in range(0, len(rows), 16):
        prompts = [prompt_ids(tokenizer, row) for row in rows[start:start + 16]]
        ids = pad(prompts, tokenizer.eos_token_id, left=True)
        mask = pad([[1] * len(p) for p in prompts], 0, left=True)
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False,
                              pad_token_id=tokenizer.eos_token_id)
        result += tokenizer.batch_decode(made[:, ids.shape[1]:], skip_special_tokens=True)
    return result


def accuracy(given, rows):
    return sum(a.strip(" \n") == row["completion"] for a, row in zip(given, rows)) / len(rows)


def train(model, rows, validation, args, pad_id):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=args.weight_decay)
    plan = [epoch_steps(rows, args.seed, epoch, args.batch_size) for epoch in range(args.epochs)]
    total = sum(map(len, plan))
    warmup = math.ceil(args.warmup_ratio * total)

    def rate(step):
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, total - warmup)
        return args.min_lr_ratio + (1 - args.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))

    step, tokens, started = 0, 0, time.monotonic()
    for epoch, steps in enumerate(plan):
        for batch in steps:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate(step)
            value, count = loss_sum(model, batch, pad_id)
            loss = value / count
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            tokens += sum(len(row[0]) for row in batch)
            print(f"step {step}/{total} loss {loss.item():.4f} norm {norm:.3f} "
                  f"{tokens / (time.monotonic() - started):.0f} tokens/s", flush=True)
            if step == args.max_steps:
                return step, tokens / (time.monotonic() - started)
        print(f"epoch {epoch + 1} validation_loss {validation_loss(model, validation, args.batch_size, pad_id):.4f}",
              flush=True)
    return step, tokens / (time.monotonic() - started)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_rows = read_rows(os.path.join(args.data, "train.jsonl"))
    validation_rows = read_rows(os.path.join(args.data, "validation.jsonl"))
    print(f"naive Bayes {naive_bayes(train_rows, validation_rows):.2f}", flush=True)

    folder, name = os.path.split(args.gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0,
                                             target_modules="all-linear", task_type="CAUSAL_LM"))
    set_first_values(model, args.seed)
    rows = [encode(tokenizer, row) for row in train_rows]
    validation = [encode(tokenizer, row) for row in validation_rows]
    print(f"{sum(len(r[0]) for r in rows)} tokens an epoch, {sum(len(r[0]) - r[1] for r in rows)} of them trained",
          flush=True)

    steps, speed = train(model, rows, validation, args, tokenizer.eos_token_id)
    final = validation_loss(model, validation, args.batch_size, tokenizer.eos_token_id)
    given = answers(model, tokenizer, validation_rows, args.max_tokens)
    majority = collections.Counter(row["completion"] for row in train_rows).most_common(1)[0][0]
    line = "\t".join(map(str, (
        "peft", f"epochs={args.epochs} lr={args.learning_rate:g} batch={args.batch_size} r={args.rank} "
        f"alpha={args.alpha:g} seed={args.seed} steps={steps}", f"validation_loss={final:.4f}",
        f"majority={sum(r['completion'] == majority for r in validation_rows) / len(validation_rows):.2f}",
        f"naive_bayes={naive_bayes(train_rows, validation_rows):.2f}",
        f"tuned={accuracy(given, validation_rows):.2f}", f"tokens_per_second={speed:.0f}")))
    print(line)
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
