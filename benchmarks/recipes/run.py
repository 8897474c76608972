"""One training of one side, in a process of its own: ``python -m benchmarks.recipes.run JOB.json``.

Writes the results of the test pictures, the CPU seconds of training and the peak memory beside the job.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes import classification, detection, segmentation
from benchmarks.recipes.peer import Lists, Results, Settings, evaluate, train
from benchmarks.recipes.scores import MEASURES, confusion

PEERS: dict[str, Any] = {
    "classification": classification.ClassificationPeer,
    "detection": detection.DetectionPeer,
    "segmentation": segmentation.SegmentationPeer,
}


def run_peer(job: dict[str, Any], lists: Lists) -> tuple[Results, dict[str, float]]:
    """Train the peer's script."""
    settings = Settings(job["backbone"], job["weights"], tuple(job["size"]), job["epochs"], job["seed"])
    peer = PEERS[job["task"]](settings, lists)
    model = train(peer, settings, MEASURES[job["task"]][1])
    cost = costs()
    return evaluate(peer, settings, model, job["split"]), cost


def run_ours(job: dict[str, Any]) -> tuple[Results, dict[str, float]]:
    """Run the ready config with ``fit``, then its best checkpoint over the same pictures."""
    from pipelines.__main__ import main  # here, so that the peers do not pay for it

    height, width = job["size"]
    arguments = ["fit", "--config", f"{job['task']}/folder", "--name", "recipe", "--data.source", job["source"]]
    arguments += ["--model.backbone", job["backbone"], "--model.pretrained", job["weights"]]
    arguments += ["--data.image_size", f"[{height}, {width}]", "--data.test_fraction", str(job["test_fraction"])]
    arguments += [
        "--trainer.wandb.mode",
        "off",
        "--trainer.max_epochs",
        str(job["epochs"]),
        "--seed_everything",
        str(job["seed"]),
    ]
    for key, value in job["data"].items():
        arguments += [f"--data.{key}", json.dumps(value) if not isinstance(value, str) else value]
    status = main([*arguments, *job["flags"]])
    if status:
        raise SystemExit(status)
    cost = costs()
    return our_results(Path("runs/recipe/0/checkpoints/best.ckpt"), job), cost


def our_results(checkpoint: Path, job: dict[str, Any]) -> Results:
    """What a checkpoint finds, as the peers' ``find`` has it."""
    from pipelines.run.loading import load

    loaded = load(checkpoint)
    task, data = loaded.task, loaded.data
    data.setup()
    task.resolve(data.spec(), "data")
    task.load_pretrained = False
    task.configure_model()
    task.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    task.eval()
    loader = data.test_dataloader() if job["split"] == "test" else data.val_dataloader()
    results: Results = []
    with torch.inference_mode():
        for batch in loader:
            results += of_batch(job["task"], batch, task.predict(batch), len(data.class_names or ()))
    return results


def of_batch(task: str, batch: dict[str, Any], found: dict[str, Any], classes: int) -> Results:
    """The results of one batch of our own task."""
    if task == "classification":
        return [{"right": bool(right)} for right in found["probabilities"].argmax(1) == batch["label"]]
    if task == "segmentation":
        pairs = zip(found["mask"], batch["target"], strict=True)
        return [{"confusion": confusion(mask, truth["mask"], classes)} for mask, truth in pairs]
    results: Results = []
    for place, truth in enumerate(batch["target"]):
        boxes = {key: found[key][place] for key in ("boxes", "scores", "labels")}
        results.append({"found": boxes, "truth": {key: truth[key] for key in ("boxes", "labels", "iscrowd")}})
    return results


def costs() -> dict[str, float]:
    """CPU seconds so far, and the peak memory in MiB of this process and of its largest child."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return {"cpu": seconds, "memory": (own.ru_maxrss + children.ru_maxrss) / 1024}


if __name__ == "__main__":
    path = Path(sys.argv[1]).resolve()
    job = json.loads(path.read_text())
    os.chdir(path.parent)
    torch.set_num_threads(job["threads"])
    if job["side"] == "ours":
        results, cost = run_ours(job)
    else:
        results, cost = run_peer(job, pickle.loads((path.parent / "lists.pkl").read_bytes()))
    torch.save(results, path.parent / "results.pt")
    (path.parent / "costs.json").write_text(json.dumps(cost))
