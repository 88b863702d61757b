"""llama.cpp as a judge, by the package xllamacpp: log-probabilities and token ids, in one thread and f32.

Optional: available() says why not when the package is not there.  The server that the package brings listens on
127.0.0.1 while a model is open.
"""

import json
import urllib.request

import numpy

try:
    import xllamacpp
except ImportError as error:
    xllamacpp, reason = None, str(error)

ANY_TOKEN = 100


def available():
    """None, or why llama.cpp cannot be asked."""
    return None if xllamacpp else f"llama.cpp is not asked: {reason}"


class Model:
    """A GGUF file, with a GGUF adapter over it or none."""

    def __init__(self, path, adapter=None, context=64):
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_parallel = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.no_extra_bufts = True
        params.warmup = False
        params.verbosity = 0
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = adapter, 1.0
            params.lora_adapters = [lora]
        self.server = xllamacpp.Server(params)
        # whatever the environment says of proxies
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(self, path, body):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with self.opener.open(request) as reply:
            return json.load(reply)

    def log_probabilities(self, ids):
        """Of every token behind these."""
        # the probabilities are told with a token that is text: so one is drawn, which changes no probability
        reply = self.post("/completion", {"prompt": ids, "n_predict": 1, "n_probs": 1 << 20, "temperature": -1,
                                          "logit_bias": [[ANY_TOKEN, 1e6]], "cache_prompt": False})
        pairs = {entry["id"]: entry["logprob"] for entry in reply["completion_probabilities"][0]["top_logprobs"]}
        return numpy.array([pairs[i] for i in range(len(pairs))])

    def tokenize(self, text, special):
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": special})["tokens"]


def log_softmax(logits):
    shifted = logits.astype(numpy.float64) - logits.max()
    return shifted - numpy.log(numpy.exp(shifted).sum())
