"""Whose file is this? The dialect and the wrapper around it, told from the names of the tensors."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vitrail.errors import WeightsError
from vitrail.weights import rules
from vitrail.weights.dialect import Dialect, Stores
from vitrail.weights.dialects.table import DIALECTS
from vitrail.weights.formats.stored import Stored
from vitrail.weights.target import check_dialect

# What trainers and compilers put before a name; of two that fit, the earlier is taken: averaged
# weights before raw ones, the teacher before the student.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model_state", "model",
    "teacher", "module", "_orig_mod", "net", "network", "encoder", "target_encoder", "visual",
    "backbone", "student",
)  # fmt: skip
_DEEPEST = 5  # `checkpoint.state_dict.module._orig_mod.visual.`

# What is no plain ViT, by a name that only it has.
_OTHERS = (
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.|relative_position_index", "a Swin Transformer"),
    (
        r"relative_position_bias|rel_pos_[hw]|relative_position\.|rel_pos\.",
        "a model with relative positions in its attention (BEiT, EVA, SAM)",
    ),
    (
        r"patch_embed\.backbone\.|patch_embeddings\.backbone\.|conv_root/|gn_root/|conv_stem\.",
        "a hybrid, with a convolutional network before its blocks",
    ),
    (
        r"(^|\.)layers\.\d+\.(linear1|self_attn\.in_proj_weight)|attention\.output\.LayerNorm"
        r"|blocks\.\d+\.(post_norm|res_post)",
        "an encoder with its norms after the branches (post-norm), as torch.nn.TransformerEncoder",
    ),
    (r"blocks\.\d+\.(attns|ffns)\.\d+\.", "a model with parallel branches in each block"),
    (r"attn\.lambda_[qk]\d", "a model with differential attention"),
    (r"inner_attn_ln|beit3\.", "a model with norms inside its branches (EVA-02, BEiT-3)"),
    (r"patch_generator\.embedder", "C-RADIO, whose patches and positions are of its own kind"),
    (r"(^|\.)layer[1-4]\.\d+\.(conv|bn)\d|(^|\.)stages\.\d+\.", "a convolutional network"),
)


class Recognized(NamedTuple):
    """A dialect, its tensors under their names inside the wrapper, and what is outside it."""

    dialect: Dialect
    stores: dict[str, Stored]
    wrapper: str
    outside: tuple[str, ...]


def recognize(stores: Stores, wanted: str | None = None) -> Recognized:
    """Give the dialect of these tensors, `wanted` alone where it is given.

    Raises `WeightsError` for what is no plain ViT, by its name where it is known.
    """
    if wanted is not None:
        check_dialect(wanted)
    if not stores:
        raise WeightsError("there is no tensor in it")
    candidates = [
        dialect
        for dialect in DIALECTS
        if (dialect.name == wanted if wanted else not dialect.asked_for)
    ]
    for wrapper, inside in _unwrapped(stores):
        fits = [dialect for dialect in candidates if dialect.marks(inside)]
        if wanted and not fits:
            fits = [dialect for dialect in candidates if _reads(dialect, inside)]
        if fits:
            _refuse_others([n for n in fits[0].spelled(inside) if not fits[0].why_left(n)])
            outside = tuple(name for name in stores if not _within(name, wrapper, inside))
            return Recognized(fits[0], inside, wrapper, outside)
    _refuse_others(list(stores))
    raise WeightsError(_unknown(stores, wanted))


def _within(name: str, wrapper: str, inside: Stores) -> bool:
    return name.startswith(wrapper) and name.removeprefix(wrapper) in inside


def _unwrapped(
    stores: Stores, before: str = "", deep: int = 0
) -> Iterator[tuple[str, dict[str, Stored]]]:
    """Give the tensors as they are, then without each wrapper, and what that holds in turn."""
    yield before, dict(stores)
    first = next(iter(stores)).split(".")[0]
    shared = [first] if all(name.startswith(f"{first}.") for name in stores) else []
    for word in dict.fromkeys([*WRAPPERS, *shared]) if deep < _DEEPEST else ():
        if inside := _stripped(stores, f"{word}."):
            yield from _unwrapped(inside, f"{before}{word}.", deep + 1)


def _stripped(stores: Stores, word: str) -> dict[str, Stored]:
    return {
        name.removeprefix(word): stored for name, stored in stores.items() if name.startswith(word)
    }


def _reads(dialect: Dialect, stores: Stores) -> bool:
    """Tell whether the dialect's rules find patches and a first block, whatever else is there."""
    arranged, _ = dialect.arrange(stores)
    ours, _ = rules.read(dialect.rules, dialect.spelled(arranged), {})
    return {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= ours.keys()


def _refuse_others(names: Sequence[str]) -> None:
    for pattern, what in _OTHERS:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            raise WeightsError(
                f"this is {what}, not a plain ViT: it has {found}. vitrail reads plain ViTs alone; "
                "the library that the file comes from runs it"
            )


def _unknown(stores: Stores, wanted: str | None) -> str:
    """Say what is there and what would be, in the dialect whose names come nearest."""
    if wanted:
        try:
            like = recognize(stores).dialect
            return f"these are not the names of {wanted}, but of {like.name} ({like.variant})"
        except WeightsError:
            pass
    names = {_anywhere(name) for name in stores}
    best, shared = max(
        ((dialect, len(names & _their_names(dialect))) for dialect in DIALECTS),
        key=lambda pair: pair[1],
    )
    known = _their_names(best)
    return (
        f"the {len(stores)} tensors have the names of no dialect that vitrail knows"
        + (f"; the nearest is {best.name} ({best.variant}), {shared} names alike" if shared else "")
        + (f"\n  missing     {_first(sorted(known - names))}" if shared else "")
        + f"\n  unexpected  {_first(sorted(names - known))}\n"
        "Is it a plain ViT? `dialect=` says which names to take"
    )


def _their_names(dialect: Dialect) -> set[str]:
    return {_anywhere(name) for one in dialect.rules for name in one.theirs}


def _anywhere(name: str) -> str:
    """Give the name without the number of its block."""
    return re.sub(r"(?<![^._/])\d+(?=[./])", "{i}", name)


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])]) or "none"
