#!/usr/bin/env python3
"""What TRL's DPOTrainer makes of preference pairs on the tiny Llama, in ten steps over all of them.

    python test/golden/make_dpo.py test/golden/dpo

Needs torch, transformers, peft, trl, gguf, safetensors. The model is tiny_llama/tied under its adapter, which
TRL's trainer goes on with, and a copy of which is its reference. The trainer runs in f32 on the CPU; the same
steps are made in f64 by the formula, and it is those that are written, once both agree to 1e-5: so that
rounding is the engine's own. Writes pairs.jsonl, what both were run on, and expected.safetensors: the
reference's log-probabilities [pairs, 2], losses, margins and gradient norms of the steps, the gradients of the
first and of the last step, and the adapter after it.
"""

import json
import os
import sys
import tempfile

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
from trl import DPOConfig, DPOTrainer

from make_tiny_completion import chat
from make_tiny_llama import SPECIAL, VOCABULARY

STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP, BETA = 10, 3e-3, 0.01, 1.0, 0.3
PAIRS = [("a b", "yes", "no"), ("what?", "", "a long one"), ("", "so it is", "so it was"), ("c", "same", "same"),
         ("1 + 1", "2", "3"), ("long prompt of many words", "ab", "ba")]


def answer(text):
    """Bytes, each a token, and the end token: answers here hold no "th", which is all that the vocabulary merges."""
    return [*(len(SPECIAL) + byte for byte in text.encode()), 2]


def load(folder, dtype):
    base = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "tied"), gguf_file="base.gguf", dtype=dtype)
    base.is_quantized = False  # F32, though it came from a GGUF file
    return PeftModel.from_pretrained(base, os.path.join(folder, "tied", "adapter"), is_trainable=True)


def trained(model):
    return {name.replace(".default", ""): p for name, p in model.named_parameters()
            if p.requires_grad and ".ref." not in name}


class Trainer(DPOTrainer):
    """TRL's, over rows that are tokens already; it notes what every step makes."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _compute_loss(self, model, inputs, *args, **kwargs):
        loss = super()._compute_loss(model, inputs, *args, **kwargs)
        self.losses.append(loss.item())
        return loss

    def training_step(self, model, *args, **kwargs):
        result = super().training_step(model, *args, **kwargs)
        self.gradients.append({n: p.grad.clone() for n, p in trained(self.model).items()})
        return result


def by_trl(folder):
    rows = [{"prompt_ids": chat(prompt), "chosen_ids": answer(chosen), "rejected_ids": answer(rejected)}
            for prompt, chosen, rejected in PAIRS]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0")),
        eos_token="2", pad_token="0")
    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(output_dir=scratch, beta=BETA, max_steps=STEPS, per_device_train_batch_size=len(PAIRS),
                           learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0,
                           weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP, optim="adamw_torch", use_cpu=True,
                           bf16=False, gradient_checkpointing=False, report_to="none", logging_steps=1,
                           save_strategy="no", disable_dropout=True, precompute_ref_log_probs=False)
        trainer = Trainer(model=load(folder, torch.float32), args=config, train_dataset=Dataset.from_list(rows),
                          processing_class=tokenizer)
        trainer.losses, trainer.gradients = [], []
        trainer.train()
        assert "ref" in trainer.model.peft_config  # the reference is the first adapter's copy
        logs = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    return (torch.tensor(trainer.losses), torch.tensor([entry["rewards/margins"] for entry in logs]),
            trainer.gradients, {n: p.detach().clone() for n, p in trained(trainer.model).items()})


def log_probability(model, prompt, text):
    prompt, text = chat(prompt), answer(text)
    ids = torch.tensor([prompt + text])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1:-1]
    return -torch.nn.functional.cross_entropy(logits, ids[0, len(prompt):], reduction="sum")


def log_probabilities(model):
    return torch.stack([torch.stack([log_probability(model, prompt, text) for text in texts])
                        for prompt, *texts in PAIRS])


def by_formula(folder):
    model = load(folder, torch.float32).double()
    parameters = trained(model)
    with torch.no_grad():
        reference = log_probabilities(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, margins, norms, gradients = [], [], [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        rewards = BETA * (log_probabilities(model) - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in parameters.items()})
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP))
        optimizer.step()
        losses.append(loss.detach())
        margins.append(margin.mean().detach())
    return {"reference": reference, "losses": torch.stack(losses), "margins": torch.stack(margins),
            "norms": torch.stack(norms)}, gradients, {n: p.detach() for n, p in parameters.items()}


def agree(what, a, b, tolerance=1e-5):
    error = ((a.double() - b).norm() / b.norm()).item()
    print(f"{what}: TRL in f32 and the formula in f64 differ by {error:.1e}")
    assert error < tolerance, what


def main():
    directory = sys.argv[1]
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tiny_llama")
    os.makedirs(directory, exist_ok=True)
    losses, margins, trl_gradients, adapter = by_trl(folder)
    expected, gradients, values = by_formula(folder)
    agree("losses", losses, expected["losses"])
    agree("margins", margins, expected["margins"])
    for step in (0, STEPS - 1):
        agree(f"gradients of step {step + 1}", torch.cat([g.flatten() for g in trl_gradients[step].values()]),
              torch.cat([gradients[step][n].flatten() for n in trl_gradients[step]]))
    agree("adapter", torch.cat([v.flatten() for v in adapter.values()]),
          torch.cat([values[n].flatten() for n in adapter]))
    for name in values:
        expected["first." + name] = gradients[0][name]
        expected["last." + name] = gradients[-1][name]
        expected["adapter." + name] = values[name]
    save_file({n: v.float().contiguous() for n, v in expected.items()},
              os.path.join(directory, "expected.safetensors"))
    with open(os.path.join(directory, "pairs.jsonl"), "w", encoding="utf-8") as file:
        for prompt, chosen, rejected in PAIRS:
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


if __name__ == "__main__":
    main()
