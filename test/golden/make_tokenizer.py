#!/usr/bin/env python3
"""Write tokenizer_small.json, tokenizer_smollm2.json and chat_templates.json: what Hugging Face's
tokenizers and transformers make of texts and conversations.

    python test/golden/make_tokenizer.py cache/SmolLM2-135M-Instruct.Q4_1.gguf test/golden

Needs tokenizers, transformers, jinja2 and gguf.  The small vocabulary is trained here, on the texts
themselves and without any pre-tokeniser, so that it has merges across every place where one could cut:
a pre-tokeniser that cuts elsewhere gives other ids.  It lacks two bytes, has tokens that no merge
makes, and added tokens of which one begins another.
"""

import hashlib
import json
import os
import random
import sys

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

SENTENCES = [
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren.",
    "Alla människor är födda fria och lika i värde och rättigheter.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności.",
    "Toate ființele umane se nasc libere și egale în demnitate și în drepturi.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İIıi",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm.",
    "Semua orang dilahirkan merdeka dan mempunyai martabat yang sama.",
    "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.",
    "Hver einasti maður er borinn frjáls og jafn öðrum að virðingu.",
    "Saolaítear na daoine uile saor agus comhionann ina ndínit agus ina gcearta.",
    "Gizon-emakume guztiak aske jaiotzen dira, duintasun berberak.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Всі люди народжуються вільними і рівними у своїй гідності.",
    "Всички хора се раждат свободни и равни по достойнство и права.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "تمام افراد بشر آزاد به دنیا می‌آیند، سال ۱۴۰۲",
    "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। १२३",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులు.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน ๑๒๓",
    "មនុស្សទាំងអស់ កើតមកមានសេរីភាព",
    "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့်",
    "ሰብዓዊ ፍጡራን ሁሉ ነጻና እኩል ሆነው ይወለዳሉ።",
    "人人生而自由，在尊严和权利上一律平等。",
    "人人生而自由，在尊嚴和權利上一律平等。二〇二四年",
    "すべての人間は、生まれながらにして自由であり、かつ、ｶﾀｶﾅ平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ᄒᆞᆫ글 decomposed: 한글",
    "Хүн бүр төрж мэндлэхдээ эрх чөлөөтэй, адилхан нэр төртэй байдаг.",
]

CODE = [
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "SELECT id, complete('m', $1) FROM t WHERE a >= 10 AND b <> 'it''s' ORDER BY 1;",
    "int\nmain(void)\n{\n\tprintf(\"%d\\n\", x->y[3]);\n\treturn 0; /* done */\n}\n",
    "for (let i=0;i<10;++i){a[i]??=`${i}`;}\r\n\r\n// end\r\n",
    "<html><body class=\"x\">&nbsp;</body></html>",
    "{\"key\": [1, 2.5e-3, null, true], \"k2\": \"\\u00e9\"}",
    "https://example.org/a/b?c=d&e=%20#f",
    "x = 0x1F + 0b1010 - 1_000_000 * 3.14159e+10",
    "#!/bin/sh\nset -e\nls | grep -v '^$' > /dev/null 2>&1 &&\n\texit 0\n",
    "a==b!=c===d<=>e...f---g___h***i~~~j",
]

