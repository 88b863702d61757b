#!/usr/bin/env python3
"""Judge an adapter that `train` made: PEFT loads it over the same base and gives the same logits.

    make engine
    cc -D_GNU_SOURCE -Isrc/engine -o build/print_logits test/golden/print_logits.c build/libengine.a \
        -lcrypto -levent -levent_pthreads -ljansson -lpcre2-8 -lutf8proc -lm -ldl -lpthread
    python test/golden/check_peft.py cache/SmolLM2-135M-Instruct.Q4_1.gguf JOBDIR/adapter validation.jsonl

Needs torch, transformers, peft, gguf. For some prompts of the JSONL file it prints the largest difference
of a logit, relative to the largest logit, between PEFT and the engine's training pass and serving path.
"""

import json
import os
import subprocess
import sys

import numpy
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-3


def main():
    base, adapter, rows = sys.argv[1:4]
    folder, name = os.path.split(base)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    worst = 0.0
    with open(rows, encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file][:8]
    for prompt in prompts:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                             add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
        printed = subprocess.run(["build/print_logits", base, adapter, *map(str, ids)], check=True,
                                 stdout=subprocess.PIPE).stdout
        training, serving = numpy.frombuffer(printed, dtype=numpy.float32).reshape(2, -1)
        errors = [float(abs(logits - expected).max() / abs(expected).max()) for logits in (training, serving)]
        print(f"{len(ids)} tokens: training pass {errors[0]:.2e}, serving path {errors[1]:.2e}")
        worst = max(worst, *errors)
    print(f"worst {worst:.2e}, {'within' if worst < TOLERANCE else 'OVER'} {TOLERANCE:g}")
    sys.exit(worst >= TOLERANCE)


if __name__ == "__main__":
    main()
