"""ONNX files and the weights that are in them.

fixtures/onnx/torchscript.onnx, dynamo.onnx   a BERT classifier by both exporters of PyTorch
fixtures/onnx/int8.onnx, int8-channel.onnx    the first, quantized by ONNX Runtime: a scale for a tensor, for each column
fixtures/onnx/dequantize.onnx                 DequantizeLinear: along a dimension, without zero points, of 16 and 32 bits
fixtures/onnx/types.onnx                      one tensor of each type, as bytes and in the field of its type
fixtures/onnx/bad/NAME.onnx                   what is refused
fixtures/onnx/golden.safetensors              FILE/NAME: weights, of int8 files as onnx's reference evaluator dequantizes them
"""

import io
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import BertConfig, BertForSequenceClassification

from common import FIXTURES, generator, header, write_golden

FOLDER = FIXTURES / "onnx"
SEED = 31


def classifier(equal):
    """With `equal`, two biases that are the same, which the older exporter stores once under two names, and the newer under one."""
    config = BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=6, num_labels=3, attn_implementation="eager",
    )
    model = BertForSequenceClassification(config).eval()
    model.config.return_dict = False
    gen = generator(SEED)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=gen) * 0.3
            value.copy_(torch.zeros_like(value) if equal and name.endswith("key.bias") else drawn)
    return model


def export(model, path, dynamo):
    ids = torch.tensor([[1, 2, 3, 4]])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        shapes = {"dynamic_shapes": ({1: "tokens"},) * 3} if dynamo else {}
        inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
        torch.onnx.export(model, inputs, buffer, input_names=names, dynamo=dynamo, **shapes)
    exported = onnx.load_from_string(buffer.getvalue())
    if dynamo:
        # Stack traces and the like, with paths of this machine.
        for node in exported.graph.node:
            kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
        del exported.graph.metadata_props[:], exported.metadata_props[:]
        for value in [*exported.graph.value_info, *exported.graph.input, *exported.graph.output, *exported.graph.initializer]:
            del value.metadata_props[:]
    onnx.save(exported, path)


