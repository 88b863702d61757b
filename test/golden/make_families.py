#!/usr/bin/env python3
"""What PyTorch, transformers and PEFT compute for a tiny random model of each dense family.

    python test/golden/make_families.py test/golden/families

Needs what make_tiny_llama.py needs. Writes for each family a folder with base.gguf (F32, no vocabulary), a PEFT
adapter with random A and B, and expected.safetensors:

    logits, base_logits        at every position of every document, with the adapter and without
    loss, base_loss            weighted mean over the documents
    gradient.NAME              of loss, for A and B of every module
    weight_gradient.NAME       of base_loss, for every weight of the base

documents.json are the rows that all were run on. long/ is a Llama 3.1 read far beyond its original context; its
text follows from a formula (long_text). References are computed in f64, a document at a time.
"""

import json
import math
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

from make_tiny_llama import adapt, make_documents, randomise, short_name, write_gguf

VOCABULARY, RANK = 29, 2
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-6, "attn_implementation": "eager"}
# the width of a head follows from the others
QWEN2_SIZES = {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4}
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
# every band of wavelengths within a text of 17 tokens
SCALED = {"rope_type": "llama3", "rope_theta": 30.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
WINDOW, WINDOW_FROM = 5, 1

FAMILIES = {
    "llama": ("llama", LlamaForCausalLM, LlamaConfig, {**SIZES, "rope_parameters": SCALED,
                                                      "tie_word_embeddings": True}),
    "mistral": ("llama", MistralForCausalLM, MistralConfig, {**SIZES, "rope_parameters": PLAIN,
                                                            "sliding_window": WINDOW, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", Qwen2ForCausalLM, Qwen2Config, {**QWEN2_SIZES, "rope_parameters": PLAIN,
                                                      "tie_word_embeddings": False}),
    "qwen2_tied": ("qwen2", Qwen2ForCausalLM, Qwen2Config, {**QWEN2_SIZES, "rope_parameters": PLAIN,
                                                           "tie_word_embeddings": True}),
    "qwen3": ("qwen3", Qwen3ForCausalLM, Qwen3Config, {**SIZES, "rope_parameters": PLAIN,
                                                      "tie_word_embeddings": False}),
    "qwen3_tied": ("qwen3", Qwen3ForCausalLM, Qwen3Config, {**SIZES, "rope_parameters": PLAIN,
                                                           "tie_word_embeddings": True}),
}

LONG_SIZES = {**SIZES, "vocab_size": 32, "hidden_size": 8, "intermediate_size": 10, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 131072,
              "attn_implementation": "sdpa", "tie_word_embeddings": True}
LONG_TEXT, LONG_TRAINED = 8400, 40
LLAMA31 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_factors(config):
    """What a GGUF file brings instead of the scaling's parameters: divisors of the plain frequencies."""
    scaling = config.rope_parameters
    if scaling["rope_type"] != "llama3":
        return None
    factors = []
    for i in range(config.head_dim // 2):
        wavelength = 2 * math.pi * scaling["rope_theta"] ** (2 * i / config.head_dim)
        turns = scaling["original_max_position_embeddings"] / wavelength
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - share) / scaling["factor"] + share))
    assert 1.0 in factors and scaling["factor"] in factors and any(1 < f < scaling["factor"] for f in factors)
    return torch.tensor(factors, dtype=torch.float32).numpy()


def forward(model, documents):
    """Mean loss over all weight, and the logits at every position."""
    loss, weight, rows = 0.0, 0.0, []
    for document in documents:
        ids = torch.tensor([document["ids"]])
        weights = torch.tensor(document["weights"][1:], dtype=torch.float64)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        loss = loss + (losses * weights).sum()
        weight += weights.sum()
        rows.append(logits)
    return loss / weight, torch.cat(rows)


def gradients(model):
    return {short_name(name): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def save(expected, path):
    save_file({n: v.detach().float().contiguous() for n, v in expected.items()}, path)


def make(folder, name, documents):
    architecture, model_class, config_class, settings = FAMILIES[name]
    os.makedirs(folder)
    torch.manual_seed(list(FAMILIES).index(name))
    base = randomise(model_class(config_class(**settings)))
    write_gguf(base, os.path.join(folder, "base.gguf"), architecture, vocabulary=False,
               rope_freqs=rope_factors(base.config))
    expected = {}
    base.double()
    loss, expected["base_logits"] = forward(base, documents)
    loss.backward()
    expected["base_loss"] = loss.reshape(1)
    for weight, gradient in gradients(base).items():
        expected["weight_gradient." + weight] = gradient
    base.zero_grad(set_to_none=True)
    base.float()
    model = adapt(base, folder, RANK)
    model.double()
    loss, expected["logits"] = forward(model, documents)
    loss.backward()
    expected["loss"] = loss.reshape(1)
    for weight, gradient in gradients(model).items():
        expected["gradient." + weight] = gradient
    save(expected, os.path.join(folder, "expected.safetensors"))
    if name == "qwen2":
        make_windowed(base, settings, documents, folder)


def make_windowed(base, settings, documents, folder):
    """The same adapted weights with a window in the later layers only, which GGUF cannot say."""
    config = Qwen2Config(**settings, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=WINDOW_FROM)
    windowed = Qwen2ForCausalLM(config)
    state = {n.replace(".base_layer", ""): v for n, v in base.state_dict().items() if "lora_" not in n}
    windowed.load_state_dict(state)
    windowed.double()
    loss, logits = forward(windowed, documents)
    loss.backward()
    expected = {"base_logits": logits, "base_loss": loss.reshape(1)}
    for weight, gradient in gradients(windowed).items():
        if "q_proj" in weight:
            expected["weight_gradient." + weight] = gradient
    save(expected, os.path.join(folder, "window.safetensors"))


def long_text():
    ids, x = [], 1
    for _ in range(LONG_TEXT):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        ids.append((x >> 16) % LONG_SIZES["vocab_size"])
    return ids


def make_long(folder):
    """base.gguf has the scaling as GGUF files have it, plain.gguf none; the last tokens are trained."""
    os.makedirs(folder)
    torch.manual_seed(31)
    base = randomise(LlamaForCausalLM(LlamaConfig(**LONG_SIZES, rope_parameters=LLAMA31)))
    write_gguf(base, os.path.join(folder, "base.gguf"), vocabulary=False, rope_freqs=rope_factors(base.config))
    write_gguf(base, os.path.join(folder, "plain.gguf"), vocabulary=False)
    base.double()
    weights = [0.0] * (LONG_TEXT - LONG_TRAINED) + [1.0] * LONG_TRAINED
    loss, logits = forward(base, [{"ids": long_text(), "weights": weights}])
    loss.backward()
    expected = {"base_logits": logits[-LONG_TRAINED - 1:], "base_loss": loss.reshape(1)}
    for weight, gradient in gradients(base).items():
        if "q_proj" in weight or "k_proj" in weight:
            expected["weight_gradient." + weight] = gradient
    save(expected, os.path.join(folder, "expected.safetensors"))


def main():
    directory = sys.argv[1]
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    documents = make_documents(VOCABULARY)
    with open(os.path.join(directory, "documents.json"), "w", encoding="utf-8") as file:
        json.dump(documents, file)
        file.write("\n")
    for name in FAMILIES:
        make(os.path.join(directory, name), name, documents)
    make_long(os.path.join(directory, "long"))


if __name__ == "__main__":
    main()