ODD = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t\t", " \n", "\n ", " \n \n ", "\r\n", "\r\n\r\n",
    "\r", "a\r\nb", "  a", "   a", "a  ", "a   b", "a \n b", "a  \n\n  b", "\n\na", "a\n\n", " a b  c   d    e",
    "\u00a0a\u00a0", "\u3000全角\u3000", "a\u2003b", "a\u2028b\u2029c", "\u180ea\u180e", "\u200b\u200b", "\ufeffBOM", "\x85\x0b\x0c",
    "\x1c\x1d\x1e\x1f", "\x00", "a\x00b\x00\x00", "\x01\x02\x03\x04\x05\x06\x07\x08", "\x7f\x80\x9f\xad",
    "0", "12", "123", "1234", "1234567890", "3.14", " 1", "  1", "   12", "1 2  3", "a1b22c333", "½²³", "ⅧⅨ", "①②", "٠١٢٣", "१२३", "𝟘𝟙𝟚", "一二三",
    "x²y³", "1st 2nd", "$1,000.50", "10%", "№5", "\U00011f50\U00011f51", "\U0001e4f0",
    "a\U00011f04\U0001e4d0b \U00011f12\U0001e4f0", "\U00011de0\U00016ff4 x\U00011de1y",
    "\U0001e4f0" * 8, "I'Mx'LLy 'Tz'REa'Sb",
    "'s", "I'm", "don't", "we'll've", "they're", "'S 'T 'RE 'VE 'M 'LL 'D", "it''s", "'ſ", "rock'n'roll", "’s don’t", "'", "''", "' s", "'sa",
    "👍", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "🏳️‍🌈", "❤️", "☺", "e\u0301", "\u0301", "a\u0300\u0301\u0302", "Å Å Å", "ﬁ ﬂ", "ß ẞ", "İı", "ǅ", "ª º",
    "…", "—–-", "“quoted”", "«a»", "¡Hola! ¿Qué?", "a,b;c:d.e!f?g", "(a)[b]{c}<d>", "!!!", "?!?!", "....", " ...", "--->", "a/b\\c|d", "~`@#$%^&*()_+-=",
    "<|im_start|>", "<|im_end|>", "a<|im_end|>b", "<|im_end|><|im_end|>", "<|im_end|", "|im_end|>", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>",
    " <|endoftext|> ", "< |endoftext|>", "<|ENDOFTEXT|>", "<tool>", "<tool>>", "a<tool>>>b", "<too", "<<tool>", "<repo_name>x",
    "𐍈𐎀𝔘𝔫𝔦", "\U0010ffff", "\ufffd\ufffe", "\U000e0001", "ก็", "नि", "\u202eabc\u202c", "\u2066x\u2069",
    "hello", " hello", "hello hello", "world", " world",
    "a" * 300, "ab" * 150, " " * 100, " " * 99 + "x", "\n" * 50, "1" * 40, "-" * 80, "=" * 33, "é" * 50, "中" * 60, "👍" * 20, "aA" * 40,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]


def texts():
    """Every character below U+0180 alone and between letters, the lists above, and random mixtures."""
    out = SENTENCES + CODE + ODD
    out += [chr(c) for c in range(1, 0x100)]
    out += ["".join("a" + chr(c) for c in range(first, first + 16)) for first in range(0, 0x180, 16)]
    rng = random.Random(7)
    parts = [t for t in SENTENCES + CODE + ODD if len(t) < 100]
    for _ in range(40):
        out.append("".join(t[rng.randrange(len(t) + 1):][:12] for t in rng.choices(parts, k=6)))
    return out


