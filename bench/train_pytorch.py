#!/usr/bin/env python3
"""How fast PyTorch and PEFT train the rows of bench_train.

    python bench/train_pytorch.py

Needs torch, transformers, peft and gguf.  LoRA of rank 16 on every linear layer of the same file,
dequantised; optimizer steps over 32 documents of 64 tokens of which the last 16 are trained.  The loss
is taken at trained positions only, and no row is padded.  f32 and bf16 are tried, and the better one
is printed: "metric<TAB>value<TAB>unit".  The C library is told to keep the memory that it has (torch
gives it back at every step otherwise, which costs half of the time), unless the environment does.
"""

import argparse
import os
import sys
import time

TUNED = {"MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000000",
         "MALLOC_TOP_PAD_": "268435456"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default="cache/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--document", type=int, default=64)
    parser.add_argument("--trained", type=int, default=16, help="tokens of a document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def step(torch, model, optimizer, ids, targets, trained):
    hidden = model.base_model.model.model(input_ids=ids).last_hidden_state[:, -trained - 1:-1]
    logits = model.base_model.model.lm_head(hidden).float()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def measure(arguments, dtype):
    """Tokens a second, the median round."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    folder, name = os.path.split(os.path.abspath(arguments.gguf))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).to(dtype)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
    ids = (1000 + torch.arange(arguments.tokens) * 7919 % 40000).view(-1, arguments.document)
    targets = ids[:, -arguments.trained:]
    times = []
    for round in range(arguments.rounds + 1):
        begin = time.perf_counter()
        step(torch, model, optimizer, ids, targets, arguments.trained)
        if round > 0:
            times.append(time.perf_counter() - begin)
    return arguments.tokens / sorted(times)[len(times) // 2]


def main():
    arguments = parse_arguments()
    if not all(name in os.environ for name in TUNED):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**TUNED, **os.environ})
    import peft
    import torch

    rates = {name: measure(arguments, dtype) for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))}
    best = max(rates, key=rates.get)
    print(f"torch {torch.__version__}, peft {peft.__version__}: "
          + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()), file=sys.stderr)
    print(f"pytorch/train_lora\t{rates[best]:.1f}\ttokens/s")


if __name__ == "__main__":
    main()
