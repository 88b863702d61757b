#!/usr/bin/env python3
"""Write the seeds of the fuzz targets into test/fuzz/corpus: one right input of each format, and the
shapes of wrong ones that have broken other readers (counts and lengths near 2^64, sums and products that
overflow, offsets beyond the file, names twice, spans that overlap).

    python test/fuzz/make_seeds.py test/fuzz/corpus
"""

import json
import math
import os
import struct
import sys

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def u32(v):
    return struct.pack("<I", v)


def u64(v):
    return struct.pack("<Q", v)


def text(s):
    s = s.encode() if isinstance(s, str) else s
    return u64(len(s)) + s


def value(key, type_, data):
    return text(key) + u32(type_) + data


def strings(key, items):
    return value(key, ARRAY, u32(STRING) + u64(len(items)) + b"".join(text(i) for i in items))


def info(name, dims, type_, offset):
    return text(name) + u32(len(dims)) + b"".join(u64(d) for d in dims) + u32(type_) + u64(offset)


def gguf(values, infos, data, n_values=None, n_tensors=None, version=3):
    head = b"GGUF" + u32(version) + u64(len(infos) if n_tensors is None else n_tensors)
    head += u64(len(values) if n_values is None else n_values) + b"".join(values) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + data


EXTRAS = {"qwen2": {"attn_q.bias": [4], "attn_k.bias": [2], "attn_v.bias": [2]},
          "qwen3": {"attn_q_norm.weight": [2], "attn_k_norm.weight": [2]}}


