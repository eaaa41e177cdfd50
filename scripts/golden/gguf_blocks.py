"""Blocks of every element type that the GGUF reader knows, with the values the `gguf` package decodes them to.

blocks.gguf    tensors TYPE (random bytes with chosen scales) and TYPE.f32 (their values), and one metadata key per value type
quantize.gguf  tensor `values` (F32) and what `gguf` quantises it to, one tensor per type
"""

import numpy as np
from gguf import GGUFValueType, GGUFWriter, quants
from gguf.constants import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES

from common import FIXTURES

FOLDER = FIXTURES / "gguf"
# Offsets of the half-precision scales in a block.
SCALES = {
    T.F16: [],
    T.BF16: [],
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
}
# Largest, smallest normal, smallest subnormal, both zeros, infinity, ordinary.
EXTREMES = np.array([65504, -65504, 2**-14, 2**-24, 0, -0.0, np.inf, 1, -0.0123], dtype=np.float16)


def blocks(rng, qtype):
    """Two rows; every byte random, every scale from EXTREMES or ordinary, no NaN scale."""
    block_len, block_bytes = GGML_QUANT_SIZES[qtype]
    if not SCALES[qtype]:
        values = np.concatenate([EXTREMES, rng.normal(size=55)]).astype(np.float32).reshape(2, 32)
        return values.astype(np.float16) if qtype == T.F16 else quants.quantize(values, qtype)
    count = 2 * len(EXTREMES)
    data = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for offset in SCALES[qtype]:
        ordinary = rng.normal(scale=0.02, size=count - len(EXTREMES)).astype(np.float16)
        scale = rng.permutation(np.concatenate([EXTREMES, ordinary]))
        data[:, offset : offset + 2] = scale.astype("<f2").view(np.uint8).reshape(count, 2)
    return data.reshape(2, -1)


def write_blocks():
    rng = np.random.default_rng(7)
    writer = GGUFWriter(FOLDER / "blocks.gguf", "test")
    writer.add_uint8("v.u8", 255)
    writer.add_int8("v.i8", -128)
    writer.add_uint16("v.u16", 65535)
    writer.add_int16("v.i16", -32768)
    writer.add_uint32("v.u32", 2**32 - 1)
    writer.add_int32("v.i32", -(2**31))
    writer.add_float32("v.f32", 1e-5)
    writer.add_bool("v.bool", True)
    writer.add_string("v.string", "grüße, 世界")
    writer.add_array("v.strings", ["a", "", "▁b"])
    writer.add_array("v.ints", [1, -2, 3])
    writer.add_array("v.floats", [0.5, -1e4])
    writer.add_array("v.bools", [True, False])
    writer.add_uint64("v.u64", 2**64 - 1)
    writer.add_int64("v.i64", -(2**63))
    writer.add_float64("v.f64", 0.1)
    writer.add_key_value("v.nested", [[1, 2], [3]], GGUFValueType.ARRAY, GGUFValueType.ARRAY)
    for qtype in SCALES:
        data = blocks(rng, qtype)
        values = quants.dequantize(data, qtype)
        name = qtype.name.lower()
        writer.add_tensor(name, data, raw_dtype=qtype)
        writer.add_tensor(f"{name}.f32", np.ascontiguousarray(values, dtype=np.float32))
    finish(writer)


def write_quantize():
    rng = np.random.default_rng(8)
    values = rng.normal(scale=0.05, size=(12, 64)).astype(np.float32)
    values[0] = 0
    values[1] = 3.25
    values[2, ::2] *= 1e-6
    values[3] *= 1e3
    values[4, :32] = np.arange(32) - 16  # halves and ties of the scaled codes
    values[5, :32] = np.arange(32) / 2
    values[6, 0] = -9
    values[7, 3:5] = [2, -2]
    writer = GGUFWriter(FOLDER / "quantize.gguf", "test")
    writer.add_tensor("values", values)
    for qtype in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        writer.add_tensor(qtype.name.lower(), quants.quantize(values, qtype), raw_dtype=qtype)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    with np.errstate(all="ignore"):
        write_blocks()
        write_quantize()
