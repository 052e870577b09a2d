"""From an origin to a bundle: found, read, fitted to what was asked for, and never half."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, WeightsError
from vitrail.model.config import ViTConfig, read_fields
from vitrail.model.presets import preset as named
from vitrail.model.vit import ViT, seeded
from vitrail.weights import bundle as bundles
from vitrail.weights import files
from vitrail.weights.architecture import REQUESTS
from vitrail.weights.bundle import Bundle
from vitrail.weights.certificate import Loaded, certify
from vitrail.weights.fit import fit, preprocess_for
from vitrail.weights.origin import STANDARD_NAMES, Origin, parse
from vitrail.weights.reading import HALF, Reading, class_names, log, read_foreign


def load(
    origin: str | Path,
    *,
    dialect: str | None = None,
    preset: str | None = None,
    revision: str | None = None,
    classes: int | None = None,
    channels: int | None = None,
    verify: bool = False,
    **config: Any,
) -> Bundle:
    """Load a model: a run, a bundle, any library's weight file or folder, the hub's, or a preset.

    What tensors show is taken from them. What they cannot show comes from `config` (`ViTConfig`
    fields), else from the library's own config file, else from `preset`; the number of heads is
    asked for where nobody says it, and what else is missing is the arithmetic of the `dialect`'s
    home. `classes` gives a fresh head where the number differs, `channels`, `image_size` and
    `patch_size` fit the patches and positions (`weights.fit` says how). `revision` is a hub
    repository's. With `verify` the certificate is printed.

    Raises `WeightsError` for what is not there, no weights, or weights of something else, with
    both values where a given one contradicts a tensor; `UnsafeError` for a file that would run
    code.
    """
    given = {**config, "classes": classes, "channels": channels}
    given = read_fields({name: value for name, value in given.items() if value is not None})
    found = load_with_facts(origin, dialect, preset, revision, given)
    if verify:
        print(certify(str(origin), found).text())
    return found.bundle


def fetched(found: Origin, revision: str | None) -> Origin:
    """Bring a hub's repository here, and give the folder that it then is."""
    if found.kind not in ("hf", "timm"):
        if revision is not None:
            raise ConfigError(
                f"revision is of hub repositories; {found.name} is none: leave it out"
            )
        return found
    from vitrail.weights import hub

    name = found.name
    repository = hub.timm_repository(name) if found.kind == "timm" else name
    folder = hub.fetch(repository, revision or found.revision)
    return parse(str(folder))._replace(name=repository)


def architecture(origin: Origin) -> ViTConfig:
    """Give the architecture of a model without reading its weights."""
    if origin.kind == "preset":
        return named(origin.name)
    origin = fetched(origin, None)
    if origin.kind == "bundle":
        return bundles.read_config(origin.path)[0]
    return _read(origin, None, None, {}).config


def load_with_facts(
    origin: str | Path,
    dialect: str | None,
    preset: str | None,
    revision: str | None,
    given: Mapping[str, Any],
) -> Loaded:
    """Load as `load` does, and keep what the certificate tells; `given` are `ViTConfig` fields."""
    found = fetched(parse(str(origin)), revision)
    if found.kind == "preset":
        if dialect or preset:
            raise ConfigError(f"{found.name} is a preset itself: it takes no dialect and no preset")
        return _preset(found, given)
    if found.kind == "bundle":
        if dialect not in (None, "vitrail") or preset:
            raise ConfigError(f"{found.path} is a bundle: it takes no dialect and no preset")
        return _bundle(found, given)
    return _foreign(found, dialect, preset, given)


def _preset(found: Origin, given: Mapping[str, Any]) -> Loaded:
    config = named(found.name).replace(**given)
    bundle = Bundle(
        model=seeded(config, seed=0).eval(),
        preprocess=bundles.default_preprocess(config),
        labels=class_names(config.classes),
        origin={"preset": found.name},
    )
    return Loaded(bundle, None, [])


def _read(
    found: Origin, dialect: str | None, preset: str | None, given: Mapping[str, Any]
) -> Reading:
    sidecars = found.path.name in STANDARD_NAMES or found.path.name != found.name
    return read_foreign(found.path, sidecars=sidecars, dialect=dialect, preset=preset, given=given)


def _foreign(
    found: Origin, dialect: str | None, preset: str | None, given: Mapping[str, Any]
) -> Loaded:
    reading = _read(found, dialect, preset, given)
    for why, names in reading.unused.items():
        log.warning("%s: %d tensors not used (%s): %s ...", found.path, len(names), why, names[0])
    requests = {name: value for name, value in given.items() if name in REQUESTS}
    model, done = _fitted(reading.values(), reading.config, reading.config.replace(**requests))
    origin = {
        "source": found.name,
        "dialect": reading.dialect.name,
        "variant": reading.dialect.variant,
        "unused": {why: len(names) for why, names in reading.unused.items()},
        **reading.keep,
    }
    made = Bundle(
        model=model,
        preprocess=_preprocess(reading.preprocess, reading.config, model.config),
        labels=_labels(reading.labels, reading.config, model.config),
        origin=origin,
    )
    return Loaded(made, reading, done, reading.path)


def _bundle(found: Origin, given: Mapping[str, Any]) -> Loaded:
    stored_config, stored = bundles.read_config(found.path)
    facts = {name: value for name, value in given.items() if name not in REQUESTS}
    config = stored_config.replace(**facts)
    path = found.path / "model.safetensors"
    stored_tensors = files.open_weights(path).tensors
    bundles.check_fit(config, stored_tensors, path, facts)
    tensors = {name: t.read() for name, t in stored_tensors.items()}
    # Halves are on disk alone: the arithmetic is float32.
    whole = {name: t.float() if t.dtype in HALF else t for name, t in tensors.items()}
    requests = {name: value for name, value in given.items() if name in REQUESTS}
    model, done = _fitted(whole, config, config.replace(**requests))
    try:
        bundle = Bundle(
            model=model,
            preprocess=_preprocess(
                Preprocess.from_json(stored["preprocess"]), config, model.config
            ),
            labels=_labels(tuple(stored["labels"]), config, model.config),
            origin=stored.get("origin") or None,
            metrics=(stored.get("metrics") or {}) if not done else {},
        )
    except ConfigError as error:
        raise WeightsError(f"{found.path / 'config.json'}: {error}") from error
    return Loaded(bundle, None, done, path)


def _fitted(
    tensors: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig
) -> tuple[ViT, list[str]]:
    """Give the model that was asked for, with the weights of the stored one."""
    done = []
    if asked.classes != stored.classes and stored.pre_logits:
        # The paper's head of pretraining (section 3.1) has this layer, the head that takes its
        # place for other classes has not; nor has Hugging Face's classifier its pooler.
        asked, stored = (config.replace(pre_logits=False) for config in (asked, stored))
        tensors = {n: t for n, t in tensors.items() if not n.startswith("pre_logits.")}
        done.append("pre_logits left out, as part of the old head")
    tensors, more = fit(tensors, stored, asked)
    with torch.device("meta"):
        model = ViT(asked)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), done + more


def _preprocess(preprocess: Preprocess, stored: ViTConfig, asked: ViTConfig) -> Preprocess:
    if (stored.image_size, stored.channels) == (asked.image_size, asked.channels):
        return preprocess
    if stored.image_size == asked.image_size:
        return replace(preprocess_for(preprocess, asked), size=preprocess.size)
    return preprocess_for(preprocess, asked)


def _labels(labels: tuple[str, ...], stored: ViTConfig, asked: ViTConfig) -> tuple[str, ...]:
    return labels if stored.classes == asked.classes else class_names(asked.classes)
