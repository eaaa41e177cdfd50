"""Tiny image models with reference logits, losses, gradients and statistics.

Usage: python scripts/golden/vision.py      writes fixtures/vision/NAME/

`vit` is transformers' ViTForImageClassification with drawn weights. `efficientvmamba` and `vmamba` are stated again in PyTorch from
Pei et al., arXiv 2403.09977, and Liu et al., arXiv 2401.10166, with a plain loop for the recurrence: transformers has no such classes.
Images are not square, so that rows and columns cannot stand in for each other; stages have odd sides.

Each folder has `model.safetensors` (in the shapes of files), `config.json`, and `golden.safetensors`: `pixels` [images, height, width, 3]
scaled, `logits` and `hidden` as used, `train.loss` of the cross-entropy with batch statistics, `grad.NAME` of every weight,
`statistic.NAME` of batch norms behind that pass.
"""

import dataclasses
import json
import math

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, write_golden
from safetensors.torch import save_file

OUT = FIXTURES / "vision"
LABELS = 5
IMAGES = 3


def write(name, config, state, tensors, seed):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_golden(folder, tensors, header(seed, sorted(tensors)))


def images(seed, height, width):
    g = generator(seed)
    return torch.randn(IMAGES, height, width, 3, generator=g), torch.randint(0, LABELS, (IMAGES,), generator=g)


