"""What the tests of exported files share: a small bundle, and which files there are."""

from conftest import needs
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

FILE = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
SMALL = ViTConfig(image_size=(16, 24), patch_size=8, classes=2, width=16, depth=1, heads=2)


def bundle_of(model: ViT) -> Bundle:
    config = model.config
    preprocess = Preprocess(size=config.image_size, mean=(0.1, 0.4, 0.5), std=(0.2, 0.6, 0.7))
    labels = ("dark", "light", *"cdefghi")[: config.classes]
    return Bundle(model=model, preprocess=preprocess, labels=labels, origin={"held_out_share": 0.2})


def need(name: str) -> None:
    needs(name)
    if name == "openvino":
        needs("onnx")
