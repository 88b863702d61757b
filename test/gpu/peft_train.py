#!/usr/bin/env python3
"""Training tokens/s of transformers + PEFT on a model of SmolLM2-135M's shape: peft_train.py [LAYERS].

The shapes of bench/bench_train.c: LoRA of rank 16 on every linear layer, AdamW, batches of documents of 64
tokens. Weights are random: speed does not depend on them. bf16 throughout, scaled-dot-product attention.
"""

import statistics
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

DOCUMENT = 64
ROUNDS = 9


def measure(model, tokens):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    rows = max(tokens // DOCUMENT, 1)
    ids = torch.randint(1000, 41000, (rows, DOCUMENT), device="cuda")
    labels = ids.clone()
    labels[:, : DOCUMENT - 10] = -100
    times = []
    for i in range(ROUNDS + 2):
        torch.cuda.synchronize()
        begin = time.monotonic()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if i >= 2:
            times.append(time.monotonic() - begin)
    rate = rows * DOCUMENT / statistics.median(times)
    print(f"gpu_peft_train_{tokens}\t{rate:.1f}\ttokens/s", flush=True)


def main():
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
                         num_hidden_layers=int(sys.argv[1]) if len(sys.argv) > 1 else 30, vocab_size=49152,
                         max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=16, task_type="CAUSAL_LM",
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(model, lora)
    for tokens in (512, 2048, 16384):
        measure(model, tokens)
    print(f"gpu_peft_memory\t{torch.cuda.max_memory_allocated() / 2**20:.0f}\tMiB")


if __name__ == "__main__":
    main()
