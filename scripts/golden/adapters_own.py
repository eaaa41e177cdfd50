"""Adapters of methods that peft does not have, with logits that PyTorch computes from the methods' formulas.

Usage: python scripts/golden/adapters_own.py [NAME ...]      writes fixtures/adapters/NAME/

The files have the layout of peft with a peft_type of our own. The reference is a transformers model with hooks that
apply each formula where its paper places it; it shares no code with the implementation that is tested.
"""

import json
import shutil
import sys
import warnings

import torch
import transformers as hf
from adapters import LENGTHS, SEED, base
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import save_file
from torch.nn import functional as F

D, LAYERS, CLASSES = 32, 2, 3


class Case:
    """One adapter: its settings, its random tensors by name, and how a model uses them."""

    def __init__(self, tiny, peft_type, settings):
        self.tiny, self.peft_type, self.settings = tiny, peft_type, settings
        self.tensors = {}
        # Stored but not trained.
        self.frozen = {}
        self.random = generator(SEED)
        self.llama = tiny == "llama"
        self.cls = hf.LlamaForCausalLM if self.llama else hf.BertForSequenceClassification
        self.cache = None

    def new(self, name, *shape, around=0.0, scale=0.3):
        value = torch.nn.Parameter(around + scale * torch.randn(shape, generator=self.random))
        self.tensors[name] = value
        return value

    def block(self, i):
        return f"model.layers.{i}" if self.llama else f"bert.encoder.layer.{i}"

    def modules(self, model, i):
        """The places of block i: last map of attention, last map and input of the feed-forward, the norms."""
        if self.llama:
            b = model.model.layers[i]
            norms = {"input_layernorm": b.input_layernorm, "post_attention_layernorm": b.post_attention_layernorm}
            return b.self_attn.o_proj, b.mlp.down_proj, b.mlp, norms
        b = model.bert.encoder.layer[i]
        norms = {"attention.output.LayerNorm": b.attention.output.LayerNorm, "output.LayerNorm": b.output.LayerNorm}
        return b.attention.output.dense, b.output.dense, b.intermediate, norms

    def network(self, name, dim):
        down, down_bias = self.new(f"{name}.down.weight", dim, D), self.new(f"{name}.down.bias", dim)
        up, up_bias = self.new(f"{name}.up.weight", D, dim), self.new(f"{name}.up.bias", D)
        return lambda x: torch.relu(x @ down.T + down_bias) @ up.T + up_bias

    def train_norms(self, model, i):
        for name, module in self.modules(model, i)[3].items():
            for kind in ("weight", "bias"):
                if getattr(module, kind, None) is not None:
                    value = self.new(f"{self.block(i)}.{name}.{kind}", D, around=1.0 if kind == "weight" else 0.0)
                    setattr(module, kind, value)

    def gate(self, name):
        weight, bias = self.new(f"{name}.weight", 1, D), self.new(f"{name}.bias", 1)

        def g(x):
            own = torch.sigmoid(x @ weight.T + bias)
            return own if self.llama else own.mean(dim=-2, keepdim=True)

        return g


    def keep(self, name, value):
        self.frozen[name] = value.contiguous()
        return value


def after(module, f):
    module.register_forward_hook(lambda m, inputs, out: f(out))


def houlsby(case, model):
    for i in range(LAYERS):
        attention, mlp, _, _ = case.modules(model, i)
        for module, half in ((attention, "attention_adapter"), (mlp, "mlp_adapter")):
            net = case.network(f"{case.block(i)}.{half}", case.settings["bottleneck_dim"])
            after(module, lambda h, net=net: h + net(h))
        case.train_norms(model, i)


