#!/usr/bin/env python3
"""Ask `serve --listen` by OpenAI's own client: models, completions, chats, streams, formats, errors.

    python test/golden/check_openai.py build/pg_finetune_engine MODEL.gguf

Needs the package openai; prints "skip: …" and ends well where it is not there.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

try:
    import openai
except ImportError as error:
    print(f"skip: {error}")
    sys.exit(0)

KEY = "sk-check-openai-0123456789"


def post(path, route, body):
    """One request on the Unix socket, where no key is asked for."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("POST", route, json.dumps(body))
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    connection.close()


def start(engine, folder):
    key = os.path.join(folder, "key")
    with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
        f.write(KEY + "\n")
    log = os.path.join(folder, "log")
    process = subprocess.Popen([engine, "serve", "--socket", os.path.join(folder, "socket"), "--threads", "2",
                                "--listen", "127.0.0.1:0", "--api-key-file", key], stderr=open(log, "w"))
    for _ in range(1200):
        port = re.search(r"port (\d+)", open(log).read())
        if port and "serving on" in open(log).read():
            return process, int(port.group(1))
        assert process.poll() is None, open(log).read()
        time.sleep(0.05)
    raise SystemExit("the engine did not start")


def refused(call, kind, words):
    try:
        call()
    except kind as error:
        assert words in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}")


SCHEMA = {"type": "object", "additionalProperties": False, "required": ["kind", "list", "ok"],
          "properties": {"kind": {"enum": ["one", "two"]}, "ok": {"type": "boolean"},
                         "list": {"type": "array", "items": {"type": "null"}, "maxItems": 3}}}


def check(client, stranger):
    messages = [{"role": "user", "content": "Hi"}]
    assert [m.id for m in client.models.list()] == ["m"]

    done = client.completions.create(model="m", prompt="Hello", max_tokens=9, temperature=0, logprobs=2)
    assert done.choices[0].finish_reason in ("length", "stop") and done.usage.prompt_tokens > 0
    assert len(done.choices[0].logprobs.tokens) == len(done.choices[0].logprobs.token_logprobs) > 0
    pieces = client.completions.create(model="m", prompt="Hello", max_tokens=9, temperature=0, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == done.choices[0].text

    asked = dict(model="m", messages=messages, max_tokens=12, temperature=1, seed=3)
    chat = client.chat.completions.create(n=2, logprobs=True, top_logprobs=2, **asked)
    assert [c.index for c in chat.choices] == [0, 1] and chat.choices[0].message.role == "assistant"
    assert len(chat.choices[1].logprobs.content[0].top_logprobs) == 2
    text, usage = "", None
    for piece in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        text += "".join(c.delta.content or "" for c in piece.choices)
        usage = piece.usage
    assert text == chat.choices[0].message.content and usage.completion_tokens > 0
    again = client.chat.completions.create(**asked)
    assert again.usage.prompt_tokens_details.cached_tokens > 0

    for seed in range(5):
        strict = client.chat.completions.create(
            model="m", messages=messages, temperature=1, seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}})
        value = json.loads(strict.choices[0].message.content)
        assert list(value) == list(SCHEMA["properties"]) and value["kind"] in ("one", "two"), value

    refused(lambda: client.chat.completions.create(model="none", messages=messages), openai.NotFoundError, "not loaded")
    refused(lambda: client.chat.completions.create(model="m", messages=[]), openai.BadRequestError, "messages")
    refused(lambda: client.chat.completions.create(
        model="m", messages=messages, response_format={"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "string", "pattern": "a"}}}), openai.BadRequestError, '"pattern"')
    refused(lambda: stranger.models.list(), openai.AuthenticationError, "right key")


def main():
    engine, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(engine, folder)
        try:
            post(os.path.join(folder, "socket"), "/v1/load_model", {"model": "m", "path": os.path.abspath(model)})
            url = f"http://127.0.0.1:{port}/v1"
            check(openai.OpenAI(base_url=url, api_key=KEY, max_retries=0),
                  openai.OpenAI(base_url=url, api_key="sk-another-key-01234", max_retries=0))
        finally:
            process.terminate()
            process.wait()
    print(f"ok: openai {openai.__version__}")


if __name__ == "__main__":
    main()
