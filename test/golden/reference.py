"""What the scripts that train with PEFT and transformers share: the base, rows as tokens, and the engine's
own rules for whatever chance decides, so that it decides nothing between the two.

The rules are those of src/engine: random numbers are a function of seed, stream and counter (random.h); they
give the order of the rows and their division into optimizer steps (packing.c) and an adapter's first values
(adapter.c).  The learning rate is schedule.c's.
"""

import json
import math
import os
import re

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STREAM_LORA_INIT = 2 << 32
STREAM_EPOCH = 4 << 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# --- chance ---


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


# --- steps ---


def rate(step, total, scheduler="cosine", warmup_ratio=0.03, min_lr_ratio=0.0):
    """The share of the learning rate that step `step`, from 1, has."""
    warmup = math.ceil(warmup_ratio * total)
    if step <= warmup:
        return step / warmup
    share = (step - 1 - warmup) / (total - warmup)
    if scheduler == "constant":
        return 1.0
    falling = 1 - share if scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return min_lr_ratio + (1 - min_lr_ratio) * falling


def take_step(model, optimizer, parameters, batch, learning_rate, max_grad_norm, pad_id):
    """One optimizer step; its loss, the mean over the trained tokens, and the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    value, count = loss_sum(model, batch, pad_id)
    loss = value / count
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


# --- the base, and rows as tokens ---


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_base(gguf):
    """Tokenizer and model of a GGUF file, dequantised to f32."""
    folder, name = os.path.split(os.path.abspath(gguf))
    return (AutoTokenizer.from_pretrained(folder, gguf_file=name),
            AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32))


def prompt_ids(tokenizer, row):
    text = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=False,
                                         add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def encode(tokenizer, row):
    """Ids of a row and the position where its completion begins."""
    head = prompt_ids(tokenizer, row)
    tail = tokenizer(row["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return head + tail, len(head)


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


def trained_logits(model, batch, pad_id):
    """Logits at the trained tokens of a batch, their labels, and the row that each belongs to.

    The head runs at those positions only: its logits over the whole batch would cost more than the rest.
    """
    ids = pad([row[0] for row in batch], pad_id)
    mask = pad([[1] * len(row[0]) for row in batch], 0)
    labels = pad([[-100] * row[1] + row[0][row[1]:] for row in batch], -100)[:, 1:]
    llama = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = llama.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    chosen = labels != -100
    return llama.lm_head(hidden[chosen]).float(), labels[chosen], chosen.nonzero()[:, 0]


def loss_sum(model, batch, pad_id):
    """Sum of the losses at the trained tokens of a batch, and their number."""
    logits, labels, _ = trained_logits(model, batch, pad_id)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


@torch.no_grad()
def evaluate(model, rows, budget, pad_id):
    """Mean loss over the trained tokens of the rows, and the share of rows of which each is the most likely one."""
    model.eval()
    total, count, exact = 0.0, 0, 0
    for batch in batches(rows, budget):
        logits, labels, owner = trained_logits(model, batch, pad_id)
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
        wrong = owner[logits.argmax(-1) != labels]
        exact += len(batch) - len(set(wrong.tolist()))
    model.train()
    return total / count, exact / len(rows)
