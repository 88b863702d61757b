#!/usr/bin/env python3
"""Judge what `export` writes: transformers, PEFT and the package gguf read it, and find the model that is served.

    make engine
    cc -D_GNU_SOURCE -Isrc/engine -o build/print_logits test/golden/print_logits.c build/libengine.a \
        -lcrypto -levent -levent_pthreads -ljansson -lpcre2-8 -lutf8proc -lm -ldl -lpthread
    python test/golden/check_exports.py test/golden/tiny_llama/tied/base.gguf test/golden/tiny_llama/tied/adapter

Needs torch, transformers, peft, gguf, safetensors; with xllamacpp, llama.cpp judges the GGUF files, too. Takes a GGUF base with a tokenizer, and an adapter. Judges
these, and random models of each architecture that transformers saves as directories, with the base's tokenizer.
The logits are compared with those of the engine's serving path in reference numerics, base and adapter unmerged;
differences are relative to the largest logit. Prints a line a check, and ends with 1 when one fails.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy
import torch
import transformers
from gguf.quants import quantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 1e-5
# llama.cpp rounds what is multiplied with matrices of these types to them.
LIMITS = {"gguf-f32": LIMIT, "gguf-f16": 5e-3, "gguf-bf16": 5e-2, "gguf-q8_0": 5e-2}
TEXTS = ["The capital of France is", " 3 apples, 42 pears\n\n\tand 1234567.5 others", "naïve café — 東京 🙂",
         "don't  stop   now\r\n", "", " "]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}
EXPERTS = {
    "mlp.gate.weight": "ffn_gate_inp", "mlp.experts.gate_up_proj": "ffn_gate_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
failed = 0


def check(what, good, words=""):
    global failed
    failed += not good
    print(f"{'ok' if good else 'NOT OK'}: {what}{': ' if words else ''}{words}", flush=True)


def engine(*arguments, stdin=None):
    return subprocess.run(["build/pg_finetune_engine", *arguments], check=True, input=stdin,
                          stdout=subprocess.PIPE).stdout


def export(work, base, adapter, form):
    job = os.path.join(work, "job")
    path = os.path.join(work, form)
    os.makedirs(job, exist_ok=True)
    with open(os.path.join(job, "job.json"), "w", encoding="utf-8") as file:
        json.dump({"version": 1, "base": {"path": base}, "adapter": adapter, "export": {"path": path, "format": form}},
                  file)
    engine("export", job)
    return path


def served(base, adapter, ids):
    """The serving path's logits behind the last token."""
    printed = subprocess.run(["build/print_logits", base, adapter, *map(str, ids)], check=True,
                             stdout=subprocess.PIPE).stdout
    logits = numpy.frombuffer(printed, dtype=numpy.float32)
    return logits if adapter == "-" else logits.reshape(2, -1)[1]


def compare(what, got, expected, limit=LIMIT):
    error = float(abs(got - expected).max() / abs(expected).max())
    check(what, error <= limit, f"{error:.2e}, at most {limit:.0e}")


def check_llama_cpp(what, path, adapter, ids, expected, limit=LIMIT):
    """llama.cpp loads the file, and adapter over it, and gives these logits, as far as a softmax tells."""
    if llama_cpp.available():
        return
    got = llama_cpp.Model(path, adapter).log_probabilities(ids)
    compare(f"{what}: llama.cpp", got, llama_cpp.log_softmax(expected), limit)