def byte_alphabet():
    """GPT-2's: a printable character for every byte."""
    codes = {b: b for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    for b in range(256):
        if b not in codes:
            codes[b] = 256 + sum(c >= 256 for c in codes.values())
    return [chr(codes[b]) for b in range(256)]


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pre_tokenizer(name):
    """As the tokenizer.json of a model of the kind has it."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    pattern = LLAMA3.replace("DIGITS", "{1,3}" if name == "llama-bpe" else "")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def make(vocabulary, kind, special):
    """A tokenizer object; special: control tokens written in a text are found."""
    model = models.BPE(
        vocab={t: i for i, t in enumerate(vocabulary["tokens"])},
        merges=[tuple(m.split(" ")) for m in vocabulary["merges"]],
        ignore_merges=kind == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer(kind)
    tokenizer.decoder = decoders.ByteLevel()
    for text, type_ in zip(vocabulary["tokens"], vocabulary["types"]):
        if type_ == USER_DEFINED or (type_ == CONTROL and special):
            token = AddedToken(text, special=type_ == CONTROL, normalized=False)
            (tokenizer.add_special_tokens if type_ == CONTROL else tokenizer.add_tokens)([token])
    return tokenizer


def small_vocabulary():
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"]
    control += ["<|start_header_id|>", "<|end_header_id|>"]
    alphabet = byte_alphabet()
    lacking = {alphabet[0x04], alphabet[0xF1]}
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=1100, initial_alphabet=alphabet, max_token_length=12)
    corpus = [t for t in texts() if "<" not in t] * 2 + ["12 123 1234 2024 1999"] * 20 + [" it's 'S\n\n  \n", "\U0001e4f0" * 8] * 10
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    merges = [m for m in merges if not lacking & set(m)]
    tokens = control + [c for c in alphabet if c not in lacking]
    tokens += list(dict.fromkeys(m.replace(" ", "") for m in merges))
    tokens += [t for t in ["hello", "Ġhello", "Ġworld"] if t not in tokens] + ["<tool>", "<tool>>"]
    types = [CONTROL] * len(control) + [NORMAL] * (len(tokens) - len(control) - 2) + [USER_DEFINED] * 2
    return {"tokens": tokens, "types": types, "merges": merges, "bos": 3, "eos": 0}


def real_vocabulary(path):
    fields = gguf.GGUFReader(path).fields
    vocabulary = {
        key: fields["tokenizer.ggml." + name].contents()
        for key, name in [("tokens", "tokens"), ("types", "token_type"), ("merges", "merges")]
    }
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    return vocabulary, fields["tokenizer.chat_template"].contents()


def ids_of(vocabulary, kind, special, all_texts):
    encodings = make(vocabulary, kind, special).encode_batch(all_texts, add_special_tokens=False)
    return [e.ids for e in encodings]


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_SPACED = """{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}"""
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The part of Llama 3.1's that a conversation without tools runs through.
LLAMA31_CHAT = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0].role == "system" %}{%- set first = messages[0].content | trim %}{%- set rest = messages[1:] %}
{%- else %}{%- set first = "" %}{%- set rest = messages %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" + first + "<|eot_id|>" }}
{%- for m in rest %}{{- "<|start_header_id|>" + m.role + "<|end_header_id|>\\n\\n" + m.content | trim + "<|eot_id|>" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif %}"""


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "Hello, how are you?")],
    [message("system", "Be brief."), message("user", "What is 2+2?")],
    [message("user", "Hi"), message("assistant", "Hello! How can I help?")],
    [message("system", ""), message("user", ""), message("assistant", "")],
    [
        message("system", "You answer in German.\n\n- politely\n- 12 words"),
        message("user", "  What's the weather?  \n"),
        message("assistant", "Es ist schön — 20 °C."),
        message("user", "\n\nund morgen?\t"),
        message("assistant", "Regen.\n"),
    ],
    [message("user", "one"), message("user", "two"), message("assistant", "3"), message("assistant", "4")],
    [message("user", "def f(x):\n    return x * 2\n"), message("assistant", "日本語 👍🏽 'quoted' \"text\"")],
    [message("assistant", "I begin."), message("user", "a<b>c | d"), message("system", "late")],
    [message("user", "<b>not a tool</b> 1234567"), message("assistant", "ok <| im_end |> ok")],
]


def chat_cases(vocabulary, kind, jinja, bos):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make(vocabulary, kind, True), chat_template=jinja, bos_token=bos, clean_up_tokenization_spaces=False
    )
    return [
        {
            "messages": conversation,
            "add_generation_prompt": prompt,
            "ids": tokenizer.apply_chat_template(conversation, add_generation_prompt=prompt, tokenize=True, return_dict=False),
        }
        for conversation in CONVERSATIONS
        for prompt in (False, True)
    ]


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="ascii") as f:
        json.dump(value, f, separators=(",", ":"))
        f.write("\n")


def main():
    path, folder = sys.argv[1:]
    real, real_jinja = real_vocabulary(path)
    small = small_vocabulary()
    all_texts = texts()
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()

    kinds = ["smollm", "gpt-2", "llama-bpe", "qwen2"]
    small["texts"] = all_texts
    small["ids"] = {k: ids_of(small, k, False, all_texts) for k in kinds}
    small["special"] = ids_of(small, "smollm", True, all_texts)
    write(folder, "tokenizer_small.json", small)
    ids, special = (ids_of(real, "smollm", s, all_texts) for s in (False, True))
    write(folder, "tokenizer_smollm2.json", {"digest": digest, "texts": all_texts, "ids": ids, "special": special})

    write(
        folder,
        "chat_templates.json",
        {
            "small": [
                {"template": t, "jinja": jinja, "cases": chat_cases(small, kind, jinja, "<|begin_of_text|>"), "pre": kind}
                for t, kind, jinja in [
                    ("chatml", "smollm", CHATML),
                    ("chatml", "qwen2", CHATML_SPACED),
                    ("smollm2", "smollm", real_jinja),
                    ("llama3", "llama-bpe", LLAMA3_CHAT),
                    ("llama3.1", "llama-bpe", LLAMA31_CHAT),
                ]
            ],
            "smollm2": {"digest": digest, "cases": chat_cases(real, "smollm", real_jinja, "<|im_start|>")},
        },
    )


if __name__ == "__main__":
    main()
