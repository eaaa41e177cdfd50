"""Prefix tuning, P-tuning and AdaLoRA as peft trains and saves them, for the tiny models.

Usage: python scripts/golden/adapters_prompt.py [NAME ...]      writes fixtures/adapters/NAME/

Beside the files and logits of adapters.py, whose helpers it uses, `train.safetensors` holds one training step: the
values of everything that peft trains, the loss of a fixed batch and its gradients. Of AdaLoRA it holds a short run of
plain gradient descent: the loss and the mask of every step, and the values at the end.
"""

import shutil
import sys
import warnings

import peft
import torch
import transformers as hf
from adapters import CAUSAL, CLS, LENGTHS, LM, SEED, base, outputs, randomise
from common import FIXTURES, header, token_ids, write_golden
from safetensors.torch import load_file

# Two sequences of one length: the mean over the batch is then the mean over all targets.
TRAIN_LENGTH = 9
STEPS = 8
RATE = 0.05


def adalora(targets, task=LM, **fields):
    return peft.AdaLoraConfig(
        task_type=task, init_r=4, target_r=2, lora_alpha=8, target_modules=targets, total_step=STEPS, tinit=1, tfinal=2, **fields
    )


# name: (tiny model, class, peft config, what it is for)
ADAPTERS = {
    "llama-prefix": (
        "llama", CAUSAL["llama"], peft.PrefixTuningConfig(task_type=LM, num_virtual_tokens=5),
        "keys and values in front of every block, grouped heads"),
    "llama-prefix-projection": (
        "llama", CAUSAL["llama"],
        peft.PrefixTuningConfig(task_type=LM, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=12),
        "trained through two linear maps, of which the file keeps the result"),
    "gpt2-prefix": (
        "gpt2", CAUSAL["gpt2"], peft.PrefixTuningConfig(task_type=LM, num_virtual_tokens=3),
        "learned positions start after the prefix"),
    "qwen3-prefix": (
        "qwen3", CAUSAL["qwen3"], peft.PrefixTuningConfig(task_type=LM, num_virtual_tokens=3),
        "own head_dim"),
    "llama-p-tuning-mlp": (
        "llama", CAUSAL["llama"],
        peft.PromptEncoderConfig(task_type=LM, num_virtual_tokens=4, encoder_hidden_size=20),
        "MLP encoder"),
    "llama-p-tuning-lstm": (
        "llama", CAUSAL["llama"],
        peft.PromptEncoderConfig(
            task_type=LM, num_virtual_tokens=4, encoder_hidden_size=10, encoder_reparameterization_type="LSTM"),
        "encoder of a bidirectional LSTM of two layers and two linear maps"),
    "llama-prompt-step": (
        "llama", CAUSAL["llama"],
        peft.PromptTuningConfig(task_type=LM, num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
        "prompt tuning, for its gradients"),
    "llama-cartridge": (
        "llama", CAUSAL["llama"], peft.CartridgeConfig(task_type=LM, num_virtual_tokens=5, num_frozen_tokens=2),
        "keys and values of which the first two positions are kept"),
    "llama-cpt": (
        "llama", CAUSAL["llama"],
        peft.CPTConfig(
            task_type=LM, cpt_token_ids=[31, 17, 54, 5, 40], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1, 2, 2, 3, 2],
            opt_projection_epsilon=0.8, opt_projection_format_epsilon=2.4),
        "a context whose embeddings move within two bounds"),
    "llama-adalora": (
        "llama", CAUSAL["llama"], adalora(["q_proj", "v_proj", "down_proj"]), "ranks chosen by importance"),
    "bert-adalora-seqcls": (
        "bert", hf.BertForSequenceClassification, adalora(["query", "value"], CLS), "with a head"),
}


def short(name):
    """A parameter's name as Frugal has it."""
    name = name.replace(".default", "").removeprefix("base_model.model.").removeprefix("prompt_encoder.")
    return name.replace("modules_to_save.", "")


def batch(classes):
    ids = torch.cat(token_ids(SEED + 2, (TRAIN_LENGTH, TRAIN_LENGTH), 64))
    if classes:
        return ids, torch.tensor([0, 2])
    labels = ids.clone()
    # The first token has no token before it to be predicted from, except that peft would take the last virtual one.
    labels[:, 0] = -100
    return ids, labels


