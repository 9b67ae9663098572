"""The plain way to train one classifier today: PEFT LoRA of rank 16, the Hugging Face Trainer, one process a task.

``python -m tests.benchmarks.peer_expert TASK_FOLDER BASE_FOLDER SETTINGS`` prints its accuracies and where its time
went, as JSON. All that is not the method is that of the other side: steps, rows, tokens, base in bf16 with the adapter
in fp32, attention, pooling, head, optimizer, schedule, clipping.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

BEGAN = time.perf_counter()
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")


def main(task: Path, base: Path, settings: dict) -> dict[str, float]:
    import numpy as np
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    from ttmoe.encoding import pool
    from ttmoe.head import Head
    from workers.training.optimizer import learning_rate_factor
    from workers.training.settings import TrainSettings

    class Classifier(torch.nn.Module):
        """A base with adapters, mean pooling and a head."""

        def __init__(self, body: torch.nn.Module, head: Head) -> None:
            super().__init__()
            self.body, self.head = body, head

        def pooled(self, **inputs: torch.Tensor) -> torch.Tensor:
            return pool(self.body(**inputs).last_hidden_state, inputs["attention_mask"], "mean")

        def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.head(self.pooled(**inputs))
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    imported = time.perf_counter()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    files = {split: str(task / f"{split}.jsonl") for split in ("train", "validation", "test")}
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_dataset("json", data_files=files, cache_dir=scratch)
        texts = ("premise", "hypothesis") if "premise" in rows["train"].column_names else ("text",)
        rows = rows.map(
            lambda row: tokenizer(*(row[name] for name in texts), truncation=True, max_length=settings["max_length"]),
            batched=True, remove_columns=list(texts),
        )  # fmt: skip
        collate = DataCollatorWithPadding(tokenizer)
        body = AutoModel.from_pretrained(base, attn_implementation="eager", dtype=settings["dtype"],
                                         hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
        lora = LoraConfig(r=16, lora_alpha=16, target_modules=["query", "value"],
                          layers_to_transform=settings["layers"])  # fmt: skip
        train = TrainSettings(steps=settings["steps"], batch_size=settings["rows"], lr=settings["lr"])
        head = Head(body.config.hidden_size, len(set(rows["train"]["label"])), train.head_dropout)
        model = Classifier(get_peft_model(body, lora), head)
        with torch.no_grad():
            first = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows["train"].take(256)]
            head.fit_scale(model.pooled(**collate(first)))
        adapter = [p for p in model.body.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([{"params": adapter, "lr": train.lr},
                                       {"params": list(head.parameters()), "lr": train.head_lr}],
                                      weight_decay=train.weight_decay, foreach=True)  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, train))
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=f"{scratch}/out", max_steps=settings["steps"], per_device_train_batch_size=settings["rows"],
                per_device_eval_batch_size=128, eval_strategy="steps", eval_steps=settings["eval_every"],
                save_strategy="steps", save_steps=settings["eval_every"], load_best_model_at_end=True,
                metric_for_best_model="accuracy", save_total_limit=1, logging_steps=settings["eval_every"],
                max_grad_norm=train.clip, use_cpu=True, report_to=[], disable_tqdm=True, seed=0,
                remove_unused_columns=False,  # its model's arguments have no names
            ),
            train_dataset=rows["train"], eval_dataset=rows["validation"], processing_class=tokenizer,
            data_collator=collate, optimizers=(optimizer, schedule),
            compute_metrics=lambda found: {
                "accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())
            },
        )  # fmt: skip
        ready = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        validation = trainer.state.best_metric
        accuracy = trainer.evaluate(rows["test"])["eval_accuracy"]
    return {
        "accuracy": accuracy,
        "start": imported - BEGAN,
        "loading": ready - imported,
        "training": trained - ready,
        "testing": time.perf_counter() - trained,
        "validation": validation,
        "parameters": sum(p.numel() for p in adapter),
    }


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    print(json.dumps(result))
