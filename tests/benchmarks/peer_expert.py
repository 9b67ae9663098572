"""The plain way to train one classifier today: PEFT LoRA of rank 16, the Hugging Face Trainer, one process a task.

``python -m tests.benchmarks.peer_expert TASK_FOLDER BASE_FOLDER SETTINGS`` prints its test accuracy and where its time
went, as JSON. The settings are those that the other side has: steps, rows, tokens, precision, layers.
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
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    imported = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(base)
    files = {split: str(task / f"{split}.jsonl") for split in ("train", "validation", "test")}
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_dataset("json", data_files=files, cache_dir=scratch)
        texts = ("premise", "hypothesis") if "premise" in rows["train"].column_names else ("text",)
        rows = rows.map(
            lambda row: tokenizer(*(row[name] for name in texts), truncation=True, max_length=settings["max_length"]),
            batched=True, remove_columns=list(texts),
        )  # fmt: skip
        classes = len(set(rows["train"]["label"]))
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=16, target_modules=["query", "value"],
                          layers_to_transform=settings["layers"])  # fmt: skip
        model = get_peft_model(model, lora)
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=f"{scratch}/out", max_steps=settings["steps"], per_device_train_batch_size=settings["rows"],
                per_device_eval_batch_size=128, learning_rate=settings["lr"], lr_scheduler_type="cosine",
                warmup_steps=settings["steps"] // 16, eval_strategy="steps", eval_steps=settings["eval_every"],
                save_strategy="steps", save_steps=settings["eval_every"], load_best_model_at_end=True,
                metric_for_best_model="accuracy", save_total_limit=1, logging_steps=settings["eval_every"],
                bf16=settings["bf16"], use_cpu=True, report_to=[], disable_tqdm=True, seed=0,
            ),
            train_dataset=rows["train"], eval_dataset=rows["validation"], processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {
                "accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())
            },
        )  # fmt: skip
        ready = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        accuracy = trainer.evaluate(rows["test"])["eval_accuracy"]
    return {
        "accuracy": accuracy,
        "start": imported - BEGAN,
        "loading": ready - imported,
        "training": trained - ready,
        "testing": time.perf_counter() - trained,
        "parameters": model.get_nb_trainable_parameters()[0],
    }


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    print(json.dumps(result))
