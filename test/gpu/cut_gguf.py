#!/usr/bin/env python3
"""Write the first N layers of a GGUF model as a model of its own.

    test/gpu/cut_gguf.py IN.gguf N OUT.gguf

For machines that only smaller files reach: the first four layers of SmolLM2-135M in Q4_1 are 42 MB
instead of 94. Everything but the layer count and the dropped tensors stays byte for byte. Needs nothing
beside Python. The format is ggml's docs/gguf.md, version 3.
"""

import re
import struct
import sys

ALIGNMENT = 32
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            sys.exit("the file is truncated")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code):
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def string(self):
        return self.take(self.number("Q"))

    def skip_value(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner, n = self.number("I"), self.number("Q")
            if inner in SCALARS:
                self.take(SCALARS[inner] * n)
            else:
                for _ in range(n):
                    self.skip_value(inner)
        elif kind in SCALARS:
            self.take(SCALARS[kind])
        else:
            sys.exit(f"value type {kind} is unknown")


def read_metadata(r, n, layers):
    """The key/value pairs as they stand, the layer count replaced."""
    pairs, found = [], False
    for _ in range(n):
        start = r.at
        key = r.string()
        kind = r.number("I")
        value = r.at
        r.skip_value(kind)
        raw = r.data[start : r.at]
        if key.endswith(b".block_count") and kind == UINT32:
            if struct.unpack("<I", r.data[value : r.at])[0] < layers:
                sys.exit("the model has fewer layers")
            raw = r.data[start:value] + struct.pack("<I", layers)
            found = True
        if key == b"general.alignment" and struct.unpack("<I", r.data[value : r.at])[0] != ALIGNMENT:
            sys.exit("the alignment is not 32")
        pairs.append(raw)
    if not found:
        sys.exit("no layer count")
    return pairs


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    path, layers, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with open(path, "rb") as file:
        r = Reader(file.read())
    if r.take(4) != b"GGUF" or r.number("I") != 3:
        sys.exit("not a GGUF file of version 3")
    n_tensors, n_pairs = r.number("Q"), r.number("Q")
    pairs = read_metadata(r, n_pairs, layers)

    tensors = []
    for _ in range(n_tensors):
        name = r.string()
        n = r.number("I")
        shape = r.take(8 * n)
        kind, offset = r.number("I"), r.number("Q")
        tensors.append((name, n, shape, kind, offset))
    base = (r.at + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    ends = sorted(t[4] for t in tensors) + [len(r.data) - base]

    head, body = b"", b""
    kept = 0
    for name, n, shape, kind, offset in tensors:
        layer = re.match(rb"blk\.(\d+)\.", name)
        if layer and int(layer.group(1)) >= layers:
            continue
        end = min(e for e in ends if e > offset)
        head += struct.pack("<Q", len(name)) + name + struct.pack("<I", n) + shape
        head += struct.pack("<IQ", kind, len(body))
        body += r.data[base + offset : base + end]
        body += b"\0" * (-len(body) % ALIGNMENT)
        kept += 1
    start = b"GGUF" + struct.pack("<IQQ", 3, kept, n_pairs) + b"".join(pairs) + head
    with open(out, "wb") as file:
        file.write(start + b"\0" * (-len(start) % ALIGNMENT) + body)


if __name__ == "__main__":
    main()
