"""MLflow parameters of an expert's run and tags of its version."""

from __future__ import annotations

import json

from orchestrator.plan.planning import ExpertPlan
from workers.expert_result import ExpertResult

_LONGEST_TAG = 4500  # characters; MLflow's limit is 5,000


def run_params(expert: ExpertPlan) -> dict[str, object]:
    """Return the parameters of an expert's run."""
    job = expert.job
    params = {f"train.{key}": value for key, value in job.train.model_dump().items()}
    params |= {f"shape.{role}": shape for role, shape in expert.shapes.items()}
    return params | {
        "adapter.method": job.adapter.method,
        "adapter.rank": job.adapter.rank,
        "head": job.head,
        "adapter.alpha": job.adapter.alpha,
        "adapter.targets": ",".join(job.adapter.targets),
        "adapter.first_layer": job.adapter.first_layer,
        "parameters": job.parameters,
        "base": job.base.id,
        "rows.train": sum(job.data.counts["train"].values()),
    }


def version_tags(expert: ExpertPlan, result: ExpertResult) -> dict[str, object]:
    """Return the tags of an expert's version."""
    base, adapter = expert.job.base, expert.job.adapter
    return {
        "base": f"{base.source}:{base.id}",
        "base_revision": base.revision,
        "base_digest": base.digest,
        "method": adapter.method,
        "rank": adapter.rank,
        "shape": "; ".join(f"{role}={shape}" for role, shape in expert.shapes.items()),
        "parameters": result.parameters,
        "lora16_parameters": expert.lora_parameters,
        "data_fingerprint": expert.job.data.fingerprint,
        "weights_digest": result.weights_digest,
        "metric": f"test.accuracy={result.metrics['test.accuracy']:.4f}",
        **json_tag("spec", expert.spec),
    }


def json_tag(name: str, value: object) -> dict[str, object]:
    """Return ``{name: value as JSON}``, or an empty dict if the text is too long for a tag."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return {name: text} if len(text) <= _LONGEST_TAG else {}