def dequantized(codes, scale, zero, axis=1):
    inputs = [("x", codes), ("s", scale)] + ([] if zero is None else [("z", zero)])
    value = lambda name, a: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
    node = helper.make_node("DequantizeLinear", [name for name, _ in inputs], ["y"], axis=axis)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, codes.shape)
    graph = helper.make_graph([node], "g", [value(*pair) for pair in inputs], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return torch.from_numpy(ReferenceEvaluator(model).run(None, dict(inputs))[0])


def quantize(model, name, per_channel):
    """Quantizes, and dequantizes each tensor of the file beside the weight that it was."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = FOLDER / f"{name}.onnx"
    quantize_dynamic(FOLDER / "torchscript.onnx", path, per_channel=per_channel, weight_type=QuantType.QInt8 if per_channel else QuantType.QUInt8)
    quantized = onnx.load(path)
    held = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    state, found = model.state_dict(), {}
    for key in [key for key in held if key.endswith("_quantized")]:
        base = key.removesuffix("_quantized")
        value = dequantized(held[key], held[base + "_scale"], held[base + "_zero_point"])
        # The weight whose numbers these are, within rounding.
        near = [k for k, w in state.items() for v in (value, value.T) if w.shape == v.shape and (w - v).abs().max() < 0.02]
        assert len(set(near)) == 1, (key, near)
        name = near[0]
        found[name] = value if value.shape == state[name].shape and (state[name] - value).abs().max() < 0.02 else value.T
    for key, value in state.items():
        if key not in found and value.is_floating_point():
            found[key] = value
    return found


def model_of(nodes, tensors, outputs=("y",)):
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], outs, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def save(model, name):
    path = FOLDER / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def raw(name, array):
    return numpy_helper.from_array(array, name)


def typed(name, kind, shape, values):
    return helper.make_tensor(name, kind, shape, values)


def dequantize():
    rng, found, tensors, nodes = np.random.default_rng(SEED), {}, [], []
    integers = lambda kind, shape: rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
    cases = {  # type, shape, axis, number of scales, zero points
        "rows.weight": (np.int8, (4, 3), 0, 4, True),
        "columns.weight": (np.uint8, (4, 3), -1, 3, True),
        "middle": (np.int8, (2, 3, 2), 1, 3, True),
        "whole": (np.int8, (5,), 0, 1, False),
        "wide": (np.uint16, (2, 3), 1, 3, True),
        "short": (np.int16, (6,), 0, 1, True),
        "sum.bias": (np.int32, (5,), 0, 1, False),
    }
    for name, (kind, shape, axis, count, zero) in cases.items():
        codes = integers(kind, shape) if kind != np.int32 else rng.integers(-9999, 9999, shape, dtype=kind)
        many = (count,) if count > 1 else ()
        scale = rng.uniform(0.001, 0.1, many).astype(np.float32)
        zeros = integers(kind, many) if zero else None
        zeros = np.asarray(zeros, dtype=kind) if zero else None
        # Half of them as ONNX Runtime writes them: numbers in fields.
        tensors.append(typed(f"{name}_quantized", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape, codes.flatten().tolist()) if count > 1 else raw(f"{name}_quantized", codes))
        tensors.append(raw(f"{name}_scale", np.asarray(scale)))
        inputs = [f"{name}_quantized", f"{name}_scale"]
        if zero:
            tensors.append(raw(f"{name}_zero_point", zeros))
            inputs.append(f"{name}_zero_point")
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_floats"], axis=axis))
        found[name] = dequantized(codes, np.asarray(scale), zeros, axis)
    # The product transposes, whatever made the floats.
    nodes.append(helper.make_node("MatMul", ["x", "columns.weight_floats"], ["y"]))
    found["columns.weight"] = found["columns.weight"].T
    save(model_of(nodes, tensors), "dequantize")
    return found


def types():
    values = np.array([0.0, -0.0, 1.5, -2.25, 3e-5, 65504.0], dtype=np.float64).reshape(2, 3)
    tensors, found = [], {}
    for name, kind, dtype in [("float", TensorProto.FLOAT, np.float32), ("half", TensorProto.FLOAT16, np.float16), ("double", TensorProto.DOUBLE, np.float64)]:
        array = values.astype(dtype)
        tensors += [raw(f"{name}.raw", array), typed(f"{name}.typed", kind, (2, 3), array.flatten().tolist())]
        for way in ("raw", "typed"):
            found[f"{name}.{way}"] = torch.from_numpy(array.astype(np.float32))
    bfloat = torch.tensor(values).to(torch.bfloat16)
    bits = bfloat.view(torch.int16).numpy().astype(np.uint16)
    as_raw = onnx.TensorProto(name="bfloat.raw", data_type=TensorProto.BFLOAT16, dims=(2, 3), raw_data=bits.tobytes())
    as_typed = onnx.TensorProto(name="bfloat.typed", data_type=TensorProto.BFLOAT16, dims=(2, 3), int32_data=bits.flatten().tolist())
    tensors += [as_raw, as_typed]
    found["bfloat.raw"] = found["bfloat.typed"] = bfloat.float()
    # Positions and shapes are no weights.
    tensors += [raw("position_ids", np.arange(4)), raw("mask", np.ones(3, dtype=bool)), raw("onnx::Lost_7", np.ones(3, dtype=np.float32))]
    tensors += [raw("scalar", np.asarray(0.5, dtype=np.float32)), raw("empty", np.zeros((0, 3), dtype=np.float32))]
    found["scalar"], found["empty"] = torch.tensor(0.5), torch.zeros(0, 3)
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors += [raw("onnx::Gemm_1", w), raw("onnx::Gemm_2", np.arange(3, dtype=np.float32)), raw("onnx::Gemm_3", w), raw("onnx::Gather_4", w)]
    nodes = [
        helper.make_node("Gemm", ["x", "onnx::Gemm_1", "onnx::Gemm_2"], ["a"], name="/first/Gemm"),
        helper.make_node("Gemm", ["a", "onnx::Gemm_3"], ["b"], name="/deep.0/second/Gemm", transB=1),
        helper.make_node("Gather", ["onnx::Gather_4", "position_ids"], ["c"], name="/table/Gather"),
        helper.make_node("Constant", [], ["/third/Constant_output_0"], name="/third/Constant", value=raw("", w + 1)),
        helper.make_node("MatMul", ["b", "/third/Constant_output_0"], ["y"], name="/third/MatMul_1"),
        helper.make_node("Identity", ["float.raw"], ["tied.weight"]),
        # A matrix of the model's own that is no layer's weight keeps its layout.
        helper.make_node("MatMul", ["b", "float.typed"], ["d"]),
    ]
    first, second = torch.from_numpy(w), torch.from_numpy(w)
    found |= {"first.weight": first.T, "first.bias": torch.arange(3.0), "deep.0.second.weight": second, "table.weight": first, "third.weight": first.T + 1, "tied.weight": found["float.raw"]}
    save(model_of(nodes, tensors), "types")
    return found


def bad():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    ok = raw("w", w)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])

    def one(name, tensor=None, nodes=(product,), more=()):
        save(model_of(list(nodes), [ok if tensor is None else tensor, *more]), f"bad/{name}")

    def changed(**fields):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(ok)
        for key, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, key)[:]
                getattr(tensor, key).extend(value)
            else:
                setattr(tensor, key, value)
        return tensor

    external = changed(data_location=TensorProto.EXTERNAL, raw_data=b"")
    external.external_data.add(key="location", value="../../etc/passwd")
    one("external", external)
    one("short", changed(raw_data=w.tobytes()[:-1]))
    one("long", changed(raw_data=w.tobytes() + b"\0"))
    one("few-fields", onnx.TensorProto(name="w", data_type=1, dims=[2, 3], float_data=[1, 2]))
    one("twice-held", changed(float_data=[1.0]))
    one("negative", changed(dims=[-2, -3]))
    one("huge", changed(dims=[2**40, 2**40]))
    one("many-elements", changed(dims=[2**60]))
    one("complex", changed(data_type=TensorProto.COMPLEX64))
    one("code-range", onnx.TensorProto(name="w_quantized", data_type=TensorProto.INT8, dims=[1], int32_data=[200]), [helper.make_node("DequantizeLinear", ["w_quantized", "s"], ["y"])], [raw("s", np.float32([1]))])
    segment = changed()
    segment.segment.begin = 0
    one("segment", segment)
    one("two-of-a-name", more=[ok])
    one("nameless", changed(name=""))
    codes, scale = raw("w_quantized", w.astype(np.int8)), raw("w_scale", np.float32([1, 2]))
    one("scales", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["y"], axis=1)], [scale])
    one("infinite-scale", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["y"])], [raw("w_scale", np.float32([np.inf]))])
    one("axis", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["y"], axis=-9)], [scale])
    one("zero-type", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "z"], ["y"], axis=0)], [scale, raw("z", np.uint8([1, 2]))])
    one("blocks", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["y"], axis=1, block_size=2)], [scale])
    one("no-scale", codes, [helper.make_node("MatMulInteger", ["x", "w_quantized"], ["y"])])
    one("computed-zero", codes, [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "x"], ["y"], axis=0)], [scale])
    one("alpha", nodes=[helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)])
    one("fused", nodes=[helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")])
    many = model_of([helper.make_node("Identity", ["big"], [f"w{i}"]) for i in range(200)], [raw("big", np.zeros(4000, np.float32))])
    save(many, "bad/aliases")
    sparse = model_of([product], [ok])
    sparse.graph.sparse_initializer.add(dims=[4])
    save(sparse, "bad/sparse")
    save(model_of([], []), "bad/no-weights")
    (FOLDER / "bad/no-graph.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    golden = {}
    for name, dynamo in (("dynamo", True), ("torchscript", False)):
        model = classifier(equal=not dynamo)
        export(model, FOLDER / f"{name}.onnx", dynamo)
        golden |= {f"{name}/{k}": v for k, v in model.state_dict().items() if v.is_floating_point()}
    # A constant of the graph whose name could be a parameter's.
    golden["dynamo/zeros"] = torch.tensor(0.0)
    golden |= {f"int8/{k}": v for k, v in quantize(model, "int8", False).items()}
    golden |= {f"int8-channel/{k}": v for k, v in quantize(model, "int8-channel", True).items()}
    golden |= {f"dequantize/{k}": v for k, v in dequantize().items()}
    golden |= {f"types/{k}": v for k, v in types().items()}
    bad()
    import importlib.metadata as md

    keys = {"FILE/NAME": "weight NAME of FILE.onnx; linear layers [out, in]"}
    head = header(SEED, keys, onnx=md.version("onnx"), onnxruntime=md.version("onnxruntime"))
    write_golden(FOLDER, golden, head)


main()