def of_torch(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float().numpy()


def gguf_name(name):
    """Of a tensor of Hugging Face's; of its gate_up_proj the first of the two that it becomes."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    if rest in EXPERTS:
        return f"blk.{layer}.{EXPERTS[rest]}.weight"
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def gguf_tensors(merged, heads):
    """What a GGUF file holds of these weights: name -> values."""
    wanted = {}
    for name, value in merged.items():
        to = gguf_name(name)
        if name.endswith("gate_up_proj"):
            half = value.shape[1] // 2
            wanted[to], wanted[to.replace("gate", "up")] = value[:, :half], value[:, half:]
        else:
            wanted[to] = interleave(to, value, *heads)
    return {name: numpy.ascontiguousarray(value) for name, value in wanted.items()}


def interleave(name, weight, architecture, heads, kv_heads):
    """The rows of q and k as llama.cpp has them: a head's pairs (j, j + D/2) become (2j, 2j + 1)."""
    n = heads if "attn_q." in name else kv_heads if "attn_k." in name else 0
    if n == 0 or architecture != "llama":
        return weight
    return weight.reshape(n, 2, weight.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def separate(weight, heads):
    """The other way."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def scalar(reader, key):
    return reader.fields[key].contents()


def check_safetensors(work, base, adapter, ids, expected):
    path = export(work, base, adapter, "safetensors-f32")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    compare("transformers, merged safetensors in f32", of_torch(model, ids), expected)
    tied = model.config.tie_word_embeddings
    heads = (scalar(gguf.GGUFReader(base), "general.architecture"), model.config.num_attention_heads,
             model.config.num_key_value_heads)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        ours = [int(line) for line in engine("tokenize", base, stdin=text.encode()).split()]
        theirs = tokenizer(text, add_special_tokens=False).input_ids
        check(f"tokens of {text!r}", ours == theirs, f"{len(ours)}")
    half = AutoModelForCausalLM.from_pretrained(export(work, base, adapter, "safetensors-bf16"),
                                                dtype=torch.float32).eval()
    merged = {name: value.numpy() for name, value in model.state_dict().items()}
    same = all(torch.equal(value, torch.from_numpy(merged[name]).to(torch.bfloat16).float())
               for name, value in half.state_dict().items())
    check("safetensors in bf16 are those in f32, rounded", same)
    if tied:
        del merged["lm_head.weight"]
    return merged, heads


def check_tensors(form, path, wanted):
    """The file's tensors are these, as the package gguf makes them."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    qtype = gguf.GGMLQuantizationType[form.removeprefix("gguf-").upper()]
    check(f"{form}: names", set(tensors) - {"rope_freqs.weight"} == set(wanted), f"{len(tensors)}")
    same = True
    for name, value in wanted.items():
        tensor = tensors[name]
        kind = qtype
        if value.ndim == 1 or "ffn_gate_inp" in name:
            kind = gguf.GGMLQuantizationType.F32
        elif qtype == gguf.GGMLQuantizationType.Q8_0 and value.shape[-1] % 32:
            kind = gguf.GGMLQuantizationType.F16
        same &= tensor.tensor_type == kind and list(tensor.shape) == list(reversed(value.shape))
        if kind == gguf.GGMLQuantizationType.F32:
            same &= numpy.array_equal(tensor.data, value)
        else:
            same &= numpy.array_equal(tensor.data.view(numpy.uint8), quantize(value, kind).view(numpy.uint8))
    check(f"{form}: tensors, bit for bit as the package gguf makes them", bool(same))


def check_gguf(work, base, adapter, ids, expected, merged, heads):
    wanted = gguf_tensors(merged, heads)
    original = gguf.GGUFReader(base)
    for form in ("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0"):
        path = os.path.join(export(work, base, adapter, form), "model.gguf")
        reader = gguf.GGUFReader(path)
        kept = {key for key in original.fields if key.startswith(("tokenizer.", heads[0] + "."))}
        check(f"{form}: keys of the base", all(reader.fields[key].contents() == original.fields[key].contents()
                                              for key in kept), f"{len(kept)}")
        check_tensors(form, path, wanted)
        limit = {"gguf-f32": LIMIT, "gguf-f16": 5e-3}.get(form, 5e-2)
        compare(f"{form}: served", served(path, "-", ids), expected, limit)
        check_llama_cpp(form, path, None, ids, served(path, "-", ids), LIMITS[form])
    if heads[0] == "llama":
        q = next(name for name in merged if "q_proj.weight" in name)
        back = separate(wanted[gguf_name(q)], heads[1])
        check("q permuted and back is q", numpy.array_equal(back, merged[q]))
    model = AutoModelForCausalLM.from_pretrained(os.path.join(work, "gguf-f32"), gguf_file="model.gguf",
                                                 dtype=torch.float32).eval()
    compare("transformers, merged GGUF in f32", of_torch(model, ids), expected)


def check_gguf_adapter(work, base, adapter, ids, heads):
    with open(os.path.join(adapter, "adapter_config.json"), encoding="utf-8") as file:
        config = json.load(file)
    original = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    for rslora in (False, True):
        copy = os.path.join(work, f"adapter-{rslora}")
        shutil.copytree(adapter, copy)
        with open(os.path.join(copy, "adapter_config.json"), "w", encoding="utf-8") as file:
            json.dump(config | {"use_rslora": rslora}, file)
        shutil.rmtree(os.path.join(work, "gguf-adapter"), ignore_errors=True)
        path = os.path.join(export(work, base, copy, "gguf-adapter"), "adapter.gguf")
        reader = gguf.GGUFReader(path)
        alpha = config["lora_alpha"] * (config["r"] ** 0.5 if rslora else 1)
        good = (scalar(reader, "general.type"), scalar(reader, "adapter.type"),
                scalar(reader, "general.architecture")) == ("adapter", "lora", heads[0])
        check(f"GGUF adapter, rslora {rslora}: keys", good and abs(scalar(reader, "adapter.lora.alpha") - alpha) < 1e-4,
              f"alpha {scalar(reader, 'adapter.lora.alpha'):g}")
        same = len(reader.tensors) == len(original)
        for tensor in reader.tensors:
            name, factor = tensor.name.rsplit(".lora_", 1)
            source = next(key for key in original
                          if gguf_name(key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] + ".weight") == name
                          and f".lora_{factor.upper()}." in key)
            value = original[source]
            if factor == "b":
                value = interleave(name, value, *heads)
            same &= numpy.array_equal(tensor.data, value)
        check(f"GGUF adapter, rslora {rslora}: tensors", bool(same), f"{len(reader.tensors)}")
        check_llama_cpp(f"GGUF adapter, rslora {rslora}", base, path, ids, served(base, copy, ids))


SIZES = {
    "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
}
# Sizes in whole blocks, so that experts are quantised.
BLOCKS = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
CLASSES = [
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                                              "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                              "original_max_position_embeddings": 8192}}),
    ("MistralForCausalLM", {"sliding_window": 9}),
    ("Qwen2ForCausalLM", {"hidden_size": 40, "tie_word_embeddings": True}),
    ("Qwen3ForCausalLM", {}),
    ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, **BLOCKS}),
]


