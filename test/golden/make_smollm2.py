#!/usr/bin/env python3
"""Write smollm2_greedy.json and smollm2_logits.json: what transformers says for the real model.

    python test/golden/make_smollm2.py cache/SmolLM2-135M-Instruct.Q4_1.gguf test/golden

Needs torch, transformers, gguf and numpy.  The GGUF file is loaded by transformers itself, which
dequantises it and undoes the permutation of q and k; both are checked here against the gguf package's
own dequantisation before anything is written.  All arithmetic is in f32 on the CPU.
"""

import hashlib
import json
import os
import sys

import gguf
import numpy
import torch
import transformers

PROMPTS = [
    "What is the capital of France, and what is it known for?",
    "Write a short poem about a database that remembers everything.",
    "Explain in simple terms how a vacuum cleaner works.",
    "def fibonacci(n):",
    "Translate to German: The weather is nice today, and we go for a walk in the park.",
]
NEW_TOKENS = 200
TOP = 64


def unpermute(weight, heads):
    """Rows of q and k as Hugging Face orders them: the inverse of convert_hf_to_gguf.py's permute."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, rows // heads // 2, 2, weight.shape[1])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def check_weights(path, model):
    """Every tensor of the model equals the file's, dequantised by the gguf package."""
    state = model.state_dict()
    config = model.config
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    checked = 0
    for tensor in gguf.GGUFReader(path).tensors:
        name = names.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.weight"
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if name.endswith("q_proj.weight"):
            values = unpermute(values, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            values = unpermute(values, config.num_key_value_heads)
        loaded = state[name].numpy()
        if not numpy.array_equal(loaded.reshape(values.shape), values):
            sys.exit(f"{name}: transformers loaded other values than the file's")
        checked += 1
    wanted = len(state) - (1 if config.tie_word_embeddings else 0)
    if checked != wanted:
        sys.exit(f"{checked} tensors in the file, {wanted} in the model")
    return checked


def main():
    path, out = sys.argv[1], sys.argv[2]
    torch.set_num_threads(1)  # the order of sums is then fixed
    torch.set_grad_enabled(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        os.path.dirname(path), gguf_file=os.path.basename(path)
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.dirname(path),
        gguf_file=os.path.basename(path),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    print(model.config)
    print(check_weights(path, model), "tensors are the file's")

    with open(path, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    about = {
        "made_by": "test/golden/make_smollm2.py",
        "file": os.path.basename(path),
        "sha256": digest,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    greedy = []
    logits = []
    for text in PROMPTS:
        # the model's own chat template, written out so that this file depends on no other
        chat = (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
            f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt = tokenizer(chat, add_special_tokens=False)["input_ids"]
        ids = list(prompt)
        past = None
        rows = []
        margin = float("inf")
        for _ in range(NEW_TOKENS):
            step = torch.tensor([ids if past is None else ids[-1:]])
            reply = model(step, past_key_values=past, use_cache=True)
            past = reply.past_key_values
            row = reply.logits[0, -1]
            best = torch.topk(row, 2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            rows.append(row.numpy())
            ids.append(int(row.argmax()))
        greedy.append({"prompt": text, "prompt_ids": prompt, "tokens": ids[len(prompt):]})
        print(len(prompt), "tokens of prompt; smallest margin of a greedy choice", margin, flush=True)
        # the whole sequence at once is the reference for logits: no cache, one product a matrix
        whole = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        positions = sorted({0, 1, len(prompt) // 2, len(prompt) - 1, len(prompt) + 50, len(ids) - 2})
        for position in positions:
            row = whole[position]
            top = numpy.argsort(-row, kind="stable")[:TOP]
            every = list(range(0, len(row), len(row) // 128))
            logits.append(
                {
                    "prompt": len(greedy) - 1,
                    "position": position,
                    "top_ids": top.tolist(),
                    "top": [float(f"{row[i]:.7g}") for i in top],
                    "every_ids": every,
                    "every": [float(f"{row[i]:.7g}") for i in every],
                    "rms": float(numpy.sqrt((row.astype(numpy.float64) ** 2).mean())),
                    "sum": float(row.astype(numpy.float64).sum()),
                }
            )
        print("cached against whole:", numpy.abs(whole[len(prompt) - 1:-1] - numpy.stack(rows)).max())

    for name, key, value in (
        ("smollm2_greedy.json", "prompts", greedy),
        ("smollm2_logits.json", "rows", logits),
    ):
        with open(os.path.join(out, name), "w") as f:
            f.write(json.dumps({**about, key: value}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