def llama(first=(), tensors=(), architecture="llama", experts=0, **more):
    """A model of one layer, hidden 4, two heads of 2, three tokens; what is given replaces its own.  With experts:
    stacked, two for a token."""
    values = [
        value("general.architecture", STRING, text(architecture)),
        value(architecture + ".block_count", U32, u32(1)),
        value(architecture + ".context_length", U32, u32(8)),
        value(architecture + ".embedding_length", U32, u32(4)),
        value(architecture + ".feed_forward_length", U32, u32(4)),
        value(architecture + ".attention.head_count", U32, u32(2)),
        value(architecture + ".attention.head_count_kv", U32, u32(1)),
        value(architecture + ".attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
    ]
    if experts > 0:
        values.append(value("llama.expert_count", U32, u32(experts)))
        values.append(value("llama.expert_used_count", U32, u32(2)))
    replaced = [v[: 8 + struct.unpack("<Q", v[:8])[0]] for v in first]
    values = list(first) + [v for v in values if not any(v.startswith(r) for r in replaced)]
    shapes = {"token_embd.weight": [4, 3], "output_norm.weight": [4]}
    for name, shape in [
        ("attn_norm", [4]),
        ("attn_q", [4, 4]),
        ("attn_k", [4, 2]),
        ("attn_v", [4, 2]),
        ("attn_output", [4, 4]),
        ("ffn_norm", [4]),
        ("ffn_gate", [4, 4]),
        ("ffn_up", [4, 4]),
        ("ffn_down", [4, 4]),
    ]:
        if experts > 0 and name in ("ffn_gate", "ffn_up", "ffn_down"):
            name, shape = name + "_exps", shape + [experts]
        shapes["blk.0.%s.weight" % name] = shape
    if experts > 0:
        shapes["blk.0.ffn_gate_inp.weight"] = [4, experts]
    for name, shape in EXTRAS.get(architecture, {}).items():
        shapes["blk.0." + name] = shape
    infos, data = list(tensors), b""
    for name, shape in shapes.items():
        if any(t.startswith(text(name)) for t in tensors):
            continue
        infos.append(info(name, shape, 0, len(data)))
        size = 4 * math.prod(shape)
        data += bytes(size) + bytes(-size % 32)
    return gguf(values, infos, data, **more)


VOCABULARY = [
    value("tokenizer.ggml.model", STRING, text("gpt2")),
    value("tokenizer.ggml.pre", STRING, text("smollm")),
    strings("tokenizer.ggml.tokens", ["a", "<|im_end|>", "aa"]),
    value("tokenizer.ggml.token_type", ARRAY, u32(I32) + u64(3) + u32(1) + u32(3) + u32(1)),
    strings("tokenizer.ggml.merges", ["a a"]),
    value("tokenizer.ggml.eos_token_id", U32, u32(1)),
    value("tokenizer.ggml.add_bos_token", BOOL, b"\0"),
    value("tokenizer.chat_template", STRING, text("{{ messages }}")),
]


def gguf_seeds():
    huge = 1 << 63
    head = b"GGUF" + u32(3)
    yield "valid", llama()
    yield "vocabulary", llama(VOCABULARY)
    yield "version2", llama(VOCABULARY, version=2)
    yield "experts", llama(VOCABULARY, experts=3)
    yield "experts_many", llama([value("llama.expert_count", U32, u32(2**31 - 1))], experts=3)
    yield "experts_fewer", llama(tensors=[info("blk.0.ffn_up_exps.weight", [4, 4, 2], 0, 0)], experts=3)
    yield "qwen2", llama(architecture="qwen2")
    yield "qwen3", llama(architecture="qwen3")
    yield "window", llama([value("llama.attention.sliding_window", U32, u32(3))])
    yield "bias_twice", llama(tensors=[info("blk.0.attn_q.bias", [4], 0, 0)] * 2, architecture="qwen2")
    yield "bias_wide", llama(tensors=[info("blk.0.attn_k.bias", [1 << 40], 0, 0)], architecture="qwen2")
    yield "n_values", llama(n_values=huge)
    yield "n_tensors", llama(n_tensors=(1 << 64) // 176 + 1)
    yield "key_length", head + u64(0) + u64(1) + u64(2**64 - 1) + b"a" * 40
    yield "string_length", head + u64(0) + u64(1) + text("k") + u32(STRING) + u64(2**64 - 1)
    yield "array_overflow", head + u64(0) + u64(1) + text("k") + u32(ARRAY) + u32(STRING) + u64(2**60 + 1)
    yield "array_of_arrays", head + u64(0) + u64(1) + text("k") + u32(ARRAY) + u32(ARRAY) + u64(1 << 40)
    yield "array_type", head + u64(0) + u64(1) + text("k") + u32(ARRAY) + u32(255) + u64(1)
    yield "value_type", head + u64(0) + u64(1) + text("k") + u32(2**31) + bytes(40)
    yield "dimensions", llama(tensors=[info("token_embd.weight", [1] * 9, 0, 0)])
    yield "dimension_overflow", llama(tensors=[info("token_embd.weight", [1 << 33, 1 << 33], 0, 0)])
    yield "dimension_wraps", llama(tensors=[info("token_embd.weight", [1 << 62, 4, 4], 0, 0)])
    yield "dimension_zero", llama(tensors=[info("token_embd.weight", [0, 3], 0, 0)])
    yield "dimension_negative", llama(tensors=[info("token_embd.weight", [2**64 - 4, 3], 0, 0)])
    yield "tensor_type", llama(tensors=[info("token_embd.weight", [4, 3], 2**31 + 1, 0)])
    yield "block_rows", llama(tensors=[info("token_embd.weight", [31, 3], 8, 0)])
    yield "offset_wraps", llama(tensors=[info("token_embd.weight", [4, 3], 0, 2**64 - 32)])
    yield "offset_beyond", llama(tensors=[info("token_embd.weight", [4, 3], 0, 1 << 40)])
    yield "overlap", llama(tensors=[info("token_embd.weight", [4, 3], 0, 32)])
    yield "twice", llama(tensors=[info("a", [4], 0, 0), info("a", [4], 0, 32)])
    yield "alignment_zero", llama([value("general.alignment", U32, u32(0))])
    yield "alignment_odd", llama([value("general.alignment", U32, u32(33))])
    yield "alignment_huge", llama([value("general.alignment", U32, u32(1 << 31))])
    yield "heads_zero", llama([value("llama.attention.head_count", U32, u32(0))])
    yield "layers", llama([value("llama.block_count", U32, u32(2**32 - 1))])
    yield "types_short", llama(VOCABULARY[:3] + [value("tokenizer.ggml.token_type", ARRAY, u32(I32) + u64(1) + u32(1))])
    yield "tokens_many", llama([strings("tokenizer.ggml.tokens", ["a"] * 5)])
    yield "token_empty", llama(VOCABULARY[:2] + [strings("tokenizer.ggml.tokens", ["", "", "a"])])
    yield "merge_unknown", llama(VOCABULARY[:4] + [strings("tokenizer.ggml.merges", ["a b", " ", "a"])])
    yield "eos", llama(VOCABULARY[:4] + [value("tokenizer.ggml.eos_token_id", U32, u32(2**32 - 2))])
    yield "tokens_no_array", llama([value("tokenizer.ggml.tokens", STRING, text("a"))])


def safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(header) if length is None else length) + header + data


def safetensors_seeds():
    def one(shape, span, dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": span}

    yield "valid", safetensors({"a": one([2, 2], [0, 16]), "__metadata__": {"format": "pt"}}, bytes(16))
    yield "empty", safetensors({})
    yield "half", safetensors({"a": one([3], [0, 6], "BF16"), "b": one([1], [6, 8], "F16")}, bytes(8))
    yield "length", safetensors({}, length=2**64 - 1)
    yield "length_beyond", safetensors({}, length=1000)
    yield "product", safetensors({"a": one([2**33, 2**33], [0, 16])}, bytes(16))
    yield "negative", safetensors({"a": one([-1], [0, 4])}, bytes(4))
    yield "overlap", safetensors({"a": one([2], [0, 8]), "b": one([2], [4, 12])}, bytes(12))
    yield "hole", safetensors({"a": one([1], [4, 8])}, bytes(8))
    yield "backwards", safetensors({"a": one([1], [8, 4])}, bytes(8))
    yield "twice", safetensors(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}', bytes(8))
    yield "deep", safetensors(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}")
    yield "dtype", safetensors({"a": one([1], [0, 4], "X" * 40)}, bytes(4))


def job_seeds():
    base = {"path": "m.gguf", "name": "m", "template": None, "context_length": None, "digest": None}
    job = {"version": 1, "base": base, "device": "auto", "threads": 2, "numerics": "fast"}
    options = {
        "max_epochs": 3, "max_steps": 10, "method": "lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0,
        "lora_target_modules": ["q_proj", "down_proj"], "use_rslora": True, "learning_rate": 1e-4,
        "lr_scheduler": "cosine", "min_lr_ratio": 0.1, "warmup_ratio": 0.03, "weight_decay": 0.01,
        "max_grad_norm": 1, "batch_size": 2048, "gradient_accumulation_steps": 2, "max_seq_length": 512,
        "packing": True, "train_on_inputs": False, "n_evals": 4, "validation_fraction": 0.1, "seed": 7,
    }  # fmt: skip
    yield "minimal", json.dumps(dict(job, options={}))
    yield "options", json.dumps(dict(job, options=options))
    yield "template", json.dumps(dict(job, options={"prompt_template": "{{1}} Q: {prompt}\nA: ", "lora_dropout": 0.1}))
    yield "auto", json.dumps(dict(job, options={k: "auto" for k in options}))
    yield "null", json.dumps(dict(job, options={k: None for k in options}))
    yield "huge", json.dumps(dict(job, threads=2**63 - 1, options={k: 2**63 - 1 for k in options}))
    yield "negative", json.dumps(dict(job, options={k: -1e308 for k in options}))
    yield "types", json.dumps({"version": "1", "base": [], "options": 3})
    yield "deep", "[" * 5000


def row_seeds():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the 12", "weight": 0.5}]
    for name, row in [
        ("pair", {"prompt": "the <|im_end|>", "completion": "abab"}),
        ("messages", {"messages": messages}),
        ("text", {"text": "a\u00e9 \ud83d\ude00\n\nthe"}),
        ("null", {"prompt": None, "completion": "x"}),
        ("null_text", {"text": None}),
        ("nul", {"text": "a\0b"}),
        ("empty", {"prompt": "", "completion": ""}),
        ("role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("weight", {"messages": [dict(messages[1], weight=-1e300)]}),
        ("long", {"prompt": "ab " * 100, "completion": "the " * 100}),
        ("other", {"question": 1}),
        ("tokens", {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4], "attention_mask": [0, 1, 1, 0]}),
        ("tokens_long", {"input_ids": list(range(60)), "weight": 2.5}),
        ("tokens_outside", {"input_ids": [0, 2**63 - 1], "labels": [-(2**63), 2**32]}),
        ("tokens_length", {"input_ids": [1, 2], "labels": [1], "attention_mask": []}),
        ("tokens_hole", {"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}),
        ("tokens_types", {"input_ids": [1, None, "2", [3]], "labels": {}, "attention_mask": True}),
        ("weight_row", {"text": "the", "weight": 1e-12}),
        ("weight_off", {"messages": [dict(messages[1], weight=0), messages[0], dict(messages[1], weight=3)]}),
        ("weight_null", {"text": "the", "weight": None}),
        ("two_sets", {"input_ids": [1, 2], "text": "the"}),
    ]:
        yield name, b"\x20" + json.dumps(row).encode()
        yield name + "_trained", b"\xa0" + json.dumps(row).encode()
    for name, row in [
        ("preference", {"prompt": "the", "chosen": "abab<|im_end|>", "rejected": ""}),
        ("preference_weight", {"prompt": "", "chosen": "a", "rejected": "b", "weight": 1e12}),
        ("preference_long", {"prompt": "ab " * 60, "chosen": "the " * 40, "rejected": "a\u00e9 " * 90}),
        ("preference_wide", {"prompt": "a", "chosen": "\ud83d\ude00" * 40, "rejected": "x"}),
        ("preference_null", {"prompt": "a", "chosen": None, "rejected": "x"}),
        ("preference_half", {"prompt": "a", "rejected": "x"}),
        ("preference_other", {"prompt": "a", "completion": "x"}),
    ]:
        yield name, b"\x60" + json.dumps(row).encode()
    yield "deep", b"\x20" + b'{"text":' + b"[" * 5000


def tokenizer_seeds():
    texts = {
        "words": "the  ab'll 12345\r\n\n\t x\u00e9\u4e2d\U0001f44d\u0301",
        "special": "<|im_start|>user\n<t>><t>><|im_end|",
        "invalid": b"a\xff\xc3(\xe2\x82\xed\xa0\x80\xf4\x90\x80\x80",
        "long": "aaaaaaaaaaaaaaaaaaaaaaaa          \n\n\n\n\n111111",
    }
    for name, t in texts.items():
        for kind in range(8):
            yield "%s_%d" % (name, kind), bytes([kind]) + (t.encode() if isinstance(t, str) else t)


def template_seeds():
    yield "chatml", (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    yield "spaces", "{%- if a  and b -%}\n  {{- m[\"role\"] + 'x' \n + \"y'\" }} {% endif %}\n"
    yield "unfinished", "{{ 'a\\"
    yield "quotes", "{{ 'a\\'' + \"\\\"\" + m['x' }}"


def config_seeds():
    llama = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "rope_theta": 500000.0,
        "eos_token_id": [1, 2], "torch_dtype": "bfloat16",
    }
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}
    window = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": 2}
    types = ["full_attention"] * 2 + ["sliding_attention"] * 2
    for name, config in [
        ("llama", llama),
        ("scaling", dict(llama, rope_scaling=llama3)),
        ("parameters", dict(llama, rope_parameters=dict(llama3, rope_theta=7))),
        ("mistral", dict(llama, architectures=["MistralForCausalLM"], sliding_window=None)),
        ("mixtral", dict(llama, architectures=["MixtralForCausalLM"], num_local_experts=4)),
        ("window", dict(llama, **window)),
        ("types", dict(llama, **dict(window, layer_types=types))),
        ("huge", dict(llama, hidden_size=2**31 - 1, num_hidden_layers=99, vocab_size=2**24)),
        ("largest", dict(llama, hidden_size=2**20, intermediate_size=2**22, num_hidden_layers=99, head_dim=4096)),
        ("negative", dict(llama, head_dim=-2)),
        ("quantised", dict(llama, quantization_config={"quant_method": "gptq"})),
        ("null", {key: None for key in llama}),
    ]:
        yield name, b"\x00" + json.dumps(config).encode()
    yield "twice", b'\x00{"model_type":"llama","model_type":"llama"}'
    yield "deep", b"\x00" + b'{"rope_scaling":' * 2100
    yield "ends", b'\x01{"eos_token_id": [1, 2, 999]}'
    yield "ends_wrong", b'\x01{"eos_token_id": [1000, "x", null, -1]}'
    shard = "model-1.safetensors"
    for name, index in [
        ("index", {"metadata": {"total_size": 8}, "weight_map": {"model.norm.weight": shard}}),
        ("index_outside", {"weight_map": {"model.norm.weight": "../" + shard}}),
        ("index_missing", {"weight_map": {"a": shard, "b": "model-2.safetensors"}}),
        ("index_empty", {"weight_map": {}}),
        ("index_types", {"weight_map": {"a": 1, "b": None, "c": [shard]}}),
    ]:
        yield name, b"\x02" + json.dumps(index).encode()


def tokenizer_file_seeds():
    """tokenizer.json behind a "j", tokenizer.model behind an "m"."""
    mark = "\u2581"
    byte_level = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"}}
    spm = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": mark}, {"type": "Replace", "pattern": {"String": " "}, "content": mark}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": mark}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
    }
    metaspace = {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": mark, "prepend_scheme": "first", "split": False},
        "decoder": {"type": "Metaspace", "replacement": mark, "prepend_scheme": "first"},
    }
    vocab = {"a": 0, "b": 1, "ab": 2, mark: 3, mark + "a": 4, "<0xC3>": 6, "<unk>": 7}
    merges = ["a b", mark + " a"]
    added = [{"id": 5, "content": "<s>", "special": True, "lstrip": True}, {"id": 8, "content": "ab ", "single_word": True, "rstrip": True, "normalized": True}]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}

    def file(steps, **more):
        return "j" + json.dumps({"added_tokens": added, **steps, "model": {**model, **more}}, ensure_ascii=False, separators=(",", ":"))

    yield "byte_level", file(byte_level, unk_token=None)
    yield "pairs", file(byte_level, unk_token=None, merges=[["a", "b"]], ignore_merges=True)
    yield "prepend", file(spm)
    yield "metaspace", file(metaspace)
    yield "cyclic", file(spm, merges=["ab a", "a b"], vocab={**vocab, "aba": 9})
    yield "missing", file(spm, merges=["a x"])
    yield "huge_id", file(spm, vocab={"a": 2**62})
    yield "holes", file(spm, vocab={**vocab, "z": 400})
    yield "twice", file(spm).replace('"b":1', '"a":1')

    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    pieces = [(b"<unk>", 0, 2), (b"<s>", 0, 3), (b"a", -1, 1), (b"b", -2, 1), (b"ab", -0.5, 1), (b"<0x0A>", 0, 6), (b"<t>", 0, 4), (mark.encode(), -3, 1)]
    body = b"".join(field(1, field(1, t) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])) for t, score, kind in pieces)
    settings = field(2, bytes([3 << 3, 2, 0x98, 2, 1])) + field(3, bytes([3 << 3, 1, 4 << 3, 0]))
    yield "model", b"m" + body + settings
    yield "model_cut", b"m" + (body + settings)[:-3]
    yield "model_unigram", b"m" + body
    yield "model_length", b"m" + body + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"


