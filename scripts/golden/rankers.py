"""What transformers computes for language models that rank, on the small models of fixtures/harness.

Usage: python scripts/golden/rankers.py

Writes fixtures/rankers.json: for pairwise ranking prompting, `log p(" Passage A") - log p(" Passage B")` of whole texts;
for BlockRank, hidden states under a dense block mask with explicit positions, the documents' scores in one layer (from
that layer's own projections), the loss and its gradient with respect to that layer's query projection.
"""

import common  # noqa: F401  (sets threads and offline mode before torch loads)
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

PROMPT = (
    'Given a query "{query}", which of the following two passages is more relevant to the query?\n\n'
    'Passage A: "{a}"\n\nPassage B: "{b}"\n\nOutput Passage A or Passage B:'
)
QUERY = "wing flutter"
PASSAGES = ["flutter of wings", "heat transfer in a boundary layer", "a wing"]


def log_likelihood(model, prompt, whole):
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(logp[i - 1, whole[i]].item() for i in range(prompt, len(whole)))


def pairwise(name):
    folder = f"fixtures/harness/{name}"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    odds = []
    for a in range(3):
        for b in range(3):
            if a == b:
                continue
            text = PROMPT.format(query=QUERY, a=PASSAGES[a], b=PASSAGES[b])
            ids = [tokenizer(f"{text} Passage {letter}")["input_ids"] for letter in "AB"]
            common_length = next(i for i, (x, y) in enumerate(zip(*ids, strict=False)) if x != y)
            odds.append([a, b, log_likelihood(model, common_length, ids[0]) - log_likelihood(model, common_length, ids[1])])
    return {"model": name, "query": QUERY, "passages": PASSAGES, "log_odds": odds}


def blocks():
    model = AutoModelForCausalLM.from_pretrained("fixtures/harness/llama", dtype=torch.float32, attn_implementation="eager").eval()
    lengths, offset, layer, positives, tau = [8, 4, 7, 5, 6], 64, 1, [2], 0.05
    tokens = sum(lengths)
    ids = [(i * 29 + 5) % 250 + 3 for i in range(tokens)]
    of = [block for block, n in enumerate(lengths) for _ in range(n)]
    last = len(lengths) - 1
    starts = [0] + [lengths[0]] * (len(lengths) - 2) + [offset]
    positions = [start + i for start, n in zip(starts, lengths, strict=True) for i in range(n)]
    sees = [[k <= q and (of[k] == of[q] or of[k] == 0 or of[q] == last) for k in range(tokens)] for q in range(tokens)]
    mask = torch.where(torch.tensor(sees), 0.0, torch.finfo(torch.float32).min * 0.7)[None, None]

    inputs = {}
    attention = model.model.layers[layer].self_attn
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    hidden = model.model(torch.tensor([ids]), attention_mask=mask, position_ids=torch.tensor([positions])).last_hidden_state[0]
    hook.remove()

    x, (cos, sin) = inputs["hidden_states"], inputs["position_embeddings"]
    shape = (1, tokens, -1, attention.head_dim)
    q = attention.q_proj(x).view(shape).transpose(1, 2)
    k = attention.k_proj(x).view(shape).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k = repeat_kv(k, attention.num_key_value_groups)
    logits = (q[0, :, -2:] @ k[0].transpose(1, 2)) * attention.scaling
    share = torch.softmax(logits[:, :, lengths[0] : tokens - lengths[-1]], -1).mean((0, 1))
    scores = torch.stack([part.sum() for part in share.split(lengths[1:-1])])
    loss = torch.logsumexp(scores / tau, 0) - torch.logsumexp(scores[positives] / tau, 0)
    loss.backward()
    return {
        "lengths": lengths, "offset": offset, "layer": layer, "positives": positives, "temperature": tau, "ids": ids,
        "hidden": hidden.flatten().tolist(), "scores": scores.tolist(), "loss": loss.item(),
        "embedding_gradient_norm": model.model.embed_tokens.weight.grad.norm().item(),
        "query_gradient_norm": attention.q_proj.weight.grad.norm().item(),
    }  # fmt: skip


found = {"pairwise": [pairwise(name) for name in ("llama", "gemma3_text")], "blocks": blocks()}


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.7g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


with open("fixtures/rankers.json", "w") as out:
    json.dump(rounded(found), out)
    out.write("\n")
