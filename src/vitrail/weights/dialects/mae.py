"""MAE's files of pretraining: timm's names, and a decoder that no classifier needs.

facebookresearch/mae, `models_mae.py` and `util/pos_embed.py`. Fine-tuned files are timm's.
"""

from vitrail.model.config import PositionResize
from vitrail.weights.dialect import Dialect, has, plain
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
        **plain(config),
        "position_resize": _RESIZE,
        "final_norm": ("tokens", "pooled"),
        "pooling": ("cls", "mean"),
    },
)
