#!/usr/bin/env python3
"""What PyTorch and PEFT compute for a tiny random Llama: logits, loss, every LoRA gradient, ten steps.

    python test/golden/make_tiny_llama.py test/golden/tiny_llama

Needs torch, transformers, peft, gguf, safetensors. Writes, for tied and untied embeddings, the base as
GGUF (F32, rows of q and k interleaved as llama.cpp does), a PEFT adapter with random A and B, and
expected.safetensors; and documents.json, the rows that both were run on. References are computed in f64,
a document at a time, so that packing and f32 rounding are the engine's own.
"""

import json
import os
import shutil
import sys

import gguf
import numpy
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 36, 52, 2, 4, 2, 10, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + 2 + len(SPECIAL)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 3, 7, 10, 1e-2, 0.01, 1.0


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in stand_in:
            stand_in[b] = chr(256 + len(stand_in) - len(plain))
    return [stand_in[b] for b in range(256)]


def make_base(tied, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
                         num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                         max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
                         rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
                         tie_word_embeddings=tied, attn_implementation="eager")
    return randomise(LlamaForCausalLM(config))


def randomise(model):
    """Values with which every parameter matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def interleave(weight, heads):
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_vocabulary(writer):
    letters = byte_alphabet()
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(SPECIAL + letters + ["th", "the"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * 258)
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


MODULES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
           "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
           "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
           "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def write_gguf(model, path, architecture="llama", vocabulary=True, rope_freqs=None):
    """A dense decoder as llama.cpp's converter writes it, in F32."""
    config = model.config
    head_dim = model.model.layers[0].self_attn.head_dim
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "llama" and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if vocabulary:
        write_vocabulary(writer)
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    if not config.tie_word_embeddings:
        writer.add_tensor("output.weight", state["lm_head.weight"])
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    for layer in range(config.num_hidden_layers):
        for module, short in MODULES.items():
            for kind in ("weight", "bias"):
                value = state.get(f"model.layers.{layer}.{module}.{kind}")
                if value is None:
                    continue
                if architecture == "llama" and short == "attn_q":
                    value = interleave(value, config.num_attention_heads)
                if architecture == "llama" and short == "attn_k":
                    value = interleave(value, config.num_key_value_heads)
                writer.add_tensor(f"blk.{layer}.{short}.{kind}", numpy.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_documents(vocabulary=VOCABULARY):
    """Rows of several lengths; weights of 0 (not trained), 1, and one that is neither."""
    random = numpy.random.default_rng(5)
    documents = []
    for length, prompt in [(9, 4), (2, 1), (17, 11), (5, 0), (12, 7)]:
        ids = random.integers(0, vocabulary, length).tolist()
        weights = [0.0] * max(prompt, 1) + [1.0] * (length - max(prompt, 1))
        documents.append({"ids": ids, "weights": weights})
    documents[2]["weights"][13] = 0.25
    documents[4]["weights"][9] = 0.0
    return documents


def forward(model, documents):
    """Mean loss over all weight, and the logits at the trained positions."""
    loss, weight, rows = 0.0, 0.0, []
    for document in documents:
        ids = torch.tensor([document["ids"]])
        weights = torch.tensor(document["weights"][1:], dtype=torch.float64)
        logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        loss = loss + (losses * weights).sum()
        weight += weights.sum()
        rows.append(logits[weights > 0])
    return loss / weight, torch.cat(rows)


def adapt(base, folder, rank):
    """The base under an adapter with random A and B, which is written beside it."""
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS,
                                            task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.base_model.model.name_or_path = "tiny"
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.peft_config["default"].target_modules = sorted(TARGETS)  # the order of a set is chance
    model.save_pretrained(os.path.join(folder, "adapter"))
    os.remove(os.path.join(folder, "adapter", "README.md"))
    return model


def short_name(name):
    return name.replace(".default", "")


def make(directory, tied, documents):
    folder = os.path.join(directory, "tied" if tied else "untied")
    os.makedirs(folder, exist_ok=True)
    base = make_base(tied, 3 if tied else 4)
    write_gguf(base, os.path.join(folder, "base.gguf"))
    model = adapt(base, folder, RANK)
    model.double()
    parameters = {short_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    expected = {}
    loss, logits = forward(model, documents)
    loss.backward()
    expected["logits"] = logits
    expected["loss"] = loss.reshape(1)
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
    save_file({n: v.detach().float().contiguous() for n, v in expected.items()},
              os.path.join(folder, "expected.safetensors"))


def main():
    directory = sys.argv[1]
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    documents = make_documents()
    with open(os.path.join(directory, "documents.json"), "w", encoding="utf-8") as file:
        json.dump(documents, file)
        file.write("\n")
    for tied in (True, False):
        make(directory, tied, documents)


if __name__ == "__main__":
    main()
