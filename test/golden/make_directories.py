#!/usr/bin/env python3
"""Tiny random models as Hugging Face directories, and what transformers computes with them.

    python test/golden/make_directories.py test/golden/directories

Needs torch, transformers, tokenizers, safetensors. Each directory is written by save_pretrained, in one
file or in shards, with tied or untied embeddings, in F32, F16 or BF16; "plain" and "old" have their RoPE
in the keys of older versions, which save_pretrained no longer writes. expected.json has the ids of a text
and, by directory, a greedy answer to a chat; expected.safetensors the logits behind the last ids; computed in
f64 of the stored weights, so that rounding is the engine's own.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 20, 28, 2, 4, 2, 6, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + 2 + len(SPECIAL)
TEXT, LOGITS = "at the 12th av\u00e9nue of them", 5
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
            " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
DEFAULT = {"rope_type": "default"}
#        name, type, its own keys, tied, dtype, size of shards, RoPE, how config.json says that
MODELS = [("plain", "llama", {}, True, torch.float32, "16KB", DEFAULT, "rope_theta"),
          ("old", "llama", {}, False, torch.bfloat16, "8KB", LLAMA3, "rope_scaling"),
          ("new", "llama", {}, True, torch.bfloat16, "1GB", LLAMA3, "rope_parameters"),
          ("untied", "llama", {}, False, torch.float32, "1GB", DEFAULT, "rope_parameters"),
          ("half", "mistral", {"sliding_window": 8}, False, torch.float16, "1GB",
           {"rope_type": "linear", "factor": 2.0}, "rope_parameters"),
          ("qwen2", "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, True,
           torch.bfloat16, "1GB", DEFAULT, "rope_parameters"),
          ("qwen3", "qwen3", {}, True, torch.bfloat16, "1GB", DEFAULT, "rope_parameters"),
          ("mixtral", "mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}, False, torch.bfloat16, "16KB",
           DEFAULT, "rope_parameters")]


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in stand_in:
            stand_in[b] = chr(256 + len(stand_in) - len(plain))
    return [stand_in[b] for b in range(256)]


def make_tokenizer():
    words = SPECIAL + byte_alphabet() + ["th", "the"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>", chat_template=TEMPLATE,
                                   clean_up_tokenization_spaces=False)


def make_model(kind, own, tied, dtype, rope, seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FFN,
                                  num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
                                  head_dim=HEAD_DIM, max_position_embeddings=CONTEXT,
                                  rope_parameters={"rope_theta": 5000.0, **rope}, rms_norm_eps=1e-5,
                                  tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                                  attn_implementation="eager", **own)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0)
    return model.to(dtype)


def as_older_versions_did(folder, how):
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if how == "rope_scaling" else None
    config["torch_dtype"] = config.pop("dtype")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")


def compute(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager",
                                                 experts_implementation="eager")
    ids = tokenizer(TEXT)["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "av"}], add_generation_prompt=True,
                                         return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -LOGITS:].float().contiguous()
        answer = model.generate(**chat, max_new_tokens=8, do_sample=False)[0, chat["input_ids"].shape[1]:]
    return logits, {"chat": chat["input_ids"][0].tolist(), "answer": answer.tolist()}


def make(root, tokenizer, seed, name, kind, own, tied, dtype, shard, rope, how):
    folder = os.path.join(root, name)
    make_model(kind, own, tied, dtype, rope, seed).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    if how != "rope_parameters":
        as_older_versions_did(folder, how)
    return compute(folder, tokenizer)


def main():
    root = sys.argv[1]
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    tokenizer = make_tokenizer()
    expected, tensors = {"ids": tokenizer(TEXT)["input_ids"]}, {}
    for seed, model in enumerate(MODELS):
        tensors[model[0]], expected[model[0]] = make(root, tokenizer, seed, *model)
    save_file(tensors, os.path.join(root, "expected.safetensors"))
    with open(os.path.join(root, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file)
        file.write("\n")


if __name__ == "__main__":
    main()
