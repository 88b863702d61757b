#!/usr/bin/env python3
"""Tokenise a text on one core with bench_tokenizer and with tokenizers, in turns, and print the medians of processor time.

    python bench/compare_tokenizers.py build/bench/bench_tokenizer DIRECTORY TEXT [BYTES] [RUNS]

DIRECTORY holds a tokenizer.json, TEXT is cut into documents of about BYTES (4096) at line ends; 0: it is one.
"""

import os
import statistics
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer


def documents(text, size):
    out = []
    at = 0
    while at < len(text):
        end = text.find(b"\n", at + size) if size else -1
        end = len(text) if end < 0 else end + 1
        out.append(text[at:end].decode())
        at = end
    return out


def main():
    program, directory, path = sys.argv[1:4]
    size = int(sys.argv[4]) if len(sys.argv) > 4 else 4096
    runs = int(sys.argv[5]) if len(sys.argv) > 5 else 5
    text = open(path, "rb").read()
    parts = documents(text, size)
    reference = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    reference.encode_special_tokens = True
    ours = subprocess.Popen([program, directory, path, str(size), "ask"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    times = {"bench_tokenizer": [], "tokenizers": []}
    for _ in range(runs):
        ours.stdin.write("\n")
        ours.stdin.flush()
        seconds, tokens = ours.stdout.readline().split()
        times["bench_tokenizer"].append(float(seconds))
        start = time.process_time()
        encodings = reference.encode_batch_fast(parts, add_special_tokens=False)
        times["tokenizers"].append(time.process_time() - start)
        assert sum(len(e.ids) for e in encodings) == int(tokens), "the two differ"
        del encodings
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"{name:16} {seconds:.3f} s  {len(text) / 1e6 / seconds:.1f} MB/s")
    print(f"ratio            {medians['tokenizers'] / medians['bench_tokenizer']:.2f}")


if __name__ == "__main__":
    main()