def labels_of(config):
    names = [f"LABEL_{i}" for i in range(LABELS)]
    config["id2label"] = {str(i): n for i, n in enumerate(names)}
    config["label2id"] = {n: i for i, n in enumerate(names)}
    return config


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    seed = 20250
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=[13, 20], patch_size=4, num_labels=LABELS, initializer_range=0.3
    )
    model = ViTForImageClassification(config).eval()
    g = generator(seed)
    for name, p in model.named_parameters():
        # Norms and biases, which begin at 1 and 0.
        if p.dim() == 1 or "token" in name:
            p.data += 0.3 * torch.randn(p.shape, generator=g)
    pixels, classes = images(seed, 13, 20)
    model.save_pretrained(OUT / "vit")
    output = model(pixels.permute(0, 3, 1, 2), output_hidden_states=True)
    loss = F.cross_entropy(output.logits, classes)
    loss.backward()
    from safetensors.torch import load_file

    # Files keep the names of the first release; gradients get them by their values' order there.
    saved = load_file(OUT / "vit" / "model.safetensors")
    grads, current = {}, dict(model.named_parameters())
    for name, value in saved.items():
        match = [k for k, v in current.items() if v.shape == value.shape and torch.equal(v, value)]
        assert len(match) == 1, (name, match)
        grads[f"grad.{name}"] = current[match[0]].grad
    tensors = {"pixels": pixels, "classes": classes, "logits": output.logits, "train.loss": loss.reshape(1), **grads}
    write_golden(OUT / "vit", tensors, header(seed, sorted(tensors)))
    (OUT / "vit" / "model.safetensors").chmod(0o644)
    raw = json.loads((OUT / "vit" / "config.json").read_text())
    (OUT / "vit" / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def silu(x):
    return x * torch.sigmoid(x)


def layer_norm(w, path, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w[f"{path}.weight"], w[f"{path}.bias"], eps)


def linear(w, path, x):
    return F.linear(x, w[f"{path}.weight"], w.get(f"{path}.bias"))


def depthwise(w, path, x):
    y = F.conv2d(x.permute(0, 3, 1, 2), w[f"{path}.weight"], w.get(f"{path}.bias"), padding=1, groups=x.shape[-1])
    return y.permute(0, 2, 3, 1)


class Statistics(dict):
    """Values behind a pass in training, under the names of files."""


def batch_norm(w, path, x, training, statistics, eps=1e-5, momentum=0.1):
    mean, var = w[f"{path}.running_mean"].clone(), w[f"{path}.running_var"].clone()
    flat = x.reshape(-1, x.shape[-1])
    y = F.batch_norm(flat, mean, var, w[f"{path}.weight"], w[f"{path}.bias"], training, momentum, eps)
    if training:
        statistics[f"{path}.running_mean"], statistics[f"{path}.running_var"] = mean, var
    return y.reshape(x.shape)


def selective_scan(w, path, u, rank, state):
    """u [images, length, channels], step by step."""
    projected = linear(w, f"{path}.x_proj", u)
    delta = F.softplus(linear(w, f"{path}.dt_proj", projected[..., :rank]))
    b, c = projected[..., rank : rank + state], projected[..., rank + state :]
    a = -torch.exp(w[f"{path}.A_log"])
    h = torch.zeros(u.shape[0], u.shape[2], state)
    ys = []
    for t in range(u.shape[1]):
        d = delta[:, t, :, None]
        h = torch.exp(d * a) * h + d * b[:, t, None, :] * u[:, t, :, None]
        ys.append((h * c[:, t, None, :]).sum(-1) + w[f"{path}.D"] * u[:, t])
    return torch.stack(ys, 1)


def atrous(x):
    n, h, w_, c = x.shape
    x = F.pad(x, (0, 0, 0, w_ % 2, 0, h % 2))
    flat = lambda t: t.reshape(n, -1, c)
    turned = lambda t: flat(t.transpose(1, 2))
    return [flat(x[:, 0::2, 0::2]), turned(x[:, 1::2, 0::2]), flat(x[:, 0::2, 1::2]), turned(x[:, 1::2, 1::2])]


def unatrous(ys, h, w_):
    n, _, c = ys[0].shape
    hh, ww = (h + 1) // 2, (w_ + 1) // 2
    y = torch.zeros(n, 2 * hh, 2 * ww, c)
    y[:, 0::2, 0::2] = ys[0].reshape(n, hh, ww, c)
    y[:, 1::2, 0::2] = ys[1].reshape(n, ww, hh, c).transpose(1, 2)
    y[:, 0::2, 1::2] = ys[2].reshape(n, hh, ww, c)
    y[:, 1::2, 1::2] = ys[3].reshape(n, ww, hh, c).transpose(1, 2)
    return y[:, :h, :w_]


def cross(x):
    n, _, _, c = x.shape
    lines, columns = x.reshape(n, -1, c), x.transpose(1, 2).reshape(n, -1, c)
    return [lines, columns, lines.flip(1), columns.flip(1)]


def uncross(ys, h, w_):
    n, _, c = ys[0].shape
    lines, columns = ys[0] + ys[2].flip(1), ys[1] + ys[3].flip(1)
    return lines.reshape(n, h, w_, c) + columns.reshape(n, w_, h, c).transpose(1, 2)


def ss2d(w, path, x, pattern, state):
    h, w_, c = x.shape[1:]
    rank = math.ceil(c / 16)
    u, z = linear(w, f"{path}.in_proj", x).chunk(2, -1)
    u = silu(depthwise(w, f"{path}.conv2d", u))
    split, merge = (atrous, unatrous) if pattern == "atrous" else (cross, uncross)
    ys = [selective_scan(w, f"{path}.scans.{k}", s, rank, state) for k, s in enumerate(split(u))]
    y = layer_norm(w, f"{path}.out_norm", merge(ys, h, w_)) * silu(z)
    return linear(w, f"{path}.out_proj", y)


def gate(w, path, x):
    s = layer_norm(w, f"{path}.norm", x).mean((1, 2))
    s = torch.sigmoid(linear(w, f"{path}.fc2", F.gelu(linear(w, f"{path}.fc1", s))))
    return x * s[:, None, None, :]


def evss(w, path, x, config, training, statistics):
    y = layer_norm(w, f"{path}.norm", x)
    sums = []
    if config.get("use_scan", True):
        a = ss2d(w, f"{path}.ss2d", y, config["scan_pattern"], config["ssm_state_size"])
        sums.append(gate(w, f"{path}.gate", a) if f"{path}.gate.fc1.weight" in w else a)
    if config.get("use_conv_branch", False):
        b = depthwise(w, f"{path}.conv.depthwise", y)
        b = F.gelu(batch_norm(w, f"{path}.conv.norm", b, training, statistics))
        b = linear(w, f"{path}.conv.pointwise", b)
        name = "conv_gate" if f"{path}.conv_gate.fc1.weight" in w else "gate"
        sums.append(gate(w, f"{path}.{name}", b) if f"{path}.{name}.fc1.weight" in w else b)
    return x + sum(sums)


def inverted_residual(w, path, x, training, statistics):
    y = F.relu(batch_norm(w, f"{path}.norm1", linear(w, f"{path}.expand", x), training, statistics))
    y = F.relu(batch_norm(w, f"{path}.norm2", depthwise(w, f"{path}.depthwise", y), training, statistics))
    s = F.relu(linear(w, f"{path}.se.squeeze", y.mean((1, 2))))
    y = y * torch.sigmoid(linear(w, f"{path}.se.excite", s))[:, None, None, :]
    return x + batch_norm(w, f"{path}.norm3", linear(w, f"{path}.project", y), training, statistics)


def merging(w, path, x):
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return linear(w, f"{path}.reduction", layer_norm(w, f"{path}.norm", x))


def pyramid(w, config, pixels, training=False):
    statistics = Statistics()
    p, base = config["patch_size"], "backbone"
    x = F.conv2d(pixels.permute(0, 3, 1, 2), w[f"{base}.patch_embed.projection.weight"], w[f"{base}.patch_embed.projection.bias"], stride=p)
    x = layer_norm(w, f"{base}.patch_embed.norm", x.permute(0, 2, 3, 1))
    for s, depth in enumerate(config["depths"]):
        if s > 0:
            x = merging(w, f"{base}.stages.{s}.downsample", x)
        for b in range(depth):
            path = f"{base}.stages.{s}.blocks.{b}"
            if config["block_types"][s] == "evss":
                x = evss(w, path, x, config, training, statistics)
            else:
                x = inverted_residual(w, path, x, training, statistics)
    hidden = layer_norm(w, f"{base}.norm", x)
    return linear(w, "classifier", hidden.mean((1, 2))), statistics


def draw(config, seed):
    """Weights of all shapes, of which the state, the ranks and the widths follow the published code."""
    g = generator(seed)
    w = {}

    def rand(name, *shape, scale=0.3, offset=0.0):
        w[name] = offset + scale * torch.randn(*shape, generator=g)

    def norm(path, d):
        rand(f"{path}.weight", d, offset=1.0)
        rand(f"{path}.bias", d)

    def lin(path, i, o, bias=True):
        rand(f"{path}.weight", o, i, scale=1.0 / math.sqrt(i))
        if bias:
            rand(f"{path}.bias", o)

    def dw(path, d, bias):
        rand(f"{path}.weight", d, 1, 3, 3)
        if bias:
            rand(f"{path}.bias", d)

    def bn(path, d):
        norm(path, d)
        rand(f"{path}.running_mean", d)
        w[f"{path}.running_var"] = 0.5 + torch.rand(d, generator=g)

    p, base, n = config["patch_size"], "backbone", config["ssm_state_size"]
    d0 = config["embed_dim"]
    rand(f"{base}.patch_embed.projection.weight", d0, 3, p, p)
    rand(f"{base}.patch_embed.projection.bias", d0)
    norm(f"{base}.patch_embed.norm", d0)
    for s, depth in enumerate(config["depths"]):
        d = d0 * 2**s
        if s > 0:
            norm(f"{base}.stages.{s}.downsample.norm", 2 * d)
            lin(f"{base}.stages.{s}.downsample.reduction", 2 * d, d, False)
        for b in range(depth):
            path = f"{base}.stages.{s}.blocks.{b}"
            if config["block_types"][s] == "evss":
                norm(f"{path}.norm", d)
                if config.get("use_scan", True):
                    e, r = 2 * d, math.ceil(d / 16)
                    lin(f"{path}.ss2d.in_proj", d, 2 * e, False)
                    dw(f"{path}.ss2d.conv2d", e, True)
                    for k in range(4):
                        q = f"{path}.ss2d.scans.{k}"
                        lin(f"{q}.x_proj", e, r + 2 * n, False)
                        lin(f"{q}.dt_proj", r, e)
                        rand(f"{q}.A_log", e, n, scale=0.5, offset=0.5)
                        rand(f"{q}.D", e, offset=1.0)
                    norm(f"{path}.ss2d.out_norm", e)
                    lin(f"{path}.ss2d.out_proj", e, d, False)
                gates = {"shared": ["gate"], "separate": ["gate", "conv_gate"], "none": []}[config.get("gate_type", "none")]
                if config.get("use_conv_branch", False):
                    dw(f"{path}.conv.depthwise", d, True)
                    bn(f"{path}.conv.norm", d)
                    lin(f"{path}.conv.pointwise", d, d)
                for name in gates:
                    norm(f"{path}.{name}.norm", d)
                    lin(f"{path}.{name}.fc1", d, d // 8)
                    lin(f"{path}.{name}.fc2", d // 8, d)
            else:
                e = 4 * d
                lin(f"{path}.expand", d, e, False)
                bn(f"{path}.norm1", e)
                dw(f"{path}.depthwise", e, False)
                bn(f"{path}.norm2", e)
                lin(f"{path}.se.squeeze", e, e // 8)
                lin(f"{path}.se.excite", e // 8, e)
                lin(f"{path}.project", e, d, False)
                bn(f"{path}.norm3", d)
    last = d0 * 2 ** (len(config["depths"]) - 1)
    norm(f"{base}.norm", last)
    lin("classifier", last, LABELS)
    return w


def own(name, seed, **changes):
    config = dict(
        architectures=["EfficientVMambaForImageClassification"],
        model_type="efficientvmamba",
        image_size=[14, 22],
        patch_size=2,
        num_channels=3,
        embed_dim=24,
        depths=[2, 1],
        block_types=["evss", "inverted_residual"],
        scan_pattern="atrous",
        use_scan=True,
        use_conv_branch=True,
        gate_type="shared",
        ssm_state_size=4,
        drop_path_rate=0.0,
        dtype="float32",
    )
    config.update(changes)
    w = draw(config, seed)
    height, width = config["image_size"]
    pixels, classes = images(seed, height, width)
    tensors = {"pixels": pixels, "classes": classes, "logits": pyramid(w, config, pixels)[0]}
    for name_, value in w.items():
        value.requires_grad_("running_" not in name_)
    logits, statistics = pyramid(w, config, pixels, training=True)
    loss = F.cross_entropy(logits, classes)
    loss.backward()
    tensors["train.loss"] = loss.reshape(1)
    tensors |= {f"statistic.{k}": v for k, v in statistics.items()}
    tensors |= {f"grad.{k}": v.grad for k, v in w.items() if v.requires_grad}
    if config["model_type"] == "vmamba":
        keep = ("architectures", "model_type", "image_size", "patch_size", "num_channels", "embed_dim", "depths", "ssm_state_size", "drop_path_rate", "dtype")
        config = {k: config[k] for k in keep}
    write(name, labels_of(config), w, tensors, seed)



@torch.no_grad()
def vit_case(raw, pixels, changes, title):
    """What a change of config.json makes of the first image: the normed class token, or why the reference has none."""
    import transformers as hf

    entry = {"name": title, "changes": changes}
    folder = OUT / "vit"
    try:
        config = hf.ViTConfig.from_dict({**raw, **changes})
        config._attn_implementation = "eager"
        plain = {k: v.shape for k, v in hf.ViTForImageClassification(hf.ViTConfig.from_pretrained(folder)).state_dict().items()}
        shapes = {k: v.shape for k, v in hf.ViTForImageClassification(config).state_dict().items()}
        changed = sorted({k for k in plain | shapes if plain.get(k) != shapes.get(k)})
        if changed:
            return entry | {"shapes": changed[0]}
        model = hf.ViTForImageClassification.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        hidden = model.vit(pixels[:1].permute(0, 3, 1, 2)).last_hidden_state
        return entry | {"last": [round(v, 6) for v in hidden[0, 0, :16].tolist()]}
    except Exception as error:  # what the reference refuses
        return entry | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}


def vit_keys():
    """Every key of the configuration class, and what one away from its default changes, as config_keys.py has it of text models."""
    import transformers as hf
    from config_keys import one_line_a_case, other
    from safetensors.torch import load_file

    raw = json.loads((OUT / "vit" / "config.json").read_text())
    pixels = load_file(OUT / "vit" / "golden.safetensors")["pixels"]
    keys, cases = {}, [vit_case(raw, pixels, {}, "as it is")]
    for field in dataclasses.fields(hf.ViTConfig):
        default = None if field.default is dataclasses.MISSING else field.default
        keys[field.name] = default if isinstance(default, (int, float, str, bool)) else None
        if field.name in ("dtype", "transformers_version", "architectures", "problem_type"):
            continue
        sides = {"image_size": [[17, 20], 20], "patch_size": [[4, 5], 2]}
        for value in sides.get(field.name, [other("vit", field.name, default, raw)]):
            if value is not None and value != raw.get(field.name, default):
                cases.append(vit_case(raw, pixels, {field.name: value}, f"{field.name}: {value}"))
    for act in ("relu", "silu", "tanh"):
        cases.append(vit_case(raw, pixels, {"hidden_act": act}, f"hidden_act: {act}"))
    result = {"transformers": hf.__version__, "model": "vit", "keys": keys, "cases": cases}
    (FIXTURES / "configs/vit.json").write_text(one_line_a_case(result))
    print({k: sum(k in c for c in cases) for k in ("last", "shapes", "error")})


vit()
vit_keys()
own("efficientvmamba", 20251)
own("efficientvmamba-separate", 20252, gate_type="separate", depths=[1, 1], block_types=["inverted_residual", "evss"], scan_pattern="cross")
own("efficientvmamba-conv", 20253, use_scan=False, depths=[1], block_types=["evss"])
own("efficientvmamba-scan", 20254, use_conv_branch=False, gate_type="none", depths=[1], block_types=["evss"])
own("vmamba", 20255, architectures=["VMambaForImageClassification"], model_type="vmamba", block_types=["evss"] * 2, scan_pattern="cross", use_conv_branch=False, gate_type="none", depths=[1, 1])
