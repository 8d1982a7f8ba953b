"""Makes a tiny SAM2 with random weights: all code paths of the real one, milliseconds a frame, meaningless masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from veason.trackers.sam2 import build_predictor

_WIDTH = 64
_MEMORY_WIDTH = 16


class TinySam2(NamedTuple):
    """The two files that `Sam2Tracker` is given."""

    config: Path
    checkpoint: Path


def tiny_sam2(folder: str | Path, seed: int, *, image_size: int = 128, **model: Any) -> TinySam2:
    """Write the config and the checkpoint of a tiny random SAM2 into `folder`; the same seed gives the same bytes.

    `image_size` is the side of the square it works on, a multiple of 32; `model` replaces top-level settings of the
    config, such as ``num_maskmem=3``. The global random state is left alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = TinySam2(folder / "sam2_tiny.yaml", folder / "sam2_tiny.pt")
    files.config.write_text(yaml.safe_dump({"model": {**_model(image_size), **model}}, sort_keys=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = build_predictor(files.config, torch.device("cpu"))
        enliven(predictor)
    torch.save({"model": predictor.state_dict()}, files.checkpoint)
    return files


def enliven(predictor: Any) -> None:
    """Change random weights so that masks react: as drawn, some models find no object and hardly read their memory."""
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(1.0)
        for layer in predictor.memory_attention.layers:
            layer.cross_attn_image.out_proj.weight.mul_(8.0)


def _model(image_size: int) -> dict[str, Any]:
    """Settings of SAM2.1 tiny, narrower and shallower."""
    if image_size % 32:
        raise ValueError(f"image_size is {image_size}, expected a multiple of 32")
    package = "sam2.modeling"
    side = image_size // 16  # of the coarsest feature map
    return {
        "_target_": f"{package}.sam2_base.SAM2Base",
        "image_encoder": {
            "_target_": f"{package}.backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": f"{package}.backbones.hieradet.Hiera",
                "embed_dim": 16,
                "num_heads": 1,
                "stages": [1, 1, 2, 1],
                "global_att_blocks": [3],  # never the first of its stage: sam2 cannot pool a global block
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "_target_": f"{package}.backbones.image_encoder.FpnNeck",
                "position_encoding": _sine(_WIDTH),
                "d_model": _WIDTH,
                "backbone_channel_list": [128, 64, 32, 16],
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": f"{package}.memory_attention.MemoryAttention",
            "d_model": _WIDTH,
            "pos_enc_at_input": True,
            "num_layers": 1,
            "layer": {
                "_target_": f"{package}.memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": 128,
                "dropout": 0.1,
                "pos_enc_at_attn": False,
                "d_model": _WIDTH,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "self_attention": _rope(side),
                "cross_attention": _rope(side, rope_k_repeat=True, kv_in_dim=_MEMORY_WIDTH),
            },
        },
        "memory_encoder": {
            "_target_": f"{package}.memory_encoder.MemoryEncoder",
            "in_dim": _WIDTH,
            "out_dim": _MEMORY_WIDTH,
            "position_encoding": _sine(_MEMORY_WIDTH),
            "mask_downsampler": {
                "_target_": f"{package}.memory_encoder.MaskDownSampler",
                "embed_dim": _WIDTH,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
            },
            "fuser": {
                "_target_": f"{package}.memory_encoder.Fuser",
                "num_layers": 1,
                "layer": {"_target_": f"{package}.memory_encoder.CXBlock", "dim": _WIDTH},
            },
        },
        "image_size": image_size,
        "num_maskmem": 7,
        **_SAM2_1,
    }


def _sine(width: int) -> dict[str, Any]:
    return {"_target_": "sam2.modeling.position_encoding.PositionEmbeddingSine", "num_pos_feats": width}


def _rope(side: int, **more: Any) -> dict[str, Any]:
    return {
        "_target_": "sam2.modeling.sam.transformer.RoPEAttention",
        "feat_sizes": [side, side],
        "embedding_dim": _WIDTH,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.1,
        **more,
    }


_SAM2_1 = {  # the switches of the SAM2.1 configs
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "no_obj_embed_spatial": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m veason.trackers.sam2_tiny", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write sam2_tiny.yaml and sam2_tiny.pt")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    files = tiny_sam2(args.folder, args.seed)
    print(f"--sam2-config {files.config} --sam2-checkpoint {files.checkpoint}")


if __name__ == "__main__":
    main()
