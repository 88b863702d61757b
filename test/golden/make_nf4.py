#!/usr/bin/env python3
"""What bitsandbytes makes of matrices in NF4 with double quantisation, and what PyTorch and PEFT learn over such a base.

    python test/golden/make_nf4.py test/golden/nf4

Needs torch, transformers, peft, gguf, safetensors, bitsandbytes. Writes

    matrices.safetensors     NAME.weight, and of it .codes, .absmax, .group, .offset, .values; and map
    base.gguf, adapter/      a tiny random Llama in BF16 without vocabulary, and a PEFT adapter with random A and B
    expected.safetensors     over the base whose blocks' matrices are dequantised NF4: logits, loss, gradient.NAME,
                             losses and norms of ten optimizer steps, and after.NAME, the adapter at their end
    documents.json           the rows of these

The scales of blocks are quantised by bitsandbytes' implementation in PyTorch, which is that of its kernel for GPUs:
its kernel for CPUs rounds them to bf16 first. Codes and values are those of the kernels for CPUs. References of
training are computed in f64.
"""

import json
import os
import shutil
import sys

import bitsandbytes.functional as bnb
import gguf
import numpy
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from make_tiny_llama import (CLIP, STEPS, WEIGHT_DECAY, adapt, forward, make_documents, randomise, short_name,
                             write_gguf)

VOCABULARY, RANK = 29, 2
LEARNING_RATE = 2e-3
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-6, "attn_implementation": "eager", "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}


class BF16Writer(gguf.GGUFWriter):
    """Writes matrices in BF16, of which their values are."""

    def add_tensor(self, name, tensor, *arguments, **more):
        if tensor.ndim == 2:
            tensor = (tensor.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)
            more["raw_dtype"] = gguf.GGMLQuantizationType.BF16
        super().add_tensor(name, tensor, *arguments, **more)


def quantise_scales(scales, code):
    """functional.quantize_blockwise by the implementation in PyTorch."""
    operator = torch.ops.bitsandbytes.quantize_blockwise.default
    return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, scales, code, 256)


def quantise(weight):
    """functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")"""
    codes, plain = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    scales, code = plain.absmax, bnb.create_dynamic_map()
    offset = scales.mean()
    absmax, group = quantise_scales(scales - offset, code)
    inner = bnb.QuantState(absmax=group, code=code, blocksize=256, dtype=torch.float32)
    outer = bnb.QuantState(absmax=absmax, shape=weight.shape, dtype=torch.float32, blocksize=64, code=plain.code,
                           quant_type="nf4", offset=offset, state2=inner)
    return {"codes": codes.reshape(-1), "absmax": absmax, "group": group, "offset": offset.reshape(1),
            "values": bnb.dequantize_4bit(codes, outer).reshape(weight.shape)}


def make_matrices(path):
    torch.manual_seed(7)
    sizes = 0.5 + torch.rand(264, 1)
    matrices = {"bf16": (torch.randn(264, 64) * 0.04 * sizes).bfloat16(),
                "f16": (torch.randn(6, 128) * 0.3).half(),
                "f32": torch.randn(3, 192) * 10}
    matrices["f32"][1, 64:128] = 0
    matrices["f32"][2, :64] = torch.linspace(-1, 1, 64)
    tensors = {"map": bnb.create_dynamic_map()}
    for name, weight in matrices.items():
        tensors[name + ".weight"] = weight
        for part, value in quantise(weight).items():
            tensors[f"{name}.{part}"] = value.contiguous()
    save_file(tensors, path)


def make_base():
    torch.manual_seed(11)
    base = randomise(LlamaForCausalLM(LlamaConfig(**SIZES)))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return base


def dequantise_blocks(base):
    with torch.no_grad():
        for name, parameter in base.model.layers.named_parameters():
            if name.endswith("proj.weight"):
                parameter.copy_(quantise(parameter.bfloat16())["values"])


def train(model, documents):
    parameters = {short_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    loss, logits = forward(model, documents)
    loss.backward()
    expected = {"logits": logits, "loss": loss.reshape(1)}
    for name, parameter in parameters.items():
        expected["gradient." + name] = parameter.grad.clone()
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = forward(model, documents)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP))
        optimizer.step()
        losses.append(loss)
    expected["losses"] = torch.stack(losses)
    expected["norms"] = torch.stack(norms)
    for name, parameter in parameters.items():
        expected["after." + name] = parameter
    return {n: v.detach().float().contiguous() for n, v in expected.items()}


def main():
    folder = sys.argv[1]
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    make_matrices(os.path.join(folder, "matrices.safetensors"))
    documents = make_documents(VOCABULARY)
    with open(os.path.join(folder, "documents.json"), "w", encoding="utf-8") as file:
        json.dump(documents, file)
        file.write("\n")
    base = make_base()
    gguf.GGUFWriter = BF16Writer
    write_gguf(base, os.path.join(folder, "base.gguf"), vocabulary=False)
    dequantise_blocks(base)
    model = adapt(base, folder, RANK)
    model.double()
    save_file(train(model, documents), os.path.join(folder, "expected.safetensors"))


if __name__ == "__main__":
    main()
