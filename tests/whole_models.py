"""Random small models of transformers on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_whole_model(kind: str, folder: Path, num_labels: int = 7) -> str:
    """Write a random model of a kind with ``save_pretrained``; the folder's name."""
    import transformers as hf

    torch.manual_seed(0)
    if kind == "segformer":
        sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1, 2, 3, 4]}
        config = hf.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=num_labels)
        model: Any = hf.SegformerForSemanticSegmentation(config)
    else:
        model = _detr(kind, num_labels)
    for name, buffer in model.named_buffers():  # statistics that are not those of a new net
        if buffer.is_floating_point() and "running" in name:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return str(folder)


def _detr(kind: str, num_labels: int) -> Any:
    import transformers as hf

    common = {"encoder_hidden_dim": 32, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    common |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 20}
    common |= {"num_denoising": 10, "num_labels": num_labels, "decoder_in_channels": [32] * 3}
    common |= {"encoder_in_channels": [16, 24, 32]}
    stages = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "embedding_size": 8}
    stages |= {"out_features": ["stage2", "stage3", "stage4"]}
    if kind == "d_fine":
        of_stages: dict[str, Any] = {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 24]}
        of_stages |= {"stage_mid_channels": [8] * 4, "stage_out_channels": [16, 16, 24, 32]}
        of_stages |= {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4, "stage_kernel_size": [3] * 4}
        of_stages |= {"stage_downsample": [False, True, True, True], "stage_light_block": [False] * 4}
        backbone = hf.HGNetV2Config(**(stages | of_stages | {"hidden_sizes": [16, 16, 24, 32]}))
        return hf.DFineForObjectDetection(hf.DFineConfig(**common, backbone_config=backbone))
    backbone = hf.RTDetrResNetConfig(**stages, layer_type="basic")
    if kind == "rt_detr":
        return hf.RTDetrForObjectDetection(hf.RTDetrConfig(**common, backbone_config=backbone))
    return hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(**common, backbone_config=backbone))
