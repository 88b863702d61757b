#!/usr/bin/env python3
"""Write curves/NAME.tsv: loss and gradient norm of the first steps of training, by PEFT and transformers.

    python test/golden/make_curves.py cache/SmolLM2-135M-Instruct.Q4_1.gguf test/golden/curves [NAME…]

Needs torch, transformers, peft and gguf.  curves/rows.jsonl has the rows: settings of PostgreSQL and their
categories (PostgreSQL License).  The base is the GGUF file, dequantised to f32; all arithmetic is in f32.  Order
of the rows, steps and the adapter's first values are by the engine's rules (reference.py).  A file says with which
options, by the names of job.json, it was made.  Without names every curve is made.
"""

import hashlib
import json
import os
import sys

import peft
import torch
import transformers

import reference

COMMON = {
    "max_steps": 100,
    "batch_size": 160,
    "seed": 7,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "min_lr_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
LORA = {**COMMON, "method": "lora", "lora_target_modules": "all-linear", "use_rslora": False}
Q_V = {**LORA, "lora_target_modules": ["q_proj", "v_proj"]}
CURVES = {
    "lora_r8": {**LORA, "lora_r": 8, "lora_alpha": 16, "learning_rate": 1e-3},
    "lora_r16": {**LORA, "lora_r": 16, "lora_alpha": 32, "learning_rate": 1e-3},
    "lora_r64": {**LORA, "lora_r": 64, "lora_alpha": 128, "learning_rate": 3e-4, "weight_decay": 0.01},
    "lora_r8_qv": {**Q_V, "lora_r": 8, "lora_alpha": 16, "learning_rate": 1e-3, "lr_scheduler": "linear"},
    "lora_r16_qv": {**Q_V, "lora_r": 16, "lora_alpha": 32, "learning_rate": 5e-4, "min_lr_ratio": 0.1},
    "lora_r64_qv": {**Q_V, "lora_r": 64, "lora_alpha": 128, "learning_rate": 3e-4, "lr_scheduler": "constant"},
    "lora_rslora": {**LORA, "lora_r": 16, "lora_alpha": 16, "use_rslora": True, "learning_rate": 2e-4},
    "full": {**COMMON, "method": "full", "learning_rate": 2e-5},
}


def adapted(model, options):
    """The model with what is trained: a new adapter, or all of itself."""
    if options["method"] == "full":
        return model.requires_grad_(True)
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=options["lora_r"], lora_alpha=options["lora_alpha"], lora_dropout=0.0,
        target_modules=options["lora_target_modules"], use_rslora=options["use_rslora"], task_type="CAUSAL_LM"))
    reference.set_first_values(model, options["seed"])
    return model


def steps(rows, options):
    """The rows of each step, epoch after epoch."""
    epoch = 0
    while True:
        yield from reference.epoch_steps(rows, options["seed"], epoch, options["batch_size"])
        epoch += 1


def curve(gguf, data, options):
    """(loss, gradient norm) of each step."""
    tokenizer, model = reference.load_base(gguf)
    rows = [reference.encode(tokenizer, row) for row in data]
    model = adapted(model, options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in parameters)} parameters, {sum(len(row[0]) for row in rows)} tokens an epoch")
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=options["weight_decay"])
    total = options["max_steps"]
    for step, batch in zip(range(1, total + 1), steps(rows, options)):
        share = reference.rate(step, total, options["lr_scheduler"], options["warmup_ratio"], options["min_lr_ratio"])
        yield reference.take_step(model, optimizer, parameters, batch, options["learning_rate"] * share,
                                  options["max_grad_norm"], tokenizer.eos_token_id)


def main():
    gguf, folder, *names = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    data = reference.read_rows(os.path.join(folder, "rows.jsonl"))
    with open(gguf, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    for name in names or CURVES:
        options = CURVES[name]
        lines = [f"# make_curves.py: {os.path.basename(gguf)} {digest}",
                 f"# torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, "
                 f"peft {peft.__version__}",
                 f"# {json.dumps(options)}", "step\tloss\tgrad_norm"]
        for step, (loss, norm) in enumerate(curve(gguf, data, options), 1):
            lines.append(f"{step}\t{loss:.6g}\t{norm:.6g}")
            print(name, lines[-1], flush=True)
        with open(os.path.join(folder, f"{name}.tsv"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
