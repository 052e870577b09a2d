"""Other libraries' models, built by their own code from the file that was read.

A library is imported inside its function: none of them is needed to load a model. What a file
cannot say, the number of heads for instance, is told to it as it was found.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import WeightsError
from vitrail.model.config import ViTConfig
from vitrail.weights import files
from vitrail.weights.dialect import Writing, spell
from vitrail.weights.dialects import timm as timm_dialects
from vitrail.weights.dialects import timm_files
from vitrail.weights.equivalent import within
from vitrail.weights.origin import choose
from vitrail.weights.reading import Reading

Tensors = dict[str, Tensor]
OWN, TOLD = "which read the folder by itself", "told this architecture"
# Weights that change nothing of an image's features, or that a library makes up where a file of
# the encoder alone has none.
_SPARE = ("mask_token", "pooler.", "decoder", "text_", "logit_")


class Peer(NamedTuple):
    """A model, and where its numbers are seen while it runs."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    norm: nn.Module  # gives the final tokens, where it is applied to all of them
    answer: Callable[[Tensor], Tensor]  # images -> logits, or features where there are no classes
    how: str = ""
    entering: bool = False  # a block's output is what enters the module in its place


class Library(NamedTuple):
    """A package, the name that pip knows it by, and how it makes a model of a file."""

    package: str
    distribution: str
    build: Callable[[Reading, Mapping[str, Tensor]], Peer]  # with our tensors


def load_package(name: str) -> None:
    """Import a package that may import torchvision, now or when it is first used.

    torchvision's compiled part does not load beside the CPU build of torch; what its import then
    misses is no more than the names of two operators that no ViT calls.
    """
    try:
        import_module("torchvision")
    except ImportError:
        pass  # not installed: who needs it says so
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                signature = "(Tensor a, Tensor b, float c) -> Tensor"
                torch.library.define(f"torchvision::{operator}", signature)
    import_module(name)


def _theirs(reading: Reading, spelled: bool = False) -> Tensors:
    """Read what belongs to the image encoder, under the names in the file but for the wrapper.

    With `spelled`, under the one name of several that our rules know.
    """
    dialect, found = reading.dialect, {}
    for name, stored in files.open_weights(reading.path).tensors.items():
        inside = name.removeprefix(reading.wrapper)
        known = spell(inside, dialect.spellings)
        # By the token of masked training timm knows DINOv2.
        ours = known == "mask_token" or dialect.why_left(known) is None
        if name.startswith(reading.wrapper) and ours:
            found[known if spelled else inside] = stored.read()
    return found


