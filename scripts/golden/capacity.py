"""SmolLM2-135M on a text with PyTorch: what its tokens cost and how its hidden states spread.

Usage: python scripts/golden/capacity.py      writes fixtures/real/smollm2-harness/capacity.json
"""

import json
from pathlib import Path

import real  # noqa: I001  (sets threads and offline mode before torch loads)
import numpy as np
import torch

OUT = Path("fixtures/real/smollm2-harness")


def main():
    text = json.loads((OUT / "perplexity.json").read_text())["text"]
    tokenizer, model = real.smollm2_tokenizer(), real.smollm2()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded.input_ids, encoded.offset_mapping
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    log_probs = torch.log_softmax(out.logits[0, :-1].double(), dim=-1)
    nats = -log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()
    # The last of the hidden states is the one after the final norm.
    states = out.hidden_states[-1][0].double().numpy()
    x = states - states.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular**2 / np.sum(singular**2)
    shares = shares[shares > 0]
    columns = np.sort(np.linalg.norm(x, axis=0))[::-1][: min(x.shape)]
    body = {
        "header": {"generator": "scripts/golden/capacity.py", "source": real.SOURCE["smollm2-135m"], "torch": torch.__version__},
        "tokens": len(ids) - 1,
        "bytes": len(text[offsets[0][1] : offsets[-1][1]].encode()),
        "nats": nats,
        "matrix_nuclear_norm": float(columns.sum() / len(ids)),
        "nuclear_norm": float(singular.sum() / len(ids)),
        "matrix_entropy": float(-(shares * np.log(shares)).sum() / np.log(x.shape[1])),
    }
    (OUT / "capacity.json").write_text(json.dumps(body, indent=1) + "\n")
    print(body)


if __name__ == "__main__":
    main()
