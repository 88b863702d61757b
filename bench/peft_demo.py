#!/usr/bin/env python3
"""What PEFT reaches on the demo's rows with the demo's options.

    bench/export_demo_data.sh DIR
    python bench/peft_demo.py --data DIR --gguf cache/SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch, transformers, peft and gguf.  The base is the same file, dequantised to f32; rows are
rendered by the file's own chat template, the loss is taken at the completion and its end token only,
and an optimizer step's loss is the mean over its trained tokens.  The order of the rows, their division
into steps and the first values of the adapter are drawn as the engine draws them (test/golden/reference.py),
so that chance decides nothing between the two.  Accuracy is exact match under greedy decoding.  The last
line is the result; --out adds it to a file.
"""

import argparse
import collections
import math
import os
import re
import sys
import time

import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "golden"))
from reference import (encode, epoch_steps, evaluate, load_base, pad, prompt_ids, rate, read_rows,  # noqa: E402
                       set_first_values, take_step)


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
    step, tokens, started = 0, 0, time.monotonic()
    for epoch, steps in enumerate(plan):
        for batch in steps:
            step += 1
            share = rate(step, total, "cosine", args.warmup_ratio, args.min_lr_ratio)
            loss, norm = take_step(model, optimizer, parameters, batch, args.learning_rate * share,
                                   args.max_grad_norm, pad_id)
            tokens += sum(len(row[0]) for row in batch)
            print(f"step {step}/{total} loss {loss:.4f} norm {norm:.3f} "
                  f"{tokens / (time.monotonic() - started):.0f} tokens/s", flush=True)
            if step == args.max_steps:
                return step, tokens / (time.monotonic() - started)
        print(f"epoch {epoch + 1} validation_loss {evaluate(model, validation, args.batch_size, pad_id)[0]:.4f}",
              flush=True)
    return step, tokens / (time.monotonic() - started)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_rows = read_rows(os.path.join(args.data, "train.jsonl"))
    validation_rows = read_rows(os.path.join(args.data, "validation.jsonl"))
    print(f"naive Bayes {naive_bayes(train_rows, validation_rows):.2f}", flush=True)

    tokenizer, model = load_base(args.gguf)
    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0,
                                             target_modules="all-linear", task_type="CAUSAL_LM"))
    set_first_values(model, args.seed)
    rows = [encode(tokenizer, row) for row in train_rows]
    validation = [encode(tokenizer, row) for row in validation_rows]
    print(f"{sum(len(r[0]) for r in rows)} tokens an epoch, {sum(len(r[0]) - r[1] for r in rows)} of them trained",
          flush=True)

    steps, speed = train(model, rows, validation, args, tokenizer.eos_token_id)
    final, _ = evaluate(model, validation, args.batch_size, tokenizer.eos_token_id)
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