def iaa(case, model):
    """Networks behind both halves of each block, and others beside a half, a block or all blocks, behind its last norm."""

    def plain(name, dim):
        down, up = case.new(f"{name}.down.weight", dim, D), case.new(f"{name}.up.weight", D, dim)
        return lambda x: torch.relu(x @ down.T) @ up.T

    s, blocks = case.settings, model.model.layers if case.llama else model.bert.encoder.layer
    for i in range(LAYERS):
        for module, half in zip(case.modules(model, i), ("attention", "mlp")):
            net = plain(f"{case.block(i)}.{half}_adapter", s["inside_dim"])
            after(module, lambda h, net=net: h + net(h))

    def beside(name, begin, end):
        net, seen = plain(name, s["aside_dim"]), {}
        begin.register_forward_pre_hook(lambda m, x, k: seen.update(x=x[0] if x else k["hidden_states"]), with_kwargs=True)
        after(end, lambda y: (y[0] + net(seen["x"]), *y[1:]) if isinstance(y, tuple) else y + net(seen["x"]))

    if s["aside"] == "model":
        beside(f"{case.block(LAYERS - 1)}.mlp_aside", blocks[0], blocks[-1])
    for i, block in enumerate(blocks):
        if s["aside"] == "layer":
            beside(f"{case.block(i)}.mlp_aside", block, block)
        elif s["aside"] == "sub_layer":
            attention, mlp, first, norms = case.modules(model, i)
            ends = (attention, mlp) if case.llama else tuple(norms.values())
            starts = tuple(norms.values()) if case.llama else (block, first)
            for half, begin, end in zip(("attention", "mlp"), starts, ends):
                beside(f"{case.block(i)}.{half}_aside", begin, end)


def pfeiffer(case, model):
    for i in range(LAYERS):
        net = case.network(f"{case.block(i)}.mlp_adapter", case.settings["bottleneck_dim"])
        if case.llama:
            block, seen = model.model.layers[i], {}
            block.post_attention_layernorm.register_forward_pre_hook(lambda m, x, seen=seen: seen.update(x=x[0]))
            after(block.mlp, lambda m, net=net, seen=seen: m + net(seen["x"] + m))
        else:
            norm = model.bert.encoder.layer[i].output.LayerNorm

            def forward(s, norm=norm, net=net):
                def layer_norm(v):
                    return F.layer_norm(v, (D,), norm.weight, norm.bias, norm.eps)

                return layer_norm(s + net(layer_norm(s)))

            norm.forward = forward


def parallel(case, model):
    for i in range(LAYERS):
        net = case.network(f"{case.block(i)}.mlp_adapter", case.settings["bottleneck_dim"])
        _, last, first, _ = case.modules(model, i)
        seen = {}
        first.register_forward_pre_hook(lambda m, x, seen=seen: seen.update(x=x[0]))
        after(last, lambda h, net=net, seen=seen: h + case.settings["scaling"] * net(seen["x"]))


