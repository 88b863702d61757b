#!/usr/bin/env python3
"""Ten steps in which PyTorch trains all weights of the tiny Llama models of make_tiny_llama.py.

    python test/golden/make_tiny_full.py test/golden/tiny_llama test/golden/tiny_full

Needs what that script needs. Writes, for tied and untied embeddings, what the weights have become, and the losses and
gradient norms of the steps. As transformers' Trainer does, weight decay spares norms and biases. References are
computed in f64, a document at a time.
"""

import os
import sys

import torch
from safetensors.torch import save_file

import make_tiny_llama as tiny

STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 10, 3e-3, 0.1, 1.0


def make(directory, tied, documents):
    model = tiny.make_base(tied, 3 if tied else 4).double()
    parameters = dict(model.named_parameters())
    decayed = {n: p for n, p in parameters.items() if "norm" not in n and not n.endswith("bias")}
    spared = {n: p for n, p in parameters.items() if n not in decayed}
    optimizer = torch.optim.AdamW([{"params": decayed.values(), "weight_decay": WEIGHT_DECAY},
                                   {"params": spared.values(), "weight_decay": 0.0}], lr=LEARNING_RATE)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = tiny.forward(model, documents)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP))
        optimizer.step()
        losses.append(loss)
    expected = {**parameters, "losses": torch.stack(losses), "norms": torch.stack(norms)}
    save_file({n: v.detach().float().contiguous() for n, v in expected.items()},
              os.path.join(directory, ("tied" if tied else "untied") + ".safetensors"))


def main():
    bases, directory = sys.argv[1:]
    os.makedirs(directory, exist_ok=True)
    documents = tiny.make_documents()
    with open(os.path.join(bases, "documents.json"), encoding="utf-8") as file:
        assert tiny.json.load(file) == documents
    for tied in (True, False):
        make(directory, tied, documents)


if __name__ == "__main__":
    main()
