"""MAE's files of pretraining: timm's names, and a decoder that no classifier needs.

facebookresearch/mae, `models_mae.py` and `util/pos_embed.py`. Fine-tuned files are timm's.
"""

from vitrail.model.config import PositionResize
from vitrail.weights.dialect import Dialect, has
from vitrail.weights.dialects.timm import NAMES

_RESIZE = PositionResize(antialias=False)

MAE = Dialect(
    name="mae",
    variant="MAE",
    marks=has(
        r"decoder_blocks\.0\.norm1\.weight|decoder_embed\.weight", r"blocks\.0\.attn\.qkv\.weight"
    ),
    rules=NAMES,
    leave=((r"decoder_.*|mask_token", "the decoder of pretraining"),),
    home={"norm_eps": 1e-6, "activation": "gelu", "pooling": "cls", "position_resize": _RESIZE},
    holds=lambda config: {
        "mlp": "plain",
        "activation": "gelu",
        "norm_eps": 1e-6,
        "head_width": config.width // config.heads,
        "qkv_bias": "all",
        "patch_bias": True,
        "patch_norms": False,
        "proj_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "qk_norm": False,
        "layer_scale": None,
        "class_token": True,
        "distillation_token": False,
        "registers": 0,
        "positions": "learned",
        "prefix_positions": 1,
        "position_resize": _RESIZE,
        "pre_norm": False,
        "pre_logits": False,
        "final_norm": ("tokens", "pooled"),
        "pooling": ("cls", "mean"),
    },
)
