"""Evaluates the same set on two ranks in three splits, and writes what each rank computes."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asymgrpo_app.evaluation.metrics import SetMetrics
from tests.support.outcomes import random_outcomes

SPLITS = {
    # Shares of 41 and 12 problems, in batches of different size.
    "uneven": lambda rank, outcomes: [outcomes[:9], outcomes[21:53]] if rank else [outcomes[9:21]],
    # Nothing on rank 1: not even a call of `update`.
    "one_empty": lambda rank, outcomes: [] if rank else [outcomes],
    # As a sampler pads: the first problem is on both ranks.
    "padded": lambda rank, outcomes: [outcomes[rank::2] + outcomes[:1]],
}


def evaluate(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, split in SPLITS.items():
        metric = SetMetrics([1, 2, 4], majority_ks=[2, 4])
        for batch in split(rank, random_outcomes(53)):
            metric.update(batch)
        metrics = {key: list(estimate) for key, estimate in metric.compute().items()}
        content = {"metrics": metrics, "indices": metric.problems.indices}
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(content))
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that torchmetrics is imported once and not by every rank.
    mp.start_processes(evaluate, args=(sys.argv[1],), nprocs=2, start_method="fork")