def train(model, classes):
    """One step's loss and gradients; of AdaLoRA the whole run."""
    ids, labels = batch(classes)
    trained = {short(n): p for n, p in model.named_parameters() if p.requires_grad}
    kept = {short(n): p for n, p in model.named_parameters() if "prompt_encoder" in n and not p.requires_grad}
    allocator = isinstance(model.base_model, peft.AdaLoraModel)
    found = {"input_ids": ids, "labels": labels} | {f"init.{n}": p.detach().clone() for n, p in (trained | kept).items()}
    # Types of tokens are counted on from those of the context, so these become labels, type 4.
    more = {"input_type_mask": torch.ones_like(ids)} if isinstance(model.active_peft_config, peft.CPTConfig) else {}
    losses = []
    for step in range(1, STEPS + 1 if allocator else 2):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **more).loss
        loss.backward()
        losses.append(loss.item())
        if step == 1:
            found |= {f"grad.{n}": p.grad.clone() for n, p in trained.items()}
        if allocator:
            with torch.no_grad():
                for p in trained.values():
                    p -= RATE * p.grad
            model.base_model.update_and_allocate(step)
            found[f"mask.{step}"] = torch.cat([(p != 0).flatten() for n, p in sorted(trained.items()) if "lora_E" in n]).long()
        model.zero_grad()
    if allocator:
        found |= {f"final.{n}": p.detach().clone() for n, p in trained.items()}
    return found | {"losses": torch.tensor(losses)}


def without_labels():
    """Lets CPT compute logits alone: its forward takes the labels of a batch for given."""
    forward = peft.PeftModelForCausalLM._cpt_forward
    peft.PeftModelForCausalLM._cpt_forward = lambda self, ids, embeds, config, tasks, size, labels=None, **more: (
        forward(self, ids, embeds, config, tasks, size, labels=labels, **more))


def main(names):
    without_labels()
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    for name in names or ADAPTERS:
        tiny, cls, config, purpose = ADAPTERS[name]
        model_dir, folder = FIXTURES / "models" / tiny, FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        config.base_model_name_or_path = str(model_dir)
        classes = "SequenceClassification" in cls.__name__
        torch.manual_seed(SEED)
        # Dropout stays off; prompts are computed by their encoder as long as the model is not saved and read again.
        model = peft.get_peft_model(base(model_dir, cls), config).eval()
        trained = randomise(model, SEED, 0.3)
        if isinstance(config, peft.CPTConfig):
            # As a forward pass would do it.
            encoder = model.prompt_encoder["default"]
            encoder.delta_embedding.weight.data = encoder.get_projection()
        found = train(model, classes)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)

        fresh = base(model_dir, cls)
        before = outputs(fresh)
        tensors = outputs(peft.PeftModel.from_pretrained(fresh, folder).eval())
        effect = max(
            (tensors[f"seq{s}.logits"].reshape(-1)[-before[f"seq{s}.logits"].numel():]
             - before[f"seq{s}.logits"].reshape(-1)).abs().max().item()
            for s in range(len(LENGTHS))
        )
        if effect < 0.1:
            raise SystemExit(f"{name}: the adapter moves the logits by {effect:.1e} only")
        stored = load_file(folder / "adapter_model.safetensors")
        about = dict(purpose=purpose, model=str(model_dir), model_class=cls.__name__, trained=trained, computed_in="float32, eager attention")
        keys = {
            "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
            "seqS.logits": "[tokens (+ virtual tokens in front), vocab], or [labels] for classification",
        }
        count = sum(v.numel() for v in stored.values())
        write_golden(folder, tensors, header(SEED, keys, trainable_parameters=count, largest_logit_change=round(effect, 4), **about))
        keys = {
            "input_ids": "[2, tokens] i64",
            "labels": "[2, tokens] i64, or [2] classes",
            "init.NAME": "values before the first step",
            "grad.NAME": "gradients of the first step",
            "losses": "[steps], of AdaLoRA with the orthogonality term",
            "mask.STEP": "AdaLoRA: which triplets are alive after the step, all maps in the order of their names",
            "final.NAME": "AdaLoRA: values after the last step",
        }
        write_golden(folder, found, header(SEED, keys, rate=RATE, **about), name="train")
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name:24} {size/1e3:6.1f} kB  {len(stored):3} tensors  moves logits by {effect:.2f}  losses {found['losses'].tolist()}")


if __name__ == "__main__":
    main(sys.argv[1:])