def _folder(reading: Reading, key: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Give the folder and its `config.json` where a library finds both by itself."""
    folder = reading.path.parent
    if choose([entry.name for entry in folder.iterdir()]) != [reading.path.name]:
        return None
    if not (folder / "config.json").is_file():
        return None
    stored = files.read_json(folder / "config.json")
    return (folder, stored) if key in stored else None


def _dtype(values: Mapping[str, Tensor]) -> torch.dtype:
    return values["patch_embed.proj.weight"].dtype


def _check_size(reading: Reading, blank: nn.Module) -> None:
    """Raise `WeightsError` where a config file beside the weights asks for far more than they are.

    `blank` is the model on the meta device, which takes no memory.
    """
    there = sum(math.prod(s.shape) for s in files.open_weights(reading.path).tensors.values())
    wanted = sum(p.numel() for p in blank.parameters())
    if wanted > 2 * there + 1_000_000:
        raise WeightsError(f"config.json asks for {wanted:,} parameters, and {there:,} are there")


def _timm(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    import timm

    found = _folder(reading, "architecture")
    if found and reading.path.suffix in (".safetensors", ".bin"):
        with torch.device("meta"):
            _check_size(reading, timm.create_model(f"local-dir:{found[0]}"))
        model: Any = timm.create_model(f"local-dir:{found[0]}", pretrained=True)
        model = model.to(_dtype(values))
        size = model.patch_embed.img_size or 0

        def answer(images: Tensor) -> Tensor:
            return model(_with_rest(images, size, reading.config))

        return Peer(model, list(model.blocks), model.norm, answer, OWN)
    model = _timm_model(reading, values)
    dialect = reading.dialect
    # The chunks and prefixes of training files are not known to timm.
    trained = dialect.name in ("dinov2", "dinov3") or dialect == timm_dialects.DINO
    state = _theirs(reading, spelled=trained)
    if dialect == timm_dialects.OPEN_CLIP:
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    if reading.config.positions == "rope":
        from timm.models.eva import checkpoint_filter_fn
    else:
        from timm.models import vision_transformer

        checkpoint_filter_fn = partial(  # as deit.py calls it
            vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True
        )
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return Peer(model, list(model.blocks), model.norm, model, TOLD)


def _timm_model(reading: Reading, values: Mapping[str, Tensor]) -> Any:
    """Make the timm model of this architecture, its weights still random."""
    import timm
    from timm.layers.norm import LayerNorm

    rope = reading.config.positions == "rope"
    holds = (timm_dialects.EVA if rope else timm_dialects.TIMM).holds(reading.config)
    # It is built here as no file could have it built: with any eps, and without layer scale.
    holds = {n: value for n, value in holds.items() if n not in ("norm_eps", "layer_scale")}
    _, config, _ = within(values, reading.config, holds, "timm")
    args = timm_files.eva_args(config) if rope else timm_files.model_args(config)
    # Not by `create_model`, which drops what is None: an architecture's own layer scale stays then.
    model = timm.model_entrypoint(timm_files.architecture(config))(
        num_classes=config.classes, norm_layer=partial(LayerNorm, eps=config.norm_eps), **args
    )
    return model.to(_dtype(values))


def _google(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    """Let timm read the .npz; its own models run such weights with exact GELU, this one as JAX."""
    model = _timm_model(reading, values)
    model.load_pretrained(str(reading.path))
    return Peer(model, list(model.blocks), model.norm, model, TOLD)


def _transformers(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    import transformers

    found = _folder(reading, "model_type")
    given: dict[str, Any] = {}
    if found:
        folder, stored = found
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    else:
        writing = Writing(
            dict(values), reading.config, reading.preprocess, reading.labels, reading.keep
        )
        made = reading.dialect.export(writing)
        folder, stored = None, dict(made.files["config.json"])
        config = transformers.AutoConfig.for_model(**stored)
        given = {"state_dict": _theirs(reading)}
    kind = getattr(transformers, (stored.get("architectures") or [""])[0], None)
    with torch.device("meta"):
        blank = kind(config) if kind else transformers.AutoModel.from_config(config)
    _check_size(reading, blank)
    drawn = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        model, info = type(blank).from_pretrained(
            folder,
            config=config,
            dtype=_dtype(values),
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
    finally:
        if drawn:
            transformers.logging.enable_progress_bar()
    missing = [n for n in info["missing_keys"] if not any(part in n for part in _SPARE)]
    if missing or info["mismatched_keys"]:
        raise WeightsError(f"it does not find {', '.join([*missing, *info['mismatched_keys']])}")
    return _hugging_face_peer(model, reading.config, OWN if found else TOLD)


def _hugging_face_peer(model: Any, config: ViTConfig, how: str) -> Peer:
    tower = getattr(model, "vision_model", model.base_model)
    settings = getattr(model.config, "vision_config", model.config)
    masked = settings.model_type == "vit_mae"
    if masked:
        settings.mask_ratio = 0.0
    run = tower if masked else getattr(model, "get_image_features", model)

    def answer(images: Tensor) -> Tensor:
        how: dict[str, Tensor] = {}
        if masked:  # it shuffles patches by the order of this noise
            count = config.grid[0] * config.grid[1]
            how["noise"] = torch.arange(count, dtype=images.dtype).expand(len(images), -1)
        out = run(_with_rest(images, settings.image_size, config), **how)
        for name in ("logits", "image_embeds"):
            if name in out:
                return out[name]
        if config.pre_logits or config.pre_norm or config.pooling == "map":
            return out.pooler_output
        return _pooled(out.last_hidden_state, config)

    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == config.depth]
    norms = ("layernorm", "post_layernorm", "norm")
    norm = next(getattr(m, n) for m in (tower, model) for n in norms if hasattr(m, n))
    return Peer(model, list(lists[0]), norm, answer, how)


def _with_rest(images: Tensor, size: Any, config: ViTConfig) -> Tensor:
    """Add the pixels that no patch has, but a library wants: SigLIP's 384 are 27 x 14 and 6."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return F.pad(images, (0, width % config.patch_size, 0, height % config.patch_size))


def _pooled(tokens: Tensor, config: ViTConfig) -> Tensor:
    """Pool tokens, B N D to B D, where a library leaves that to its user."""
    return tokens[:, 0] if config.pooling == "cls" else tokens[:, config.prefix :].mean(dim=1)


def _torchvision(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    from torchvision.models.vision_transformer import VisionTransformer

    config = reading.config
    if config.image_size[0] != config.image_size[1]:
        raise WeightsError(f"its class takes no images of {config.image_size}, but square ones")
    model: Any = VisionTransformer(
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.heads,
        hidden_dim=config.width,
        mlp_dim=config.mlp_width,
        num_classes=config.classes,
        representation_size=config.width if config.pre_logits else None,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
    )
    if not config.classes:
        model.heads.head = nn.Identity()
    model.to(_dtype(values)).load_state_dict(_theirs(reading, spelled=True))
    return Peer(model, list(model.encoder.layers), model.encoder.ln, model, TOLD)


def _vit_pytorch(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    from vit_pytorch import SimpleViT, ViT

    config, state = reading.config, _theirs(reading)
    arguments: dict[str, Any] = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_classes": config.classes,
        "dim": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "mlp_dim": config.mlp_width,
        "channels": config.channels,
        "dim_head": config.head_width,
    }
    if "pos_embedding" in state:
        model: Any = ViT(**arguments, pool="cls" if config.pooling == "cls" else "mean")
    else:
        model = SimpleViT(**arguments)
    model.to(_dtype(values)).load_state_dict(state)

    def answer(images: Tensor) -> Tensor:
        out = model(images)
        return out if config.classes else _pooled(out, config)

    # Its blocks are pairs of branches, added outside: what enters the next one is their output.
    layers, norm = model.transformer.layers, model.transformer.norm
    after = [*(attention for attention, _ in list(layers)[1:]), norm]
    return Peer(model, after, norm, answer, TOLD, entering=True)


def _open_clip(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    config = reading.config
    model: Any = VisionTransformer(
        image_size=config.image_size,  # pyright: ignore[reportArgumentType]
        patch_size=config.patch_size,
        width=config.width,
        layers=config.depth,
        heads=config.heads,
        mlp_ratio=(config.mlp_width + 0.5) / config.width,  # it rounds down
        ls_init_value=config.layer_scale,  # pyright: ignore[reportArgumentType]
        output_dim=config.classes,
        act_layer=QuickGELU if config.activation == "quick_gelu" else nn.GELU,
        norm_layer=partial(LayerNorm, eps=config.norm_eps),
    )
    if not config.classes:
        model.proj = None
    model.to(_dtype(values)).load_state_dict(_theirs(reading, spelled=True))
    return Peer(model, list(model.transformer.resblocks), model.ln_post, model, TOLD)


_TIMM = Library("timm", "timm", _timm)
# By the name of the dialect; the blog post's model is in no package.
LIBRARIES = {
    "timm": _TIMM,
    "mae": _TIMM,
    "dinov2": _TIMM,
    "dinov3": _TIMM,
    "google": Library("timm", "timm", _google),
    "huggingface": Library("transformers", "transformers", _transformers),
    "torchvision": Library("torchvision", "torchvision", _torchvision),
    "vit-pytorch": Library("vit_pytorch", "vit-pytorch", _vit_pytorch),
    "clip": Library("open_clip", "open_clip_torch", _open_clip),
}
