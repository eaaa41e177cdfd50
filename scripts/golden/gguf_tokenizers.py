"""Small tokenizers as GGUF files, with the ids that their own libraries give to varied texts.

tokenizer-bpe.gguf            byte-level BPE; the tests read it under several names of `tokenizer.ggml.pre`
tokenizer-spm.gguf            SentencePiece BPE, a space before each text (Llama's way)
tokenizer-spm-plain.gguf      SentencePiece BPE, no such space, own tokens for runs of spaces (Gemma's way)
tokenizers.json               texts and ids
"""

import io
import json

import sentencepiece as spm
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from common import FIXTURES, header
from gguf_texts import SPECIAL, TEXTS

FOLDER = FIXTURES / "gguf"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# GGUF token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def pre_tokenizers_by_name(vocab, merges):
    """Each from the class that transformers has for it, as (normalizer, pre-tokenizer, ignore_merges)."""
    gpt2 = GPT2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    qwen2 = Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    llama3 = TikTokenConverter(vocab_file=None).pattern
    split = pre_tokenizers.Split(Regex(llama3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "gpt-2": (None, gpt2.pre_tokenizer, False),
        "qwen2": (qwen2.normalizer, qwen2.pre_tokenizer, False),
        "llama-bpe": (None, pre_tokenizers.Sequence([split, byte_level]), True),
        # SmolLM's tokenizer.json.
        "smollm": (None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]), False),
    }


def write(name, metadata):
    writer = GGUFWriter(FOLDER / name, "llama")
    for method, value in metadata.items():
        getattr(writer, f"add_{method}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    trained.train_from_iterator(TEXTS * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    # A token that no merge makes: taken whole only where merges are ignored.
    vocab = model["vocab"] | {"Ġxylophone": len(model["vocab"])}
    tokens = sorted(vocab, key=vocab.get)
    write(
        "tokenizer-bpe.gguf",
        {
            "tokenizer_model": "gpt2",
            "tokenizer_pre": "smollm",
            "token_list": tokens,
            "token_types": [CONTROL if t in SPECIALS else NORMAL for t in tokens],
            "token_merges": [" ".join(m) for m in merges],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        },
    )
    ids = {}
    for name, (normalizer, pre, ignore) in pre_tokenizers_by_name(vocab, merges).items():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIALS])
        ids[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS + SPECIAL]
    return ids


def sentencepiece(name, prefix, symbols):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n") if line.strip()] * 2),
        model_writer=out,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=symbols,
        num_threads=1,
        minloglevel=2,
    )
    processor = spm.SentencePieceProcessor(model_proto=out.getvalue())
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids]

    def kind(i):
        if processor.is_unknown(i):
            return UNKNOWN
        if processor.is_control(i):
            return CONTROL
        if processor.is_byte(i):
            return BYTE
        return USER_DEFINED if pieces[i] in symbols else NORMAL

    write(
        name,
        {
            # Like llama.cpp's converter: user-defined tokens hold real spaces.
            "tokenizer_model": "llama",
            "tokenizer_pre": "default",
            "token_list": [p.replace("▁", " ") if p in symbols else p for p in pieces],
            "token_scores": [processor.get_score(i) for i in ids],
            "token_types": [kind(i) for i in ids],
            "add_bos_token": True,
            "add_eos_token": False,
            "add_space_prefix": prefix,
        },
    )
    return [processor.encode(text) for text in TEXTS]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    ids = byte_level()
    ids["spm"] = sentencepiece("tokenizer-spm.gguf", True, [])
    ids["spm-plain"] = sentencepiece("tokenizer-spm-plain.gguf", False, ["▁" * n for n in range(2, 9)] + ["<table>"])
    keys = {"texts": "texts", "special": "texts with special tokens, after `texts` for byte-level BPE", "ids": "by tokenizer, one list per text"}
    head = header(0, keys) | {"texts": TEXTS, "special": SPECIAL, "ids": ids}
    (FOLDER / "tokenizers.json").write_text(json.dumps(head, ensure_ascii=False, separators=(",", ":")) + "\n")