def compacter(case, model):
    n, rank = case.settings["phm_dim"], case.settings["phm_rank"]
    dim = -(-max(1, D // case.settings["reduction_factor"]) // n) * n
    rule = case.new("phm_rule", n, n, n)

    def phm(name, d_in, d_out):
        left, right = case.new(f"{name}.left", n, d_in // n, rank, scale=0.8), case.new(f"{name}.right", n, rank, d_out // n, scale=0.8)
        bias = case.new(f"{name}.bias", d_out)
        weight = sum(torch.kron(rule[i].contiguous(), left[i] @ right[i]) for i in range(n))
        return lambda x: x @ weight + bias

    for i in range(LAYERS):
        attention, mlp, _, _ = case.modules(model, i)
        for module, half in ((attention, "attention_adapter"), (mlp, "mlp_adapter")):
            down, up = phm(f"{case.block(i)}.{half}.down", D, dim), phm(f"{case.block(i)}.{half}.up", dim, D)
            after(module, lambda h, down=down, up=up: h + up(F.gelu(down(h), approximate="tanh")))
        case.train_norms(model, i)


def ssf(case, model):
    for name, module in model.named_modules():
        norm = "norm" in name.lower()
        linear = isinstance(module, torch.nn.Linear) and name not in ("lm_head", "classifier")
        if not (norm or linear):
            continue
        width = module.out_features if linear else D
        scale = case.new(f"{name}.ssf_scale", width, around=1.0)
        shift = case.new(f"{name}.ssf_shift", width) if getattr(module, "bias", None) is not None else 0.0
        after(module, lambda y, scale=scale, shift=shift: scale * y + shift)


def prefix(case, model):
    """Keys and values [layer][key or value] of [heads, positions, head_dim]."""
    config, rows = model.config, case.settings["num_virtual_tokens"]
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = D // config.num_attention_heads
    table = case.new("prompt_embeddings", rows, LAYERS * 2 * heads * width)
    return table.view(rows, LAYERS, 2, heads, width).permute(1, 2, 3, 0, 4)


def with_prefix_cache(case, kv):
    case.cache = lambda: hf.DynamicCache([(kv[i][0][None].clone(), kv[i][1][None].clone()) for i in range(LAYERS)])


def bert_attention(attention, kv, gate):
    """Attention of one sequence over a prefix, with gates on it."""
    heads, width = attention.num_attention_heads, attention.attention_head_size

    def forward(hidden_states, *args, **kwargs):
        g = gate(hidden_states)
        split = lambda x: x[0].view(-1, heads, width).transpose(0, 1)
        q, k, v = split(attention.query(hidden_states)), split(attention.key(hidden_states)), split(attention.value(hidden_states))
        k, v = torch.cat([kv[0] * g[0], k], 1), torch.cat([kv[1] * g[0], v], 1)
        p = torch.softmax(q @ k.transpose(1, 2) / width**0.5, -1)
        return (p @ v).transpose(0, 1).reshape(1, -1, heads * width), p

    attention.forward = forward


def mam(case, model):
    kv = prefix(case, model)
    if case.llama:
        with_prefix_cache(case, kv)
    else:
        for i in range(LAYERS):
            bert_attention(model.bert.encoder.layer[i].attention.self, kv[i], lambda x: torch.ones(1, 1, 1))
            # Positions of the tokens start after the prefix.
        case.first_position = case.settings["num_virtual_tokens"]
    parallel(case, model)


def unipelt(case, model):
    s = case.settings
    kv = prefix(case, model)
    if case.llama:
        with_prefix_cache(case, kv)
    else:
        case.first_position = s["num_virtual_tokens"]
    for i in range(LAYERS):
        block = model.model.layers[i] if case.llama else model.bert.encoder.layer[i]
        attention = block.self_attn if case.llama else block.attention.self
        for name in ("q_proj", "v_proj") if case.llama else ("query", "value"):
            path = f"{case.block(i)}.{'self_attn' if case.llama else 'attention.self'}.{name}"
            module = getattr(attention, name)
            a, b = case.new(f"{path}.lora_A.weight", s["r"], D), case.new(f"{path}.lora_B.weight", module.out_features, s["r"])
            gate = case.gate(f"{path}.gate")
            module.register_forward_hook(
                lambda m, x, y, a=a, b=b, gate=gate: y + gate(x[0]) * (s["lora_alpha"] / s["r"]) * (x[0] @ a.T @ b.T)
            )
        gate = case.gate(f"{case.block(i)}.prefix_gate")
        if case.llama:

            def scale(m, args, kwargs, i=i, gate=gate):
                g = gate(kwargs["hidden_states"])[0, 0]
                layer = kwargs["past_key_values"].layers[i]
                layer.keys, layer.values = layer.keys * g, layer.values * g

            attention.register_forward_pre_hook(scale, with_kwargs=True)
        else:
            bert_attention(attention, kv[i], gate)
        net, gate = case.network(f"{case.block(i)}.mlp_adapter", s["bottleneck_dim"]), case.gate(f"{case.block(i)}.mlp_adapter.gate")
        after(case.modules(model, i)[1], lambda h, net=net, gate=gate: h + gate(h) * net(h))


def linear(case, model, weight):
    """Puts `weight(path, W)` in place of the weight of every target, as a function of what is trained."""
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.rsplit(".", 1)[-1] in case.settings["target_modules"]:
            changed = weight(path, module.weight.detach())
            module.forward = lambda x, w=changed, module=module: F.linear(x, w, module.bias)


def basis(case, path, w, k):
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    return u[:, :k], s[:k], v[:k]


def lora_xs(case, model):
    r, alpha = case.settings["r"], case.settings["lora_alpha"]

    def weight(path, w):
        u, s, v = basis(case, path, w, r)
        b, a = case.keep(f"{path}.lora_B.weight", u * s), case.keep(f"{path}.lora_A.weight", v)
        return w + alpha / r * (b @ case.new(f"{path}.lora_R", r, r, scale=1.0) @ a)

    linear(case, model, weight)


def svft(case, model):
    def weight(path, w):
        k = min(w.shape)
        u, _, v = basis(case, path, w, k)
        case.keep(f"{path}.svft_U", u), case.keep(f"{path}.svft_V", v)
        places = [i * k + j for i in range(k) for j in range(k) if abs(i - j) <= case.settings["band"]]
        elements, places = case.new(f"{path}.svft_M", len(places)), torch.tensor(places)
        case.keep(f"{path}.svft_indices", places.int())
        return w + u @ torch.zeros(k * k).index_put((places,), elements).reshape(k, k) @ v

    linear(case, model, weight)


def sora(case, model):
    r, alpha = case.settings["r"], case.settings["lora_alpha"]

    def weight(path, w):
        a, b = case.new(f"{path}.lora_A.weight", r, w.shape[1]), case.new(f"{path}.lora_B.weight", w.shape[0], r)
        return w + alpha / r * (b * case.new(f"{path}.lora_gate", r, scale=1.0)) @ a

    linear(case, model, weight)


def peqa(case, model):
    def weight(path, w):
        groups = w.reshape(w.shape[0], -1, case.settings["group_size"])
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2 ** case.settings["bits"] - 1)
        zero = (-low / scale).round()
        integers = ((groups / scale).round() + zero).clamp(0, 2 ** case.settings["bits"] - 1) - zero
        change = case.new(f"{path}.peqa_scale", w.shape[0], groups.shape[1])
        return (integers * scale * (1 + change[..., None])).reshape(w.shape)

    linear(case, model, weight)


LINEAR = {"bert": ["query", "value"], "llama": ["down_proj", "q_proj"]}


def on(tiny, **settings):
    return dict(exclude_modules=None, layers_to_transform=None, layers_pattern=None, target_modules=LINEAR[tiny]) | settings


def on_maps(peft_type, hooks, **settings):
    return {tiny: (peft_type, on(tiny, **settings), hooks) for tiny in LINEAR}


# The same for methods that change the weights of chosen maps, by model.
ON_MAPS = {
    "lora-xs": on_maps("LORA_XS", lora_xs, r=4, lora_alpha=6.0, lora_dropout=0.0),
    "svft": on_maps("SVFT", svft, pattern="banded", band=2),
    "sora": on_maps("SORA", sora, r=4, lora_alpha=8.0, lora_dropout=0.0, use_rslora=False, init_lora_weights=True, rank_pattern={},
                    alpha_pattern={}, threshold=0.0001),
    "peqa": on_maps("PEQA", peqa, bits=3, group_size=16),
}

# method: (peft_type, settings, hooks)
METHODS = {
    "houlsby": ("HOULSBY", dict(bottleneck_dim=6, non_linearity="relu", train_layer_norm=True, layers_to_transform=None), houlsby),
    **{
        name: ("IAA", dict(aside=aside, inside_dim=4, aside_dim=6, non_linearity="relu", bias=False), iaa)
        for name, aside in (("iaa", "layer"), ("iaa-sub-layer", "sub_layer"), ("iaa-model", "model"))
    },
    "pfeiffer": ("PFEIFFER", dict(bottleneck_dim=6, non_linearity="relu", layers_to_transform=None), pfeiffer),
    "parallel-adapter": (
        "PARALLEL_ADAPTER",
        dict(bottleneck_dim=6, non_linearity="relu", scaling=2.0, beside="mlp", layers_to_transform=None), parallel),
    "compacter": (
        "COMPACTER",
        dict(phm_dim=4, phm_rank=2, reduction_factor=4, non_linearity="gelu_new", train_layer_norm=True, layers_to_transform=None),
        compacter),
    "ssf": ("SSF", dict(target_modules="all-linear", exclude_modules=None, norms=True, shift="where_bias"), ssf),
    "mam": (
        "MAM",
        dict(num_virtual_tokens=3, prefix_projection=False, encoder_hidden_size=None, bottleneck_dim=6, non_linearity="relu",
             scaling=4.0, inference_mode=True), mam),
    "adapter-drop": (
        "ADAPTER_DROP", dict(bottleneck_dim=6, non_linearity="relu", max_dropped=0, dropped=0), pfeiffer),
    "unipelt": (
        "UNIPELT",
        dict(r=2, lora_alpha=4.0, target_modules=None, num_virtual_tokens=3, bottleneck_dim=6, non_linearity="relu"), unipelt),
}


def logits(case, model, ids):
    extra = {}
    if case.cache is not None:
        extra["past_key_values"] = case.cache()
        ones = case.settings["num_virtual_tokens"] + ids.shape[1]
        extra["attention_mask"] = torch.ones(1, ones, dtype=torch.long)
    first = getattr(case, "first_position", 0)
    if first:
        extra["position_ids"] = torch.arange(first, first + ids.shape[1])[None]
    return model(input_ids=ids, **extra).logits[0]


TARGETS = (0, 2)


def loss(case, found, sequences):
    """Mean over the next tokens of all sequences, or over their classes."""
    if case.llama:
        terms = [F.cross_entropy(y[:-1], ids[0, 1:], reduction="sum") for y, ids in zip(found, sequences)]
        return sum(terms) / sum(ids.shape[1] - 1 for ids in sequences)
    return sum(F.cross_entropy(y[None], torch.tensor([c]), reduction="sum") for y, c in zip(found, TARGETS)) / len(found)


def main(names):
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    for name in names or [f"{tiny}-{method}" for method in [*METHODS, *ON_MAPS] for tiny in ("llama", "bert")]:
        tiny, method = name.split("-", 1)
        peft_type, settings, hooks = ON_MAPS[method][tiny] if method in ON_MAPS else METHODS[method]
        case = Case(tiny, peft_type, settings)
        model_dir, folder = FIXTURES / "models" / tiny, FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        sequences = token_ids(SEED + 1, LENGTHS, 64)
        plain = base(model_dir, case.cls)
        before = [logits(Case(tiny, peft_type, settings), plain, ids) for ids in sequences]
        model = base(model_dir, case.cls)
        if not case.llama:
            model.classifier.weight, model.classifier.bias = case.new("classifier.weight", CLASSES, D), case.new("classifier.bias", CLASSES)
        hooks(case, model)
        found = [logits(case, model, ids) for ids in sequences]
        tensors = {f"seq{s}.input_ids": ids[0] for s, ids in enumerate(sequences)}
        tensors |= {f"seq{s}.logits": y.detach() for s, y in enumerate(found)}
        effect = max((y - b).abs().max().item() for y, b in zip(found, before))
        total = loss(case, found, sequences)
        gradients = torch.autograd.grad(total, list(case.tensors.values()))
        tensors |= {"loss": total.detach()[None]} | {f"grad.{name}": g for name, g in zip(case.tensors, gradients)}
        if effect < 0.1:
            raise SystemExit(f"{name}: the adapter moves the logits by {effect:.1e} only")
        keys = {
            "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
            "seqS.logits": "[tokens, vocab], or [labels] for classification",
            "loss": "[1], mean over the next tokens of all sequences, or over their classes",
            "grad.NAME": "gradient of that loss",
        }
        write_golden(
            folder, tensors,
            header(SEED, keys, purpose=f"{method} by its formula", model=str(model_dir), model_class=case.cls.__name__, classes=TARGETS,
                   trainable_parameters=sum(v.numel() for v in case.tensors.values()), largest_logit_change=round(effect, 4),
                   computed_in="float32, eager attention"))
        stored = {f"base_model.model.{k}": v.detach().contiguous() for k, v in (case.tensors | case.frozen).items()}
        save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_model.safetensors").chmod(0o644)
        common = dict(
            peft_type=peft_type, task_type="CAUSAL_LM" if case.llama else "SEQ_CLS", base_model_name_or_path=str(model_dir), revision=None,
            inference_mode=True, auto_mapping=None, peft_version="0.21.2", modules_to_save=None if case.llama else ["classifier", "score"])
        (folder / "adapter_config.json").write_text(json.dumps(common | settings, indent=2, sort_keys=True))
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name:24} {size/1e3:6.1f} kB  {len(stored):3} tensors  moves logits by {effect:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
