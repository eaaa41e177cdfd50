"""The losses of the tiny Mambas of models.py and their gradients by every weight.

Usage: python scripts/golden/mamba.py      writes fixtures/models/{mamba,mamba2}/gradients.*

The loss is the mean over the next tokens of both sequences of golden.safetensors, each run by itself. The script also checks that
transformers computes the same logits for them in one batch with padding on the right, and token by token with its cache.
"""

import torch
import transformers as hf
from common import FIXTURES, header, write_golden
from models import SEED
from safetensors.torch import load_file

CLASSES = {"mamba": hf.MambaForCausalLM, "mamba2": hf.Mamba2ForCausalLM}


def padded(ids):
    longest = max(len(row) for row in ids)
    fill = [torch.zeros(longest - len(row), dtype=torch.long) for row in ids]
    batch = torch.stack([torch.cat((row, pad)) for row, pad in zip(ids, fill)])
    mask = torch.stack([torch.cat((torch.ones_like(row), pad)) for row, pad in zip(ids, fill)])
    return batch, mask


@torch.no_grad()
def check_forms(model, ids, golden):
    # Padding on the left gets into the convolution there by the bias of `in_proj`.
    batch, mask = padded(ids)
    logits = model(input_ids=batch, attention_mask=mask).logits
    for s, row in enumerate(ids):
        worst = (logits[s, : len(row)] - golden[f"seq{s}.logits"]).abs().max().item()
        if worst > 1e-4:
            raise SystemExit(f"sequence {s} with padding: {worst:.2e}")
    for s, row in enumerate(ids):
        out = model(input_ids=row[None, :3], use_cache=True)
        found = [out.logits[0]]
        for token in row[3:]:
            out = model(input_ids=token[None, None], cache_params=out.cache_params, use_cache=True)
            found.append(out.logits[0])
        worst = (torch.cat(found) - golden[f"seq{s}.logits"]).abs().max().item()
        if worst > 1e-4:
            raise SystemExit(f"sequence {s} token by token: {worst:.2e}")


def write(name, cls):
    folder = FIXTURES / "models" / name
    golden = load_file(folder / "golden.safetensors")
    ids = [golden[f"seq{s}.input_ids"] for s in (0, 1)]
    model = cls.from_pretrained(folder, dtype=torch.float32).eval()
    check_forms(model, ids, golden)
    losses = [
        torch.nn.functional.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="sum")
        for row in ids
    ]
    loss = sum(losses) / sum(len(row) - 1 for row in ids)
    loss.backward()
    tensors = {"loss": loss.view(1)}
    for weight, parameter in model.named_parameters():
        tensors[f"grad.{weight}"] = parameter.grad
    keys = {
        "loss": "[1] mean over the next tokens of both sequences of golden.safetensors",
        "grad.NAME": "its gradient by the weight NAME",
    }
    write_golden(folder, tensors, header(SEED, keys, model_class=cls.__name__), "gradients")
    norms = {k: v.norm().item() for k, v in tensors.items()}
    print(f"{name}: loss {loss.item():.6f}, smallest gradient {min(norms, key=norms.get)} {min(norms.values()):.2e}")


if __name__ == "__main__":
    for name, cls in CLASSES.items():
        write(name, cls)
