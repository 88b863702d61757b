#!/usr/bin/env python3
"""What PEFT with its customary settings makes of the rows that quality.sh gives it.

    python bench/quality_peft.py --gguf MODEL --data DIR --epochs N --seed N

Needs torch, transformers, peft and gguf.  DIR has train.jsonl and validation.jsonl, rows with prompt and
completion.  The base is the GGUF file, dequantised to f32.  LoRA of rank 16 and alpha 32 with dropout 0.05 on
every linear layer, AdamW at 2e-4 with 3 % of warm-up and a cosine, gradients clipped at 1.0, batches of 8 rows,
the loss over the completions alone.  Prints the share of validation rows whose greedy answer is the completion,
end token included, a tab, and the validation loss.
"""

import argparse
import os
import random
import sys

import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "golden"))
from reference import encode, evaluate, load_base, rate, read_rows, take_step  # noqa: E402

RANK, ALPHA, DROPOUT = 16, 32, 0.05
LEARNING_RATE = 2e-4
BATCH_ROWS = 8
EVALUATION_TOKENS = 512


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--data", required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def steps(rows, epochs, seed):
    """The rows of each optimizer step: every epoch in another order."""
    order = random.Random(seed)
    for _ in range(epochs):
        shuffled = order.sample(rows, len(rows))
        for i in range(0, len(rows), BATCH_ROWS):
            yield shuffled[i:i + BATCH_ROWS]


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer, model = load_base(args.gguf)
    train, validation = ([encode(tokenizer, row) for row in read_rows(os.path.join(args.data, f"{part}.jsonl"))]
                         for part in ("train", "validation"))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT,
                                             target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    plan = list(steps(train, args.epochs, args.seed))
    for step, batch in enumerate(plan, 1):
        loss, norm = take_step(model, optimizer, parameters, batch, LEARNING_RATE * rate(step, len(plan)), 1.0,
                               tokenizer.eos_token_id)
        print(f"step {step}/{len(plan)} loss {loss:.4f} norm {norm:.3f}", file=sys.stderr, flush=True)
    loss, exact = evaluate(model, validation, EVALUATION_TOKENS, tokenizer.eos_token_id)
    print(f"{exact:.4f}\t{loss:.4f}")


if __name__ == "__main__":
    main()