def random_model(path, name, more, vocabulary, tokenizer):
    """A directory, as transformers saves it, and an adapter for it."""
    kind = getattr(transformers, name.replace("ForCausalLM", "Config"))
    config = kind(vocab_size=vocabulary, **{"tie_word_embeddings": False, **SIZES, **more})
    torch.manual_seed(11)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(1 + 0.2 * torch.randn_like(value) if "norm" in key
                        else torch.randn_like(value) * value.shape[-1] ** -0.5)
    model.save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(tokenizer, file), path)
    # PEFT's adapters of experts have a form of their own
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if name == "MixtralForCausalLM" else "all-linear"
    tuned = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", target_modules=targets))
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if "lora_B" in key:
                value.copy_(0.3 * torch.randn_like(value))
    tuned.save_pretrained(path + "-adapter")
    return path, path + "-adapter"


def check_directory(work, name, more, vocabulary, ids, tokenizer):
    folder = os.path.join(work, name)
    os.makedirs(folder)
    base, adapter = random_model(os.path.join(folder, "base"), name, more, vocabulary, tokenizer)
    expected = served(base, adapter, ids)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    compare(f"{name}: PEFT, adapter over the base", of_torch(PeftModel.from_pretrained(model, adapter).eval(), ids),
            expected)
    path = export(folder, base, adapter, "safetensors")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    compare(f"{name}: transformers, merged safetensors", of_torch(model, ids), expected)
    merged = {key: value.numpy() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del merged["lm_head.weight"]
    path = os.path.join(export(folder, base, adapter, "gguf-f32"), "model.gguf")
    heads = (scalar(gguf.GGUFReader(path), "general.architecture"), model.config.num_attention_heads,
             model.config.num_key_value_heads)
    wanted = gguf_tensors(merged, heads)
    check_tensors("gguf-f32", path, wanted)
    if name == "MixtralForCausalLM":
        reader = gguf.GGUFReader(path)
        check("experts in the keys", [scalar(reader, f"llama.expert_{key}") for key in ("count", "used_count")] == [4, 2])
        for form in ("gguf-f16", "gguf-q8_0"):
            packed = os.path.join(export(folder, base, adapter, form), "model.gguf")
            check_tensors(form, packed, wanted)
            check_llama_cpp(f"{name}, {form}", packed, None, ids, served(packed, "-", ids), LIMITS[form])
    compare(f"{name}: merged GGUF, served", served(path, "-", ids), expected)
    # llama.cpp has no sliding window in this architecture
    seen = ids[:more.get("sliding_window")]
    expected_seen = served(base, adapter, seen)
    check_llama_cpp(f"{name}: merged GGUF", path, None, seen, expected_seen)
    lora = os.path.join(export(folder, base, adapter, "gguf-adapter"), "adapter.gguf")
    plain = os.path.join(export(os.path.join(folder, "plain"), base, None, "gguf-f32"), "model.gguf")
    check_llama_cpp(f"{name}: GGUF adapter", plain, lora, seen, expected_seen)
    again = os.path.join(folder, "again")
    os.makedirs(again)
    model = AutoModelForCausalLM.from_pretrained(export(again, path, None, "safetensors")).eval()
    compare(f"{name}: transformers, safetensors of that GGUF file", of_torch(model, ids), expected)


def main():
    base, adapter = (os.path.abspath(path) for path in sys.argv[1:3])
    vocabulary = len(gguf.GGUFReader(base).fields["tokenizer.ggml.tokens"].data)
    random.seed(7)
    ids = [random.randrange(vocabulary) for _ in range(24)]
    expected = served(base, adapter, ids)
    if llama_cpp.available():
        print(f"skipped: {llama_cpp.available()}")
    with tempfile.TemporaryDirectory() as work:
        folder, name = os.path.split(base)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        compare("PEFT, adapter over the base", of_torch(PeftModel.from_pretrained(model, adapter).eval(), ids), expected)
        merged, heads = check_safetensors(work, base, adapter, ids, expected)
        check_gguf(work, base, adapter, ids, expected, merged, heads)
        check_gguf_adapter(work, base, adapter, ids, heads)
        for name, more in CLASSES:
            check_directory(work, name, more, vocabulary, ids, os.path.join(work, "safetensors-f32"))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
