"""Writes the batch that LLaMA-Factory's own code makes of a data set: ``CONFIG.yaml key=value … OUT.pt``.

A process of its own, for it patches the libraries it imports and logs a lot.
"""

import sys

import torch
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer

out = sys.argv.pop()
model_args, data_args, training_args, finetuning_args, _ = get_train_args()
loaded = load_tokenizer(model_args)
template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)["train_dataset"]
model = load_model(loaded["tokenizer"], model_args, finetuning_args, is_trainable=True)
collator = SFTDataCollatorWith4DAttentionMask(template=template, model=model, **loaded)
batches = []
for row in dataset:
    batch = dict(collator([row]))
    with torch.no_grad():
        batch["logits"] = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    batches.append(batch)
torch.save(batches, out)
