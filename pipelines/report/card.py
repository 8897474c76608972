"""A model card in Hugging Face's format: Markdown below a YAML header.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines import __version__
from pipelines.listing import PROGRAM
from pipelines.report import parts
from pipelines.report.measured import Measured

TAGS = {
    "images": "image-classification",
    "labels": "image-classification",
    "pixels": "image-segmentation",
    "boxes": "object-detection",
}
#: Names of metrics on the hub.
METRICS = {"miou": "mean_iou"}
Found = Mapping[str, Mapping[str, Mapping[str, Any]]]


def model_card(
    name: str, measured: Mapping[str, Measured], found: Found, config: Mapping[str, Any], command: str
) -> str:
    """The card's text.

    Args:
        name: Of the run.
        measured: What was measured on each split.
        found: Scores with their intervals, by split and metric.
        config: Of the run.
        command: That trained it; may be empty.
    """
    one = next(iter(measured.values()))
    tag = TAGS[one.facts["kind"]]
    model = (config.get("model") or {}).get("init_args") or {}
    source = str(one.facts.get("source", "data"))
    names = ", ".join(one.class_names[:40]) + (", ..." if len(one.class_names) > 40 else "")
    task, net = tag.replace("-", " ").capitalize(), network(model) or "a network"
    what = f"{task} with {net}, trained with vision-pipelines {__version__}."
    parts_of_card = [
        f"---\n{yaml.safe_dump(_header(name, tag, source, model, found), sort_keys=False, allow_unicode=True)}---\n",
        f"# {name}\n\n{what} Classes: {names}.\n",
        "## Results\n\nIntervals hold 95 % (a bootstrap over images); `report.html` has more.\n",
        _results(measured, found),
        f"## Use\n\n```\n{PROGRAM} predict --ckpt_path checkpoints/best.ckpt --source PICTURES\n```\n",
    ]
    if one.temperature != 1:
        parts_of_card.append(
            f"Probabilities are calibrated with `--model.calibrated true` (temperature {one.temperature:.3f}).\n"
        )
    parts_of_card += [
        "## Training\n" + (f"\n```\n{command}\n```\n" if command else ""),
        f"Data: {_folder(source)}. Images and splits: `split.json`; all settings: `config.yaml`.\n",
        "## Limits\n\nMeasured on images like those of the splits above only. Intended use, license and what the data"
        " may be used for are for the author to add.\n",
    ]
    return "\n".join(parts_of_card)


def network(model: Mapping[str, Any]) -> str:
    """What a task's arguments say of its network; may be empty."""
    return " on ".join(str(model[key]) for key in ("detector", "architecture", "backbone") if model.get(key))


def _header(name: str, tag: str, source: str, model: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """What the hub reads."""
    header: dict[str, Any] = {
        "library_name": "vision-pipelines",
        "pipeline_tag": tag,
        "tags": [tag, "vision-pipelines", *(["timm"] if model.get("backbone") else [])],
        "metrics": [METRICS.get(metric, metric) for metric in found[next(iter(found))]],
        "model-index": [{"name": name, "results": [_result(tag, source, split, of) for split, of in found.items()]}],
    }
    if model.get("pretrained") is True and model.get("backbone"):
        header["base_model"] = f"timm/{model['backbone']}"
    return header


def _results(measured: Mapping[str, Measured], found: Found) -> str:
    lines = ["| split | images | metric | value | 95 % |", "| --- | --- | --- | --- | --- |"]
    for split, of in found.items():
        for metric, value in of.items():
            ends = f"{value['low']:.4f} to {value['high']:.4f}"
            number = f"{len(measured[split]):,}"
            lines.append(f"| {parts.SPLITS[split]} | {number} | {parts.word(metric)} | {value['mean']:.4f} | {ends} |")
    return "\n".join([*lines, ""])


def _result(tag: str, source: str, split: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One entry of the model index."""
    metrics = [
        {
            "type": METRICS.get(name, name),
            "name": f"{parts.word(name)} [{value['low']:.4f}, {value['high']:.4f}]",
            "value": None if value["mean"] != value["mean"] else round(float(value["mean"]), 6),
        }
        for name, value in found.items()
    ]
    data = {"name": _folder(source), "type": _folder(source).lower(), "split": parts.SPLITS[split]}
    return {"task": {"type": tag}, "dataset": data, "metrics": metrics}


def _folder(source: str) -> str:
    """A data set's name: no path of this machine."""
    return Path(source).name or "data"
