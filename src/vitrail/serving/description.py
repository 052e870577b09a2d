"""What a server says of its model, at /v1/model."""

from typing import Any

from vitrail import __version__
from vitrail.serving.service import Service

METHODS = ("rollout", "attention", "relevance")  # occlusion is hundreds of passes


def describe(service: Service, name: str) -> dict[str, Any]:
    """Give the form of `schema.Model`."""
    found, limits = service.answerer, service.limits
    config, (h, w) = found.bundle.model.config, found.preprocess.size
    return {
        "model": name,
        "version": __version__,
        "classes": len(found.bundle.labels),
        "labels": list(found.bundle.labels),
        "parameters": sum(p.numel() for p in found.bundle.model.parameters()),
        "image_size": [h, w],
        "grid": [h // config.patch_size, w // config.patch_size],
        "depth": config.depth,
        "heads": config.heads,
        "methods": [m for m in METHODS if found.bundle.labels or m != "relevance"],
        "preprocess": found.preprocess.to_json(),
        "engine": found.engine.name,
        "dtype": found.engine.dtype,
        "device": str(found.engine.device),
        "fills_up_to": found.floor,
        "limits": {
            field: getattr(limits, field)
            for field in ("batch_size", "body", "pixels", "images", "queue", "wait", "timeout")
        },
    }
