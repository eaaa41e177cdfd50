"""Loss, gradients and 20 AdamW steps of LoRA on the two real models, by peft.

Usage: python scripts/golden/lora_step.py [smollm2-lora-step] [minilm-lora-step]      writes fixtures/real/NAME/

Every trained value starts from a formula (see `initial_values` in golden.json), so no weights are stored.
"""

import contextlib
import copy
import sys
import warnings

import peft
import real
import texts
import torch
from common import FIXTURES, header, write_golden
from real import hf

STEPS, SAMPLES = 20, 16
warnings.filterwarnings("ignore")
ADAMW = dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
B_SCALE, HEAD_SCALE = 0.02, 0.05


def stored_name(name):
    """The key peft writes to adapter_model.safetensors for a parameter."""
    return name.replace(".default.", ".").replace(".modules_to_save", "").replace(".original_module", "")


def adapt(model, task):
    config = peft.LoraConfig(
        task_type=task, r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, bias="none"
    )
    model = peft.get_peft_model(model, config)
    return model.eval(), initialise(model)


def initialise(model):
    """Set every trained parameter by the formula; returns {stored key: parameter}, sorted by key."""
    trained = {stored_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    trained = dict(sorted(trained.items()))
    stored = set(peft.get_peft_model_state_dict(model))
    if set(trained) != stored:
        raise SystemExit(f"not the keys that peft stores: {sorted(set(trained) ^ stored)[:4]}")
    with torch.no_grad():
        for m, (key, p) in enumerate(trained.items()):
            if "lora_A" in key:
                scale = p.shape[1] ** -0.5
            else:
                scale = B_SCALE if "lora_B" in key else HEAD_SCALE
            p.copy_(real.formula(p.shape, m, scale))
    return trained


def gradients(trained):
    return {k: p.grad.detach().clone() for k, p in trained.items()}


def train(backward, trained, lr):
    """Losses before each of STEPS steps and after the last, and the gradients of the first."""
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, **ADAMW)
    losses, first = [], None
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        losses.append(backward())
        if first is None:
            first = gradients(trained)
        if step < STEPS:
            optimizer.step()
        print(f"  step {step}: loss {losses[-1]:.6f}", flush=True)
    return losses, first


@contextlib.contextmanager
def other_order(columns=96):
    """Sum every matrix product in pieces of the inner dimension: what another float32 implementation may do."""
    plain = torch.nn.Linear.forward

    def forward(self, x):
        parts = [torch.nn.functional.linear(x[..., i:i + columns], self.weight[:, i:i + columns])
                 for i in range(0, x.shape[-1], columns)]
        return sum(parts[1:], parts[0]) + (0 if self.bias is None else self.bias)

    torch.nn.Linear.forward = forward
    yield
    torch.nn.Linear.forward = plain


def in_double(network, trained, backward):
    """The first loss and gradients with float64 matrices and activations."""
    double = copy.deepcopy(network).double()
    twin = {stored_name(n): p for n, p in double.named_parameters() if p.requires_grad}
    loss = backward(double)
    return loss, {k: twin[k].grad for k in trained}


def largest_error(gradients, reference):
    return max(((gradients[k] - g).norm() / g.norm()).item() for k, g in reference.items())


