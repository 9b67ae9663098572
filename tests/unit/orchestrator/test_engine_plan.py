"""Plans of engines for clusters that are not here: what is chosen and refused, and the sizes that are shown."""

from __future__ import annotations

import pytest

from orchestrator.api import plan
from orchestrator.plan.forecast import _largest_trials, estimate_memory
from orchestrator.plan.shard_sizes import forecast_shards
from ttmoe.base import empty_body
from ttmoe.errors import InputError

CPUS = "1x0x0GB,cpus=16,memory=256GB"
DDP, SIXTY_FOUR = "train.engine=ddp", "resources.processes_per_expert=64"


def test_ddp_needs_whole_gpus_whoever_counts_the_processes():
    with pytest.raises(InputError, match="not a share of one"):
        plan("llama-8b", [DDP, "resources.gpus_per_expert=0.5"], nodes=["1x8x80GB"])


def test_ddp_takes_as_many_cores_as_the_memory_has_bases_for_and_each_size_has_passes_of_its_own():
    planned = plan("llama-8b", [DDP, "resources.gpus_per_expert=0"], nodes=[CPUS])
    assert planned.plan.processes in (1, 2, 4)
    model = empty_body(planned.plan.base)
    crowded = plan(
        "llama-8b", [DDP, "resources.gpus_per_expert=0", SIXTY_FOUR], nodes=["1x0x0GB,cpus=64,memory=64GB"]
    ).plan
    sizes = {row.processes: row for row in forecast_shards(crowded, model)}
    assert sizes[1].host < 50 * 10**9  # not that of all rows at once, which fit a 64th of the step alone


def test_a_trial_in_one_process_passes_no_more_rows_than_each_process_of_a_group():
    search = ["search.task=task01", "search.trials=16", "search.steps=100", "train.batch_size=128"]
    planned = plan("llama-8b", [DDP, *search], nodes=["1x8x80GB"]).plan
    model, trials = empty_body(planned.base), _largest_trials(planned, empty_body(planned.base))
    assert planned.processes == 8
    assert max(each.gpu for each in estimate_memory(trials, model, trials.experts, 1).values()) < 80 * 10**9
