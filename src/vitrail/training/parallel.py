"""A model on many processes, from outside it: DDP, FSDP2, and tensors that lie in pieces.

DDP keeps all weights on every process. FSDP2 (Zhao et al. 2023) keeps a piece of each weight,
gradient and optimizer state, and gathers a block's weights while it computes.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from vitrail.model.vit import ViT
from vitrail.training.recipe import Recipe
from vitrail.training.world import World

Parts = Mapping[str, Mapping[str, Tensor]]


class Parallel:
    """How a step is taken by all processes of a world; with one process, as without it."""

    def __init__(self, world: World, recipe: Recipe, device: torch.device) -> None:
        self.world, self.recipe, self.device = world, recipe, device
        self.is_sharded = is_sharded(world, recipe)
        self.wrapped: nn.Module | None = None

    def shard(self, module: nn.Module, model: ViT) -> None:
        """Leave this process a piece of each weight of `module`, in which `model` is."""
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        reshard = self.recipe.parallel.reshard
        # Blocks are gathered in bfloat16, half the traffic. What autocast leaves in float32 stays
        # so: the stream of tokens, and what is before and after the blocks. On a CPU autocast does
        # not bring the weights of a norm back to float32, which the stream asks for.
        on_gpu = self.device.type == "cuda"
        half = torch.bfloat16 if on_gpu and self.recipe.train.dtype == "bfloat16" else None
        policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))

    def wrap(self, module: nn.Module, model: ViT) -> nn.Module:
        """Give what computes in place of `module`, whose gradients are those of all processes."""
        compiles = self.recipe.train.compile
        if self.is_sharded:
            if compiles:
                for block in model.blocks:
                    block.compile()
            self.wrapped = module
            return module
        if self.world.size > 1:
            # Of an image alone the gradient of a token has other strides, which costs nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
            # Weights are sent by `World.spread`, so that nothing is exchanged here, where an error
            # of one process would leave the others waiting.
            module = self.wrapped = DistributedDataParallel(
                module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                init_sync=False,
                gradient_as_bucket_view=True,
            )
        return torch.compile(module) if compiles else module  # type: ignore[return-value]

    def syncs(self, is_last: bool) -> AbstractContextManager[object]:
        """Exchange the gradients of a step in its last micro-batch only."""
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(is_last)
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            return self.wrapped.no_sync()
        return nullcontext()

    def mean(self, loss: Tensor) -> Tensor:
        """Give the mean over processes, on the device; nothing waits for it."""
        return self.total(loss) / self.world.size if self.world.size > 1 else loss

    def total(self, count: Tensor) -> Tensor:
        """Give the sum over processes, on the device; nothing waits for it."""
        if self.world.size > 1:
            dist.all_reduce(count := count.clone())
        return count

    def gathered(self, parts: Parts) -> dict[str, dict[str, Tensor]]:
        """Give whole tensors, on the CPU where they lay in pieces; each process takes part."""
        keep: Callable[[Tensor], Tensor] = whole
        if self.is_sharded:
            keep = _on_cpu if self.world.is_first else _passed_on
        return {
            part: {name: keep(tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    def own(self, parts: Parts) -> dict[str, dict[str, Tensor]]:
        """Give the pieces that are here; what every process has is the first one's."""
        return {
            part: {
                name: local(tensor)
                for name, tensor in tensors.items()
                if isinstance(tensor, DTensor) or self.world.is_first
            }
            for part, tensors in parts.items()
        }


def is_sharded(world: World, recipe: Recipe) -> bool:
    """Say whether weights lie in pieces, one on each process."""
    return world.size > 1 and recipe.parallel.kind == "fsdp"


def whole(tensor: Tensor) -> Tensor:
    """Give a tensor that may lie in pieces; each process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Give what of a tensor is here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """Give a whole value in pieces, where `tensor` lies in pieces; nothing is exchanged."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    here = value.to(tensor.device)
    return distribute_tensor(here, tensor.device_mesh, tensor.placements, src_data_rank=None)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a module that may lie in pieces."""
    own = module.state_dict()
    module.load_state_dict({n: like(own[n], w) if n in own else w for n, w in weights.items()})


def _on_cpu(tensor: Tensor) -> Tensor:
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor


def _passed_on(tensor: Tensor) -> Tensor:
    return whole(tensor).new_empty(0)
