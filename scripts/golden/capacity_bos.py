"""Information capacity's two measures by the protocol of its official code, on a small random Gemma
whose tokenizer puts BOS in front of every text.

Usage: python scripts/golden/capacity_bos.py      writes fixtures/measure/gemma3-bos

Each sample by itself: the tokenizer's defaults, cut to a length; the first token is only context; the
size of the text is that of what the other tokens decode to.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

ROOT = Path(__file__).parents[2]
OUT = ROOT / "fixtures" / "measure" / "gemma3-bos"
TOKENIZER = ROOT / "fixtures" / "tokenizers" / "metaspace"
LENGTH = 24
SAMPLES = [
    "the river rose in the night and by morning the lower fields lay under water",
    "nobody had seen it so high",
    "they moved the cattle to the hill",
]


def main():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, sliding_window=32, query_pre_attn_scalar=20,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, initializer_range=0.3,
    )
    model = Gemma3ForCausalLM(config).eval()
    tokens, size, nats, first = 0, 0, 0.0, []
    for text in SAMPLES:
        ids = tokenizer(text, truncation=True, max_length=LENGTH).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        chosen = torch.log_softmax(logits, dim=-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        tokens += len(ids) - 1
        size += len(tokenizer.decode(ids[1:]).encode())
        nats -= chosen.sum().item()
        first.append(ids[0])
    assert set(first) == {tokenizer.bos_token_id}
    shutil.rmtree(OUT, ignore_errors=True)
    model.save_pretrained(OUT)
    (OUT / "generation_config.json").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, OUT / name)
    (OUT / "samples.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SAMPLES))
    header = {"generator": "scripts/golden/capacity_bos.py", "torch": torch.__version__, "transformers": transformers.__version__}
    body = {"header": header, "length": LENGTH, "bos": tokenizer.bos_token_id, "tokens": tokens, "bytes": size, "nats": nats}
    (OUT / "capacity.json").write_text(json.dumps(body, indent=1) + "\n")
    print(body)


if __name__ == "__main__":
    main()
