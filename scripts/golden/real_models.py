"""Reference numbers of the two real models: tokens, hidden states, logits, greedy text, embeddings.

Usage: python scripts/golden/real_models.py [smollm2-135m] [minilm-l6]      writes fixtures/real/NAME/
"""

import json
import sys

import numpy as np
import real
import texts
import torch
from common import FIXTURES, header, write_golden

GREEDY = 64
BLOCKS = (0, 14, 29)
FULL_LOGITS = (0, 7)
# About 2,000 ids spread over the vocabulary.
SUBSET = torch.arange(0, 49152, 24)


def write_cases(folder, cases):
    (folder / "tokenizer_cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=True) + "\n")


def check_dequantised(model):
    """Compare against the `gguf` package: values, and the row order of q and k, written out independently."""
    from gguf import GGUFReader, dequantize

    tensors = {t.name: t for t in GGUFReader(real.weights("smollm2-135m")).tensors}
    state = model.state_dict()

    def raw(name):
        t = tensors[name]
        return np.array(dequantize(t.data, t.tensor_type))

    for i in (0, 13, 29):
        for theirs, ours, heads in (
            ("attn_q", "self_attn.q_proj", 9),
            ("attn_k", "self_attn.k_proj", 3),
            ("attn_v", "self_attn.v_proj", 0),
            ("attn_output", "self_attn.o_proj", 0),
            ("ffn_down", "mlp.down_proj", 0),
        ):
            want = raw(f"blk.{i}.{theirs}.weight")
            if heads:
                # GGUF interleaves the halves of each head: row 2*j + s there is row j + 32*s here.
                order = [h * 64 + 2 * (j % 32) + j // 32 for h in range(heads) for j in range(64)]
                want = want[order]
            got = state[f"model.layers.{i}.{ours}.weight"].numpy()
            if not np.array_equal(got, want):
                raise SystemExit(f"block {i} {theirs}: not what gguf dequantises")
    if not np.array_equal(state["model.embed_tokens.weight"].numpy(), raw("token_embd.weight")):
        raise SystemExit("token_embd: not what gguf dequantises")


@torch.no_grad()
def run(model, ids):
    """Logits, output of every block, output of the final norm."""
    captured = []
    handles = [b.register_forward_hook(lambda _m, _i, o: captured.append(o[0] if isinstance(o, tuple) else o))
               for b in model.model.layers]
    handles.append(model.model.norm.register_forward_hook(lambda _m, _i, o: captured.append(o)))
    logits = model(input_ids=ids[None]).logits[0]
    for h in handles:
        h.remove()
    return logits, [c[0] for c in captured[:-1]], captured[-1][0]


@torch.no_grad()
def greedy(model, ids):
    """GREEDY tokens by argmax with a key/value cache; the end-of-sequence token is a token like any other."""
    out = model.generate(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids[None]),
        do_sample=False,
        max_new_tokens=GREEDY,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    new = out[len(ids):]
    assert len(new) == GREEDY
    # The same tokens from one forward without a cache, and how far ahead of the runner-up each one is.
    logits = model(input_ids=out[None, :-1]).logits[0, len(ids) - 1:]
    top = logits.topk(2).values
    if not torch.equal(logits.argmax(-1), new):
        raise SystemExit("the tokens with and without a cache differ")
    return new, top[:, 0] - top[:, 1]


def smollm2(folder):
    model, tokenizer = real.smollm2(), real.smollm2_tokenizer()
    check_dequantised(model)
    plain = real.hf.AutoTokenizer.from_pretrained(
        real.weights("smollm2-135m").parent, gguf_file=real.weights("smollm2-135m").name
    )
    tensors, prompts = {"logits_subset.vocab_ids": SUBSET}, []
    double = real.smollm2().double()
    worst = 0.0
    for n, prompt in enumerate(texts.PROMPTS):
        text = prompt if isinstance(prompt, str) else tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor(tokenizer(text).input_ids)
        logits, blocks, final = run(model, ids)
        worst = max(worst, (run(double, ids)[0] - logits).abs().max().item())
        new, margin = greedy(model, ids)
        tensors[f"prompt{n}.input_ids"] = ids
        tensors[f"prompt{n}.greedy_ids"] = new
        tensors[f"prompt{n}.greedy_margin"] = margin
        tensors[f"prompt{n}.block_norms"] = torch.stack([b.norm(dim=-1) for b in blocks])
        tensors[f"prompt{n}.final_norms"] = final.norm(dim=-1)
        tensors[f"prompt{n}.final_last"] = final[-1]
        tensors[f"prompt{n}.last_logits_subset"] = logits[-1][SUBSET]
        if n in FULL_LOGITS:
            tensors[f"prompt{n}.last_logits"] = logits[-1]
        if n == 0:
            for i in BLOCKS:
                tensors[f"prompt{n}.block.{i}"] = blocks[i]
            tensors[f"prompt{n}.last_hidden_state"] = final
        prompts.append({"text": text, "tokens": len(ids), "greedy_text": tokenizer.decode(new),
                        "smallest_greedy_margin": round(margin.min().item(), 4)})
        print(f"{n}: {len(ids)} tokens, smallest margin {margin.min().item():.4f}: {tokenizer.decode(new)!r}")
    write_golden(folder, tensors, header(None, {
        "promptN.input_ids": "[tokens] i64, nothing added in front or behind",
        "promptN.greedy_ids": f"[{GREEDY}] i64, argmax continuation, not stopped by the end-of-sequence id 2",
        "promptN.greedy_margin": f"[{GREEDY}] logit of the chosen token minus the runner-up's",
        "promptN.block_norms": "[30, tokens] L2 norm of the output of each block (before the final norm)",
        "promptN.final_norms": "[tokens] L2 norm after the final norm",
        "promptN.final_last": "[576] after the final norm, last position",
        "promptN.last_logits_subset": f"[{len(SUBSET)}] logits of the last position for logits_subset.vocab_ids",
        "logits_subset.vocab_ids": f"[{len(SUBSET)}] i64",
        "promptN.last_logits": f"[49152] all logits of the last position, prompts {FULL_LOGITS}",
        "promptN.block.L": f"[tokens, 576] output of block L, prompt 0, blocks {BLOCKS}",
        "promptN.last_hidden_state": "[tokens, 576] after the final norm, prompt 0",
    }, model=real.SOURCE["smollm2-135m"], model_sha256=real.SHA256["smollm2-135m"],
        model_class=type(model).__name__, computed_in="float32, eager attention, one prompt at a time",
        largest_logit_difference_to_float64=round(worst, 7),
        tokenizer="pre-tokenizer `smollm`: single digits, then GPT-2 byte-level; nothing is added to a text",
        prompts=prompts))

    encode, differ = [], 0
    for text in texts.TOKENIZER_STRINGS:
        ids = tokenizer(text).input_ids
        differ += ids != plain(text).input_ids
        encode.append({"text": text, "ids": ids, "decoded": tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)})
    chat = []
    for messages, prompt in texts.CONVERSATIONS:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        chat.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": tokenizer(text).input_ids})
    write_cases(folder, {"note": "special tokens inside a text are recognised; `decoded` keeps them; "
                         f"{differ} of these texts get other ids when the pre-tokenizer name is ignored",
                         "encode": encode, "chat": chat})


def minilm(folder):
    model, tokenizer = real.minilm(), real.minilm_tokenizer()
    double = real.minilm().double()
    tensors, worst = {}, 0.0
    for n, text in enumerate(texts.SENTENCES):
        ids = torch.tensor(tokenizer.encode(text).ids)
        with torch.no_grad():
            hidden, exact = (m(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).last_hidden_state[0]
                             for m in (model, double))
        worst = max(worst, (exact - hidden).abs().max().item())
        tensors[f"sentence{n}.input_ids"] = ids
        tensors[f"sentence{n}.last_hidden_state"] = hidden
        tensors[f"sentence{n}.embedding"] = torch.nn.functional.normalize(hidden.mean(0), dim=0)
    e = torch.stack([tensors[f"sentence{n}.embedding"] for n in range(len(texts.SENTENCES))])
    print("cosines\n", (e @ e.T).numpy().round(3))
    write_golden(folder, tensors, header(None, {
        "sentenceN.input_ids": "[tokens] i64, with [CLS] and [SEP], token types all 0",
        "sentenceN.last_hidden_state": "[tokens, 384]",
        "sentenceN.embedding": "[384] mean over all tokens ([CLS] and [SEP] included), then scaled to length 1",
    }, model=real.SOURCE["minilm-l6"], model_sha256=real.SHA256["minilm-l6"], model_class=type(model).__name__,
        computed_in="float32, eager attention, one sentence at a time, no padding, no truncation",
        largest_hidden_difference_to_float64=round(worst, 7), sentences=texts.SENTENCES))
    encode = []
    for text in texts.TOKENIZER_STRINGS:
        ids = tokenizer.encode(text).ids
        encode.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    write_cases(folder, {"note": "with [CLS] and [SEP], without truncation; `decoded` skips special tokens", "encode": encode})


if __name__ == "__main__":
    for name in sys.argv[1:] or ("smollm2-135m", "minilm-l6"):
        folder = FIXTURES / "real" / name
        {"smollm2-135m": smollm2, "minilm-l6": minilm}[name](folder)
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.1f} kB")
