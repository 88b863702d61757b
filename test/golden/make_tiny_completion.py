#!/usr/bin/env python3
"""What PEFT answers, greedily, with the adapter of tiny_llama/tied over its base.

    python test/golden/make_tiny_completion.py test/golden/tiny_llama

Needs torch, transformers, peft, gguf. Looks for prompts that the adapter answers otherwise than the base, in
printable ASCII, the first choice being clear at each token, and writes them to completions.json.
"""

import itertools
import json
import os
import string
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from make_tiny_llama import SPECIAL

LENGTH, WANTED, MARGIN = 3, 3, 0.02


def encode(text):
    """Bytes, each a token: prompts here hold no "th", which is all that the vocabulary merges."""
    return [len(SPECIAL) + byte for byte in text.encode()]


def chat(prompt):
    return [1, *encode("user\n" + prompt), 2, *encode("\n"), 1, *encode("assistant\n")]


def answer(model, prompt):
    """The text of LENGTH tokens, or None when one is no printable ASCII or a close call."""
    ids = chat(prompt)
    text = ""
    for _ in range(LENGTH):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        best = torch.topk(logits, 2)
        token = int(best.indices[0])
        byte = token - len(SPECIAL)
        if not 32 <= byte < 127 or best.values[0] - best.values[1] < MARGIN:
            return None
        text += chr(byte)
        ids.append(token)
    return text


def main():
    folder = sys.argv[1]
    base = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "tied"), gguf_file="base.gguf",
                                                dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, os.path.join(folder, "tied", "adapter")).eval()
    found = []
    for letters in itertools.product(string.ascii_lowercase, repeat=2):
        prompt = "".join(letters)
        tuned = answer(model, prompt)
        if tuned is None:
            continue
        with model.disable_adapter():
            untuned = answer(model, prompt)
        if untuned != tuned and tuned not in [other["answer"] for other in found]:
            found.append({"prompt": prompt, "answer": tuned})
        if len(found) == WANTED:
            break
    with open(os.path.join(folder, "completions.json"), "w", encoding="utf-8") as file:
        json.dump({"max_tokens": LENGTH, "completions": found}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