def adapter(config, tensors):
    """The input of fuzz_adapter: tensors are {name: (shape, bytes)}."""
    header, data = {}, b""
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    head = json.dumps(header).encode()
    config = config if isinstance(config, bytes) else json.dumps(config).encode()
    return u32(len(config)) + config + u64(len(head)) + head + data


def adapter_seeds():
    """For the tiny model: hidden 36, two layers, four heads of ten."""
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "none"}
    tensors = {}
    for layer in range(2):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        tensors[module + "lora_A.weight"] = ([1, 36], b"\0" * 144)
        tensors[module + "lora_B.weight"] = ([40, 1], b"\0" * 160)
    yield "right", adapter(config, tensors)
    yield "half", adapter(config, dict(list(tensors.items())[:3]))
    yield "turned", adapter(config, {name: (shape[::-1], data) for name, (shape, data) in tensors.items()})
    for name, more in [
        ("rank", {"r": 2**31}), ("rank_0", {"r": 0}), ("rank_1024", {"r": 1024}), ("alpha", {"lora_alpha": 1e308}),
        ("targets", {"target_modules": "all-linear"}), ("none", {"target_modules": []}), ("dora", {"use_dora": True}),
        ("pattern", {"rank_pattern": {"q_proj": 3}}), ("type", {"peft_type": 7}), ("unknown", {"invented": [1]}),
    ]:
        yield name, adapter(dict(config, **more), tensors)
    yield "twice", adapter(b'{"peft_type": "LORA", "r": 1, "r": 2}', tensors)
    yield "no_json", adapter(b"{", tensors)
    yield "length", u32(2**32 - 1) + b"{}"


