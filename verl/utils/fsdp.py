"""Shards models with FSDP2 over one axis of ranks. The rest of the code sees tensors that happen to be distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from verl.utils.runtime import device_type


def make_mesh() -> DeviceMesh:
    """One axis over all ranks of the process group (see `runtime.join`), which may be one."""
    return init_device_mesh(device_type(), (dist.get_world_size(),), mesh_dim_names=("shard",))


def shard(model: nn.Module, mesh: DeviceMesh, *, layers: Iterable[str], compute_dtype: torch.dtype) -> None:
    """Shard every module of the class names `layers` as one unit, then what is left as the last; in place.

    Parameters keep their type; forward and backward run in `compute_dtype`, gradients are summed in float32.
    """
    # Only the root casts its inputs: rotary tables reach the layers in float32 and are meant to.
    inner = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    names = set(layers)
    for module in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(module, mesh=mesh, mp_policy=inner)
    fully_shard(model, mesh=mesh, mp_policy=outer)


def load_sharded(
    load: Callable[[bool], nn.Module],
    mesh: DeviceMesh,
    *,
    layers: Callable[[nn.Module], Iterable[str]],
    compute_dtype: torch.dtype,
) -> nn.Module:
    """A sharded model that is read from disk once: ``load(empty)`` gives rank 0 the weights, other ranks the shapes."""
    first = mesh.get_local_rank() == 0
    model = load(not first)
    whole = {name: tensor.detach() for name, tensor in model.named_parameters()} if first else {}
    shard(model, mesh, layers=layers(model), compute_dtype=compute_dtype)
    if mesh.size() > 1:
        device = torch.device(mesh.device_type)
        if not first:
            model.to_empty(device=device)
        for name, parameter in model.named_parameters():
            source = whole.pop(name) if first else torch.empty(parameter.shape, dtype=parameter.dtype)
            share = parameter.detach()
            assert isinstance(share, DTensor), f"{name} is not sharded"
            given = distribute_tensor(source.to(device), mesh, share.placements, src_data_rank=0)
            share.to_local().copy_(given.to_local())
        for buffer in model.buffers():
            dist.broadcast(buffer, group=mesh.get_group(), group_src=0)
    return model


def reshard(model: nn.Module) -> None:
    """Put the shards back in place. After a forward pass without backward the root still holds full tensors, in the
    compute type: its named parameters are not the ones that are trained."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor on every rank; all ranks must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def grad_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm () of the gradients over all parameters and ranks; NaN or infinite on every rank if it is on one."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    return full(norm)


def clip(parameters: Sequence[nn.Parameter], *, max_norm: float, norm: Tensor) -> None:
    """Scale gradients of this total `norm` down to `max_norm`, in place."""
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)


def reduce(values: Tensor, mesh: DeviceMesh, *, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Sum (or another `op`) over ranks, elementwise, the result on every rank."""
    result = values.to(mesh.device_type, copy=True)
    dist.all_reduce(result, op=op, group=mesh.get_group())
    return result


def move(model: nn.Module, device: torch.device) -> None:
    """Move the shards to a device, in place: the optimiser goes on seeing the same parameters."""
    reshard(model)
    model.to(device)


def move_optimizer(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move an optimiser's moments; step counts stay on the CPU, where AdamW wants them."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                state[name] = value.to(device)
