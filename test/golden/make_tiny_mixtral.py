#!/usr/bin/env python3
"""What transformers, PyTorch and PEFT compute for a tiny random Mixtral: logits, LoRA gradients, ten steps.

    python test/golden/make_tiny_mixtral.py test/golden/tiny_mixtral

Needs torch, transformers, peft, gguf, safetensors, and the documents of tiny_llama. Writes two models of five
experts, two for a token: "plain" (untied, experts stacked as llama.cpp does today) and "window" (tied, a
sliding window shorter than the documents, a tensor for each expert as in older files): the base as GGUF, a
PEFT adapter on the attention's projections with random A and B, and expected.safetensors (of "plain" with the
gradients of router, experts and the norm before them). References are computed in f64, a document at a time.

The router's rows of experts TWIN are equal, so their probabilities tie exactly. torch.topk says nothing of
ties, and its choice changes with device and size; here the lower expert wins, as in the engine. That some token
has the tie between its last chosen expert and the next one is asserted, and that no other token is near one.
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
from transformers import MixtralConfig, MixtralForCausalLM

from make_tiny_llama import SPECIAL, VOCABULARY, byte_alphabet, forward, interleave, short_name

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT, WINDOW = 28, 18, 2, 4, 2, 6, 64, 6
EXPERTS, PER_TOKEN, TWIN = 5, 2, (1, 3)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANK, ALPHA, STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 3, 7, 10, 1e-2, 0.01, 1.0

torch_topk = torch.topk
ties = {"at the boundary": 0, "both chosen": 0}


def lowest_first(values, k, dim=-1, **options):
    """torch.topk with the lower index first where values are equal."""
    assert dim == -1 and not options
    order = torch.sort(values, dim=-1, descending=True, stable=True)
    edge = (order.values[..., k - 1] - order.values[..., k]).flatten().tolist()
    chosen = order.indices[..., :k + 1].reshape(-1, k + 1).tolist()
    for gap, experts in zip(edge, chosen):
        if {experts[k - 1], experts[k]} == set(TWIN):
            assert gap == 0 and experts[k - 1] == TWIN[0]
            ties["at the boundary"] += 1
        else:
            assert gap > 1e-5, "a token's routing would depend on rounding: take another seed"
            ties["both chosen"] += set(TWIN) <= set(experts[:k])
    assert torch.equal(torch_topk(values, k).values, order.values[..., :k])
    return torch.return_types.topk((order.values[..., :k], order.indices[..., :k]))


def make_base(tied, window, seed):
    torch.manual_seed(seed)
    config = MixtralConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
                           num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                           max_position_embeddings=CONTEXT, rope_theta=5000.0, rms_norm_eps=1e-5,
                           sliding_window=window, num_local_experts=EXPERTS, num_experts_per_tok=PER_TOKEN,
                           tie_word_embeddings=tied, attn_implementation="eager", experts_implementation="eager")
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            if name.endswith("mlp.gate.weight"):
                parameter[TWIN[1]] = parameter[TWIN[0]]
    return model


def write_keys(writer, window):
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(PER_TOKEN)
    if window is not None:
        writer.add_sliding_window(window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(SPECIAL + byte_alphabet() + ["th", "the"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * 258)
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def write_experts(writer, layer, state, stacked):
    gate_up = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
    matrices = {"gate": gate_up[:, :FFN], "up": gate_up[:, FFN:],
                "down": state[f"model.layers.{layer}.mlp.experts.down_proj"]}
    writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", state[f"model.layers.{layer}.mlp.gate.weight"])
    for name, experts in matrices.items():
        if stacked:
            writer.add_tensor(f"blk.{layer}.ffn_{name}_exps.weight", numpy.ascontiguousarray(experts))
            continue
        for i, expert in enumerate(experts):
            writer.add_tensor(f"blk.{layer}.ffn_{name}.{i}.weight", numpy.ascontiguousarray(expert))


def write_gguf(model, tied, window, stacked, path):
    writer = gguf.GGUFWriter(path, "llama")
    write_keys(writer, window)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    if not tied:
        writer.add_tensor("output.weight", state["lm_head.weight"])
    for layer in range(LAYERS):
        for module, short in names.items():
            weight = state[f"model.layers.{layer}.{module}.weight"]
            if short in heads:
                weight = interleave(weight, heads[short])
            writer.add_tensor(f"blk.{layer}.{short}.weight", numpy.ascontiguousarray(weight))
        write_experts(writer, layer, state, stacked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ten_steps(model, parameters, documents, expected):
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


def make(folder, tied, window, stacked, seed, documents):
    os.makedirs(folder)
    base = make_base(tied, window, seed)
    write_gguf(base, tied, window, stacked, os.path.join(folder, "base.gguf"))
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS,
                                            task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.base_model.model.name_or_path = "tiny"
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(os.path.join(folder, "adapter"))
    os.remove(os.path.join(folder, "adapter", "README.md"))
    model.double()
    parameters = {short_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    ties.update(dict.fromkeys(ties, 0))
    weights = {n.split("base_model.model.")[1]: p for n, p in model.named_parameters()
               if stacked and (".mlp." in n or "post_attention" in n)}
    for weight in weights.values():
        weight.requires_grad_(True)
    loss, logits = forward(model, documents)
    print(folder, ties)
    assert all(ties.values())
    loss.backward()
    expected = {"logits": logits, "loss": loss.reshape(1)}
    for name, parameter in parameters.items():
        expected["gradient." + name] = parameter.grad.clone()
    for name, weight in weights.items():
        expected["gradient." + name] = weight.grad
        weight.requires_grad_(False)
    ten_steps(model, parameters, documents, expected)
    save_file({n: v.detach().float().contiguous() for n, v in expected.items()},
              os.path.join(folder, "expected.safetensors"))


def main():
    directory = sys.argv[1]
    shutil.rmtree(directory, ignore_errors=True)
    with open(os.path.join(os.path.dirname(directory), "tiny_llama", "documents.json"), encoding="utf-8") as file:
        documents = json.load(file)
    torch.topk = lowest_first
    make(os.path.join(directory, "plain"), False, None, True, 1, documents)
    make(os.path.join(directory, "window"), True, WINDOW, False, 2, documents)


if __name__ == "__main__":
    main()