def schema_seeds():
    def closed(properties, required=None):
        return {"type": "object", "properties": properties, "additionalProperties": False,
                "required": list(properties) if required is None else required}

    yield "scalars.json", closed({"s": {"type": "string"}, "n": {"type": ["number", "null"]}, "i": {"type": "integer"},
                                  "b": {"type": "boolean"}})
    yield "optional.json", closed({key: {"type": "integer"} for key in "abcdef"}, ["c"])
    yield "arrays.json", {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 3},
                          "minItems": 1}
    yield "values.json", {"enum": ["a", "ab", "abc", 1, 12, 1.5, None, [True, {"x": "é"}]]}
    yield "tree.json", closed({"value": {"const": 1}, "sub": {"type": "array", "items": {"$ref": "#"}}})
    yield "list.json", {"$ref": "#/$defs/node", "$defs": {"node": closed(
        {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}})}}
    yield "any_of.json", {"anyOf": [closed({"t": {"const": "aa"}, "x": {"type": "string"}}),
                                    closed({"t": {"const": "ab"}, "y": {"type": "number"}}), {"type": "string"}]}
    yield "doubling.json", {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}},
                                      {"type": "array", "maxItems": 2, "items": {"$ref": "#"}}]}
    yield "circle.json", {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    yield "endless.json", closed({"again": {"$ref": "#"}})
    yield "counted.json", {"maxItems": 10000, "items": {"maxItems": 10000, "items": {"type": "null"}}}
    yield "unknown.json", {"type": "string", "pattern": "a"}


def endpoint_seeds():
    """Two bytes of what is tried (fuzz_endpoint.c), then the text."""
    def answer(*choices, **more):
        return json.dumps(dict({"choices": choices, "created": 1, "usage": {
            "prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}, **more))

    def choice(index=0, content="kanarie", finish="stop", **more):
        return dict({"index": index, "message": {"role": "assistant", "content": content}, "finish_reason": finish}, **more)

    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    yield "answer", b"\0\0" + answer(choice()).encode()
    yield "answer_2", b"\0\1" + answer(choice(1), choice(0, finish="length")).encode()
    yield "answer_logprobs", b"\0\4" + answer(choice(logprobs=logprobs)).encode()
    yield "answer_json", b"\0\x08" + answer(choice(content='{"a": 1e400}')).encode()
    yield "answer_filter", b"\0\0" + answer(choice(content=None, finish="content_filter")).encode()
    yield "answer_refusal", b"\0\x08" + answer({"message": {"refusal": "kanarie"}, "finish_reason": "eos_token"}).encode()
    yield "answer_numbers", b"\0\0" + answer(choice(), usage={"prompt_tokens": 2**62, "completion_tokens": -1}).encode()
    yield "answer_nul", b"\0\0" + answer(choice(content="a\0b")).encode()
    for name, bits, body in [
        ("openai", 0, {"error": {"message": "no kanarie in top_k", "code": "kanarie", "param": "temperature", "type": "x"}}),
        ("context", 0, {"error": {"code": "context_length_exceeded"}}), ("vllm", 0, {"message": "top_k", "code": 400}),
        ("fastapi", 6, {"detail": [{"loc": ["body", "top_k"], "msg": "kanarie"}]}), ("quota", 7, {"error": {"code": "insufficient_quota"}}),
        ("key", 1, {"error": "kanarie"}), ("list", 9, ["kanarie"]),
    ]:
        yield "refusal_" + name, bytes([1, bits]) + json.dumps(body).encode()
    yield "request", b"\2\0" + json.dumps({
        "model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2, "temperature": 0.5, "cache_salt": "1/2",
        "response_format": {"type": "json_schema", "json_schema": {"required_first": True, "schema": {"type": "object"}}}}).encode()
    for number, url in enumerate(["https://api.openai.com/v1", "http://localhost:8000", "http://[::1]:1/v1/", "http://127.0.0.1.example",
                                  "https://u:p@h/", "https://h/?kanarie", "https://h:65536", "https://%41"]):
        yield "url_%d" % number, b"\3\0" + url.encode()


def main():
    for name, seeds in [
        ("adapter", adapter_seeds()),
        ("config", config_seeds()),
        ("gguf", gguf_seeds()),
        ("safetensors", safetensors_seeds()),
        ("job", job_seeds()),
        ("row", row_seeds()),
        ("tokenizer", tokenizer_seeds()),
        ("template", template_seeds()),
        ("tokenizer_files", tokenizer_file_seeds()),
        ("endpoint", endpoint_seeds()),
        ("schema", ((name, json.dumps(schema, ensure_ascii=False)) for name, schema in schema_seeds())),
    ]:
        folder = os.path.join(sys.argv[1], name)
        os.makedirs(folder, exist_ok=True)
        for seed, data in seeds:
            with open(os.path.join(folder, seed), "wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)


if __name__ == "__main__":
    main()
