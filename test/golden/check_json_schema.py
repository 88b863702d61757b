#!/usr/bin/env python3
"""Judge answers in a response_format: the package jsonschema validates every one.

    python test/golden/check_json_schema.py build/pg_finetune_engine cache/SmolLM2-135M-Instruct.Q4_1.gguf [N]

N answers (1,000) at temperature 1, 32 at once, over 20 schemas.  All have to parse and to fit their schemas, also
those that nothing but MAX_TOKENS brings to their end.  Then the cost: the same prompts for the same numbers of tokens, with and without a format, by
turns, as tokens a second.  Needs the package jsonschema, no network.
"""

import concurrent.futures
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import jsonschema

AT_ONCE = 32
MAX_TOKENS = 300
ROUNDS = 5
STRING = {"type": "string"}
CITY = {"enum": ["Vienna", "Prague", "Łódź", "São Paulo", "東京"]}


def record(required=None, **properties):
    return {"type": "object", "properties": properties, "additionalProperties": False,
            "required": list(properties) if required is None else required}


def array(items, least, most):
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SCHEMAS = [
    record(spam={"type": "boolean"}),
    record(city=CITY),
    record(name=STRING, age={"type": "integer"}),
    record(name=STRING, address=record(city=CITY, number={"type": "integer"})),
    record(a=record(b=record(c=record(d={"enum": [1, 2.5, None, True, "x"]})))),
    record(tags=array({"enum": ["red", "green", "blue"]}, 1, 4)),
    record(points=array(record(x={"type": "integer"}, y={"type": "integer"}), 0, 3)),
    array({"type": "boolean"}, 2, 5),
    array(array({"type": "integer"}, 1, 2), 1, 3),
    {"enum": ["yes", "no", "perhaps"]},
    {"const": {"fixed": [1, 2, {"deep": None}]}},
    record(value={"anyOf": [{"type": "integer"}, CITY, {"type": "null"}]}),
    {"anyOf": [record(kind={"const": "circle"}, radius={"type": "number"}),
               record(kind={"const": "square"}, side={"type": "number"})]},
    {"$defs": {"node": record(value={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
     "$ref": "#/$defs/node"},
    {"$defs": {"tree": record(name=CITY, children=array({"$ref": "#/$defs/tree"}, 0, 2))}, "$ref": "#/$defs/tree"},
    {"$defs": {"money": record(amount={"type": "number"}, currency={"enum": ["EUR", "USD"]})},
     **record(price={"$ref": "#/$defs/money"}, discount={"$ref": "#/$defs/money"})},
    record(required=["a"], a={"type": "integer"}, b={"type": "boolean"}, c=CITY),
    record(required=[], a={"type": "boolean"}, b=array(CITY, 0, 1)),
    record(value={"type": ["string", "null"]}, score={"type": ["number", "boolean"]}),
    record(title=STRING, summary=STRING, language={"enum": ["de", "en", "pl"]}, rating={"type": "integer"}),
]
TOPICS = ["a letter from a friend", "the weather in spring", "a broken washing machine", "a journey by night train",
          "an invoice that came twice"]


class Engine:
    """The engine on a socket of its own; post() may be called by several threads."""

    def __init__(self, program, model, folder):
        self.path = os.path.join(folder, "socket")
        self.log = os.path.join(folder, "log")
        self.process = subprocess.Popen([program, "serve", "--socket", self.path, "--threads", str(os.cpu_count())],
                                        stderr=open(self.log, "w", encoding="utf-8"))
        self.connections = threading.local()
        while not os.path.exists(self.path):
            if self.process.poll() is not None:
                raise SystemExit(open(self.log, encoding="utf-8").read())
            time.sleep(0.05)
        self.post("/v1/load_model", {"model": "base", "path": os.path.abspath(model)})

    def post(self, route, body):
        if not hasattr(self.connections, "one"):
            self.connections.one = http.client.HTTPConnection("localhost")
            self.connections.one.sock = socket.socket(socket.AF_UNIX)
            self.connections.one.sock.connect(self.path)
        self.connections.one.request("POST", route, json.dumps(body))
        reply = self.connections.one.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise SystemExit(f"{route}: {reply.status} {text.decode()}")
        return json.loads(text)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def request(i, formatted, tokens):
    body = {"model": "base", "temperature": 1, "seed": i, "max_tokens": tokens,
            "messages": [{"role": "user", "content": f"Write a record in JSON about {TOPICS[i % len(TOPICS)]}, number {i}."}]}
    if formatted:
        body["response_format"] = {"type": "json_schema",
                                   "json_schema": {"name": "answer", "schema": SCHEMAS[i % len(SCHEMAS)]}}
    return body


def judged(i, answer):
    """What is wrong with an answer; None: nothing."""
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] != "stop":
        return f"schema {i % len(SCHEMAS)}, seed {i}: ended by {choice['finish_reason']}: {text[:200]!r}"
    try:
        jsonschema.validate(json.loads(text), SCHEMAS[i % len(SCHEMAS)], cls=jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"schema {i % len(SCHEMAS)}, seed {i}: {str(error).splitlines()[0]}: {text[:200]!r}"
    return None


def rate(engine, pool, wanted, formatted):
    """Tokens a second of requests (number, tokens), all of them asked for at once."""
    start = time.monotonic()
    answers = list(pool.map(lambda w: engine.post("/v1/chat/completions", request(w[0], formatted, w[1])), wanted))
    return sum(a["usage"]["completion_tokens"] for a in answers) / (time.monotonic() - start)


def main():
    program, model, *rest = sys.argv[1:]
    number = int(rest[0]) if rest else 1000
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        engine = Engine(program, model, folder)
        try:
            answers = list(pool.map(
                lambda i: engine.post("/v1/chat/completions", request(i, True, MAX_TOKENS)), range(number)))
            wrong = [w for w in map(judged, range(number), answers) if w]
            print("\n".join(wrong[:20]))
            tokens = [a["usage"]["completion_tokens"] for a in answers]
            print(f"{number} answers over {len(SCHEMAS)} schemas, {sum(tokens)} tokens, the longest {max(tokens)}: "
                  f"{len(wrong)} wrong")
            # what a format makes of a prompt is as long without it, when nothing else ends the answer
            wanted = [(i, tokens[i]) for i in range(min(number, 4 * AT_ONCE)) if tokens[i] >= 10]
            ratios = []
            for _ in range(ROUNDS):
                plain, formatted = (rate(engine, pool, wanted, f) for f in (False, True))
                ratios.append(formatted / plain)
                print(f"{len(wanted)} answers: {plain:.1f} tokens/s without a format, {formatted:.1f} with one")
            print(f"with a format {statistics.median(ratios):.3f} of the tokens/s without one (median of {ROUNDS})")
        finally:
            engine.stop()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
