"""A model in three parts, as the `gguf` Python package splits it: fixtures/gguf/split/mistral-0000N-of-00003.gguf.

The weights are those of fixtures/models/mistral, in the order of rows that llama.cpp's converter writes; its golden file has the
logits that `transformers` computes from them. `output.weight` is in the last part.
"""

import json
import shutil

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import load_file

from common import FIXTURES

MODEL, FOLDER = FIXTURES / "models/mistral", FIXTURES / "gguf/split"
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight, heads):
    """Rows of a head from halves to pairs, as in llama.cpp's convert_hf_to_gguf.py."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors(weights, config):
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = permute(weight, config["num_attention_heads" if ours == "attn_q" else "num_key_value_heads"])
            yield f"blk.{layer}.{ours}.weight", weight
    yield "output_norm.weight", weights["model.norm.weight"]
    yield "output.weight", weights["lm_head.weight"]


config = json.loads((MODEL / "config.json").read_text())
weights = {}
for file in sorted(MODEL.glob("model-*.safetensors")):
    weights |= load_file(file)
shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)
writer = GGUFWriter(FOLDER / "mistral.gguf", "llama", split_max_tensors=8)
writer.add_type("model")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_key_length(config["head_dim"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_sliding_window(config["sliding_window"])
writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
for name, values in tensors(weights, config):
    writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
writer.write_header_to_file(FOLDER / "mistral.gguf")
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
