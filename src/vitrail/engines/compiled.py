"""A model that another runtime executes on the CPU: what is the same for each of them."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.model.checks import check_images
from vitrail.model.vit import ViT
from vitrail.weights.fit import fit

Compiled = Callable[[np.ndarray], np.ndarray]  # normalised images, B C H W, to logits, B classes
_SIZES = 4  # image sizes that are kept, each with its copy of the weights


class CompiledEngine:
    """A runtime's own copy of a model, for any number of images of one size.

    `compile` makes that copy of a model for images of its config's size: now for the size that
    `preprocess` gives, which takes seconds, and for another one when it is met. Raises
    `ConfigError` where it cannot.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        name: str,
        dtype: str,
        model: ViT,
        preprocess: Preprocess,
        compile: Callable[[ViT], Compiled],
    ) -> None:
        self.name, self.dtype, self.preprocess, self.reason = name, dtype, preprocess, ""
        self.model, self.compile = model.to(self.device).eval(), compile
        self.compiled: dict[tuple[int, int], Compiled] = {}
        self._compiled(preprocess.size)

    def run(self, images: Tensor) -> Tensor:
        """Give the logits, B classes in float32, of images, B C H W, as `TorchEngine.run` does."""
        self._check(tuple(images.shape))
        images = images.to(self.device)
        # Inside of the graph this is no faster, and it would have to be made a second time for
        # images that are normalised already.
        if images.dtype == torch.uint8:
            images = self.preprocess.normalize(images)
        run = self._compiled((images.shape[2], images.shape[3]))
        return torch.from_numpy(run(images.float().contiguous().numpy()))

    def _compiled(self, size: tuple[int, int]) -> Compiled:
        if size not in self.compiled:
            self._check((1, self.model.config.channels, *size))
            while len(self.compiled) >= _SIZES:
                del self.compiled[next(iter(self.compiled))]
            try:
                with torch.no_grad():
                    self.compiled[size] = self.compile(fitted(self.model, size))
            except Exception as error:  # whatever a version of it that nobody has tried may say
                raise ConfigError(
                    f'engine "{self.name}" cannot run this model at {size[0]} x {size[1]}: '
                    f'{type(error).__name__}: {error}; engine "torch" can'
                ) from error
        return self.compiled[size]

    def _check(self, shape: tuple[int, ...]) -> None:
        check_images(shape, self.model.config.channels, self.model.config.patch_size)


def logits_alone(model: ViT) -> ViT:
    """Give what a runtime is given of a model: it makes no tokens that its head does not read."""
    twin = copy.copy(model)
    twin.forward = twin.logits_alone
    return twin


def fitted(model: ViT, size: tuple[int, int]) -> ViT:
    """Give the model with its positions resized to another image size, (H, W), once and by torch.

    OpenVINO's own bicubic resizing is another one: logits differ by some thousandths.
    """
    config = model.config.replace(image_size=size)
    if config == model.config:
        return model
    with torch.device("meta"):
        fitted = ViT(config)
    fitted.load_state_dict(fit(model.state_dict(), model.config, config)[0], assign=True)
    return fitted.eval()