def record(folder, network, trained, backward, full, lr, **head):
    exact_loss, exact = in_double(network, trained, backward)
    with other_order():
        other_losses, other = train(lambda: backward(network), trained, lr)
    initialise(network)
    start = {k: p.detach().clone() for k, p in trained.items()}
    losses, first = train(lambda: backward(network), trained, lr)
    index = torch.stack([torch.tensor([(2 * j + 1) * p.numel() // (2 * SAMPLES) + 3 * j for j in range(SAMPLES)])
                         % p.numel() for p in trained.values()])

    def each(values, fn):
        return torch.stack([fn(v.double()) for v in values]).float()

    def sample(values):
        return torch.stack([v.flatten()[i] for v, i in zip(values, index)]).float()

    tensors = {
        "losses": torch.tensor(losses, dtype=torch.float64).float(),
        "sample_index": index,
        "initial.norm": each(start.values(), torch.Tensor.norm),
        "initial.sample": sample(start.values()),
        "grad.norm": each(first.values(), torch.Tensor.norm),
        "grad.sum": each(first.values(), torch.Tensor.sum),
        "grad.sample": sample(first.values()),
        "final.norm": each([p.detach() for p in trained.values()], torch.Tensor.norm),
    }
    for key in full:
        tensors[f"grad.{key}"] = first[key]
    if not all(g.any() for g in first.values()):
        raise SystemExit("a gradient is all zero")
    errors = largest_error(first, exact), largest_error(other, first)
    drift = [abs(a - b) / a for a, b in zip(losses, other_losses)]
    rank = min(torch.linalg.matrix_rank(p, rtol=1e-3).item() for k, p in start.items() if "lora" in k)
    if rank < 8:
        raise SystemExit(f"an initial matrix has rank {rank}")
    n = len(trained)
    keys = {
        "losses": f"[{STEPS + 1}] loss before step 1, ..., before step {STEPS}, after step {STEPS}",
        "sample_index": f"[{n}, {SAMPLES}] i64, row-major element numbers of the samples",
        "initial.norm": f"[{n}] L2 norm of the initial values", "initial.sample": f"[{n}, {SAMPLES}]",
        "grad.norm": f"[{n}] L2 norm of the gradient of the first loss", "grad.sum": f"[{n}]",
        "grad.sample": f"[{n}, {SAMPLES}]", "final.norm": f"[{n}] L2 norm of the values after step {STEPS}",
        "grad.KEY": "the whole gradient, shaped like the matrix",
    }
    write_golden(folder, tensors | head.pop("inputs"), header(None, keys | head.pop("input_keys"), **head,
        computed_in="float32, eager attention, no dropout, no padding",
        lora={"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.0},
        optimizer={"name": "torch.optim.AdamW", "schedule": "constant", "clipping": None, "lr": lr, **ADAMW},
        initial_values={"formula": real.FORMULA, "m": "position in `matrices`, from 0",
                        "scale": {"lora_A": "1 / sqrt(columns)", "lora_B": B_SCALE, "classification head": HEAD_SCALE}},
        against_float64={"largest_relative_gradient_error": float(f"{errors[0]:.1e}"),
                         "relative_loss_error": float(f"{abs(losses[0] - exact_loss) / exact_loss:.1e}")},
        summed_in_another_order={"largest_relative_gradient_error": float(f"{errors[1]:.1e}"),
                                 "relative_loss_errors": [float(f"{d:.1e}") for d in drift]},
        trainable_parameters=sum(p.numel() for p in trained.values()),
        matrices=[{"key": k, "shape": list(p.shape)} for k, p in trained.items()]))
    print(f"  {n} matrices; gradients against float64 {errors[0]:.1e}; "
          f"summed in another order: gradients {errors[1]:.1e}, losses {max(drift):.1e}, final {drift[-1]:.1e}")


def smollm2(folder):
    tokenizer = real.smollm2_tokenizer()
    batch = []
    for text, n in zip(texts.TRAIN_TEXTS, texts.LENGTHS):
        ids = tokenizer(text).input_ids
        assert len(ids) >= n, (len(ids), n)
        batch.append(torch.tensor(ids[:n]))
    targets = sum(len(ids) - 1 for ids in batch)

    def backward(model):
        total = 0.0
        for ids in batch:
            logits = model(input_ids=ids[None]).logits[0, :-1]
            # The float32 kernel of PyTorch sums 49,152 exponentials plainly and is 6e-6 off per token, which moves
            # some gradients by 3e-4: the loss alone is computed in float64.
            loss = torch.nn.functional.cross_entropy(logits.double(), ids[1:], reduction="sum") / targets
            loss.backward()
            total += loss.item()
        return total

    base = real.smollm2()
    base.requires_grad_(False)
    with torch.no_grad():
        base_loss = sum(torch.nn.functional.cross_entropy(base(input_ids=i[None]).logits[0, :-1].double(), i[1:],
                                                          reduction="sum")
                        for i in batch).item() / targets
    model, trained = adapt(base, "CAUSAL_LM")
    path = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    full = [path.format(i, p, ab) for i, p in (
        (0, "self_attn.q_proj"), (7, "self_attn.k_proj"), (14, "self_attn.v_proj"), (20, "self_attn.o_proj"),
        (25, "mlp.gate_proj"), (29, "mlp.down_proj")) for ab in "AB"]
    record(folder, model, trained, backward, full, lr=1e-3,
           inputs={f"seq{s}.input_ids": ids for s, ids in enumerate(batch)},
           input_keys={"seqS.input_ids": "[tokens] i64; every token but the first is a target"},
           model=real.SOURCE["smollm2-135m"], model_sha256=real.SHA256["smollm2-135m"],
           model_class="LlamaForCausalLM, peft LoraModel", target_tokens=targets,
           loss="cross-entropy (in float64, from float32 logits) summed over all targets of the four sequences, divided by their number",
           loss_of_the_base=base_loss)


def minilm(folder):
    tokenizer = real.minilm_tokenizer()
    batch = [torch.tensor(tokenizer.encode(text).ids) for text, _ in texts.CLASSIFY]
    labels = torch.tensor([label for _, label in texts.CLASSIFY])

    def backward(model):
        total = 0.0
        for ids, label in zip(batch, labels):
            logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
            loss = torch.nn.functional.cross_entropy(logits, label[None]) / len(batch)
            loss.backward()
            total += loss.item()
        return total

    torch.manual_seed(0)
    base = real.minilm(hf.AutoModelForSequenceClassification, num_labels=2)
    base.requires_grad_(False)
    model, trained = adapt(base, "SEQ_CLS")
    path = "base_model.model.bert.{}.lora_{}.weight"
    full = [path.format(p, ab) for p in (
        "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.key",
        "encoder.layer.2.attention.self.value", "encoder.layer.3.attention.output.dense",
        "encoder.layer.4.intermediate.dense", "encoder.layer.5.output.dense", "pooler.dense") for ab in "AB"]
    full += [f"base_model.model.classifier.{p}" for p in ("bias", "weight")]
    with torch.no_grad():
        first_logits = torch.stack([model(input_ids=i[None], attention_mask=torch.ones_like(i[None])).logits[0] for i in batch])
    # A larger rate drives the loss below what float32 resolves.
    record(folder, model, trained, backward, full, lr=2e-4,
           inputs={f"seq{s}.input_ids": ids for s, ids in enumerate(batch)} | {"labels": labels, "logits": first_logits},
           input_keys={"seqS.input_ids": "[tokens] i64, with [CLS] and [SEP], token types 0",
                       "labels": f"[{len(batch)}] i64", "logits": f"[{len(batch)}, 2] before step 1"},
           model=real.SOURCE["minilm-l6"], model_sha256=real.SHA256["minilm-l6"],
           model_class="BertForSequenceClassification, peft LoraModel",
           loss="mean cross-entropy over the texts", texts=[t for t, _ in texts.CLASSIFY])


if __name__ == "__main__":
    for name in sys.argv[1:] or ("smollm2-lora-step", "minilm-lora-step"):
        print(name, flush=True)
        folder = FIXTURES / "real" / name
        {"smollm2-lora-step": smollm2, "minilm-lora-step": minilm}[name](folder)
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.1f} kB")
