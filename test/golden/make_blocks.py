#!/usr/bin/env python3
"""Random blocks of every type that GGUF files store, and the values that the package gguf gives for them.

    python test/golden/make_blocks.py test/golden/blocks.gguf

Needs gguf and numpy. For each type a tensor "TYPE.stored" [ROWS, columns] and its values "TYPE.values" in F32.
Scales are of every size: zero of either sign, subnormal, the largest; all finite, since what comes of others is
no number that a model could use.
"""

import sys

import gguf
import numpy as np
from gguf.quants import dequantize

# Where a block of a type has its f16 factors.
FACTORS = {
    "F16": None, "BF16": None, "F32": None,
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
EXTREMES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0xbc00], np.uint16)
ROWS = 9
COLUMNS = 256


def finite_halves(random, n):
    """f16 of every exponent; every third one of the extremes."""
    bits = random.integers(0, 1 << 16, n, dtype=np.uint16)
    bits[bits & 0x7c00 == 0x7c00] ^= 0x4000
    bits[::3] = random.choice(EXTREMES, len(bits[::3]))
    return bits


def stored(random, name):
    """Bytes of ROWS rows."""
    if name == "F32":
        bits = random.integers(0, 1 << 32, (ROWS, COLUMNS), dtype=np.uint32)
        bits[bits & 0x7f800000 == 0x7f800000] ^= 0x40000000
        return bits.view(np.uint8)
    if name == "F16":
        return finite_halves(random, ROWS * COLUMNS).reshape(ROWS, COLUMNS).view(np.uint8)
    if name == "BF16":
        bits = random.integers(0, 1 << 16, (ROWS, COLUMNS), dtype=np.uint16)
        bits[bits & 0x7f80 == 0x7f80] ^= 0x4000
        return bits.view(np.uint8)
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // values, size), dtype=np.uint8)
    for at in FACTORS[name]:
        blocks[:, at:at + 2] = finite_halves(random, len(blocks)).reshape(-1, 1).view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main():
    random = np.random.default_rng(20)
    writer = gguf.GGUFWriter(sys.argv[1], "blocks")
    for name in FACTORS:
        qtype = gguf.GGMLQuantizationType[name]
        data = stored(random, name)
        if name == "F32":
            values = data.view(np.float32)
        elif name == "F16":
            values = data.view(np.float16).astype(np.float32)
        else:
            values = dequantize(data, qtype)
        assert values.shape == (ROWS, COLUMNS) and values.dtype == np.float32 and np.isfinite(values).all(), name
        # F32 and F16 are told by the array's own type
        if name in ("F32", "F16"):
            writer.add_tensor(name.lower() + ".stored", data.view(np.float32 if name == "F32" else np.float16))
        else:
            writer.add_tensor(name.lower() + ".stored", data, raw_dtype=qtype)
        writer.add_tensor(name.lower() + ".values", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
