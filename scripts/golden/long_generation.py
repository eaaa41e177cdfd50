"""What transformers generates across the length at which Phi-3's rotary positions change.

Usage: python scripts/golden/long_generation.py      writes fixtures/long_generation.json
"""

import json

import torch
import transformers as hf
from common import FIXTURES, token_ids, versions

SEED = 20252
MODEL = FIXTURES / "models" / "phi3"
NEW = 10
# The length is 8: before it, up to it, and beyond it already.
LENGTHS = (3, 5, 8, 9)


@torch.no_grad()
def main():
    model = hf.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for ids in token_ids(SEED, LENGTHS, model.config.vocab_size):
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )
        steps = [[round(v, 5) for v in step[0, :8].tolist()] for step in out.logits]
        cases.append({"prompt": ids[0].tolist(), "ids": out.sequences[0, ids.shape[1] :].tolist(), "logits": steps})
    golden = {
        "generator": "scripts/golden/long_generation.py",
        "versions": versions(),
        "model": MODEL.name,
        "length": model.config.original_max_position_embeddings,
        "cases": cases,
    }
    (FIXTURES / "long_generation.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
