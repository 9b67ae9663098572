"""Tasks of kind generate: plan, forecast and errors before any work."""

from __future__ import annotations

import pytest
import tiny
import tiny_causal
import yaml

from orchestrator.config.loading import load_config, resolved_yaml
from orchestrator.config.schema import Config
from orchestrator.config.yaml_document import read_yaml
from orchestrator.plan.planning import make_plan
from orchestrator.plan.trunk_forecast import count_tokens
from orchestrator.recording.expert_tags import run_params
from ttmoe.errors import InputError


@pytest.fixture
def config(tmp_path):
    def make(folder):
        tasks = {"colours": tiny.text_task(tiny.write_texts(tmp_path / "colours.jsonl", tiny.COLOURS, "south")),
                 "replies": tiny_causal.writing_task(tmp_path / "replies.jsonl")}  # fmt: skip
        return Config.model_validate({"library": "tiny", "base": {"folder": str(folder), "dtype": "float32"},
                                      "tasks": tasks, "storage": {"root": str(tmp_path / "runs")}})  # fmt: skip

    return make


def test_a_generate_task_is_planned(config, tmp_path):
    library = config(tiny_causal.save_causal_base(tmp_path / "base"))
    plan = make_plan(library)
    job = plan.experts["replies"].job
    assert (job.classes, job.data.label_names, plan.base.pooling) == (0, (), "last")
    assert run_params(plan.experts["replies"])["rows.train"] == 144
    assert Config.model_validate(read_yaml(resolved_yaml(library), "resolved").data) == library
    tokens, sequences = count_tokens(job.data, 128)
    assert sequences == 240
    assert 240 * 4 < tokens < 240 * 16  # the prompt, the answer and the special tokens


def test_a_base_that_is_not_causal_is_refused(config, base_folder, tmp_path):
    with pytest.raises(InputError, match=r"\(bert\) is not a causal language model") as caught:
        make_plan(config(base_folder))
    assert caught.value.where == "tasks.replies.kind"
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_base_without_a_language_head_is_refused(config, tmp_path):
    from transformers import AutoModel

    folder = tiny_causal.save_causal_base(tmp_path / "base", tie_word_embeddings=False)
    make_plan(config(folder))
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(InputError, match=r"has no lm_head\.weight"):
        make_plan(config(folder))


@pytest.mark.parametrize(
    ("section", "where"),
    [({"head": "frozen"}, "head"), ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing"),
     ({"train": {"steps": 9, "head_lr": 1e-4}}, "train.head_lr")],
)  # fmt: skip
def test_head_settings_of_a_generate_task_are_refused(tmp_path, section, where):
    task = tiny_causal.writing_task(tmp_path / "replies.jsonl")
    data = {"library": "tiny", "base": {"folder": "base"}, "tasks": {"replies": {**task, **section}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="a task of kind generate has no head") as caught:
        load_config(str(tmp_path / "tiny.yaml"))
    assert f"tasks.replies.{where}" in caught.value.where
    # The library's head settings are valid: they apply to the tasks with a head.
    Config.model_validate(data | {"head": "frozen", "train": {"label_smoothing": 0.1}, "tasks": {"replies": task}})
