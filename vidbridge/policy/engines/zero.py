"""The engines that share the memory of the training among the ranks: ZeRO (arXiv 1910.02054) by DeepSpeed.

Stage 2 divides gradients, 32-bit weights and optimizer among the ranks, stage 3 the weights of the model too, which are
gathered layer by layer while they are used. With ``offload`` both wait in the memory of the CPU.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, ContextManager, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vidbridge.config.checks import require
from vidbridge.config.schema import OptimConfig
from vidbridge.policy.engines.base import EngineConfig, Updates, adamw, trained_weights
from vidbridge.policy.engines.files import PIECES, Piece, piece_of, rank_file
from vidbridge.policy.policy import copy_with, token_logprobs
from vidbridge.runtime import collectives
from vidbridge.types import Batch, Outputs

_BUCKET = 50_000_000  # numbers sent at a time; DeepSpeed's own 500 million would take a gigabyte or two
_STALE = -1  # no number of updates


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig(EngineConfig):
    stage: int  # 2 divides gradients and optimizer, 3 the weights too
    offload: bool = False  # weights and optimizer wait in the memory of the CPU

    def __post_init__(self) -> None:
        super().__post_init__()
        told = f"engine.stage must be 2, or 3 with or without offload, got {self.stage} with offload={self.offload}"
        require(self.stage == 3 or (self.stage == 2 and not self.offload), told)

    @property
    def divides_weights(self) -> bool:
        return self.stage == 3

    def build(self, module: PreTrainedModel, optim: OptimConfig, *, total_updates: int) -> DeepSpeedEngine:
        return DeepSpeedEngine(
            module, optim, total_updates=total_updates, stage=self.stage, offload=self.offload
        )


class LogprobModel(nn.Module):
    """The model and its log-probabilities as one module: DeepSpeed gathers weights as modules are entered and left."""

    def __init__(self, module: PreTrainedModel):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, temperature: float, suppressed_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # a plain tuple, as DeepSpeed makes a new one of what it is given
        return tuple(token_logprobs(self.module, self._with_video(batch), temperature, suppressed_ids))

    def _with_video(self, batch: Batch) -> Batch:
        """Return the batch; one without video gets an empty patch that no token means: all ranks use all weights."""
        if len(batch.grid_thw) > 0:
            return batch
        side = self.module.config.vision_config.spatial_merge_size
        pixels = batch.pixel_values.new_zeros(side * side, batch.pixel_values.shape[1])
        return replace(batch, pixel_values=pixels, grid_thw=batch.grid_thw.new_tensor([[1, side, side]]))


class DeepSpeedEngine(Updates):
    """As LocalEngine: AdamW on 32-bit weights, clipping by the norm over all ranks, bad gradients skipped by all.

    At stage 3 weights of less than ``kept_whole`` numbers are not divided, and the ``whole`` module is a replica, made
    when it is first asked for. Their device is that of the buffers: until they are divided they may be on the CPU.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        optim: OptimConfig,
        *,
        total_updates: int,
        stage: int,
        offload: bool = False,
        kept_whole: int = 100_000,
    ):
        super().__init__(optim, total_updates=total_updates)
        self._device = next(module.buffers()).device
        deepspeed = self._library = _deepspeed(self._device)
        self.module, self.stage = module, stage
        self.replica: PreTrainedModel | None = None
        self._replica_is_of = _STALE  # the number of updates that it has seen
        # before DeepSpeed puts its hooks into the module
        self._outline = copy_with(module, partial(torch.empty_like, device="meta")) if stage == 3 else module
        settings = zero_config(
            stage=stage, offload=offload, dtype=module.dtype, max_grad_norm=optim.max_grad_norm, kept_whole=kept_whole
        )
        optimizer, model = adamw(trained_weights(module), optim), LogprobModel(module)
        if stage == 3:  # one weight after another, where initialize would first bring all of them to the device
            deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=module.dtype)
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.optimizer = self.deepspeed.optimizer.optimizer  # AdamW, on this rank's part

    def forward(self, batch: Batch, temperature: float, suppressed_ids: torch.Tensor) -> Outputs:
        return Outputs(*self.deepspeed(batch, temperature, suppressed_ids))

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed takes the mean over the ranks; the losses are parts of a sum
        self.deepspeed.backward(loss * collectives.world_size(), scale_wrt_gas=False)

    def update(self) -> dict[str, float]:
        self.set_rate(self.optimizer)
        self.deepspeed.step()
        applied = self.deepspeed.was_step_applied()
        return self.count(float(self.deepspeed.get_global_grad_norm()) if applied else float("nan"))

    def whole(self) -> PreTrainedModel:
        if self.stage != 3:
            return self.module
        is_new = self.replica is None
        if self.replica is None:
            self.replica = copy_with(self._outline, partial(torch.empty_like, device=self._device))
        if self._replica_is_of != self.updates:
            for weight, whole in zip(self.module.parameters(), self.replica.parameters(), strict=True):
                if is_new or weight.requires_grad:
                    with self.gathered([weight]):
                        whole.data.copy_(weight.data)
            self._replica_is_of = self.updates
        return self.replica

    def outline(self) -> PreTrainedModel:
        return self._outline

    def gathered(self, weights: Sequence[nn.Parameter]) -> ContextManager[Any]:
        gathered: ContextManager[Any] = self._library.zero.GatheredParameters(list(weights), enabled=self.stage == 3)
        return gathered

    def snapshot(self) -> Callable[[Path], None]:
        tensors = {}
        for number, part in enumerate(self._parts()):
            tensors[f"weight.{number}"] = part
            tensors |= {f"{key}.{number}": value for key, value in self.optimizer.state.get(part, {}).items()}
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        metadata = {**self.counts(), **self._layout(), PIECES: json.dumps(self._pieces())}
        return lambda folder: save_file(tensors, folder / rank_file(collectives.rank()), metadata)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        path = folder / rank_file(collectives.rank())
        if not path.exists():
            raise ValueError(f"{path} is missing: was it written by another engine, or by fewer ranks?")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if (written := {name: metadata.get(name) for name in self._layout()}) != self._layout():
            raise ValueError(f"{path} is of a run with {written}, this one has {self._layout()}: set it back")
        self.set_counts(metadata)
        tensors = load_file(path)
        for number, part in enumerate(self._parts()):
            part.copy_(tensors[f"weight.{number}"])
            state = {key: tensors.get(f"{key}.{number}") for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[part] = {
                key: value.to(part.device) for key, value in state.items() if value is not None
            }
        self._weights_from_parts()
        self._replica_is_of = _STALE

    def _parts(self) -> list[torch.Tensor]:
        """This rank's part of the 32-bit weights, one flat tensor a group of the optimizer."""
        zero = self.deepspeed.optimizer
        parts = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        return list(parts)

    def _pieces(self) -> list[list[Piece]]:
        """Return the pieces of weights that each of ``_parts`` is made of."""
        zero, rank = self.deepspeed.optimizer, collectives.rank()
        names = {weight: name for name, weight in self.module.named_parameters()}
        found = []
        for number, part in enumerate(self._parts()):
            pieces, at = [], 0
            if self.stage == 2:  # the weights of a group stand in one row, of which each rank has an equal share
                share = rank * len(part), (rank + 1) * len(part)
                row = zip(zero.round_robin_bit16_groups[number], zero.round_robin_bit16_offsets[number], strict=True)
                for weight, first in row:
                    pieces += piece_of(names[weight], weight=(first, first + weight.numel()), share=share)
            else:  # each rank has a share of every weight, one after the other
                for weight in zero.fp16_groups[number]:
                    size = weight.partition_numel()
                    share = rank * size, (rank + 1) * size
                    pieces += piece_of(names[weight], weight=(0, weight.ds_numel), share=share, at=at)
                    at += size
            found.append(pieces)
        return found

    def _weights_from_parts(self) -> None:
        """The weights that are computed with from the 32-bit ones: what ends every step of DeepSpeed."""
        zero = self.deepspeed.optimizer
        if self.stage == 2:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for number in range(len(self._parts())):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        zero._post_step(set())

    def _layout(self) -> dict[str, str]:
        """Return how the parts are divided: a checkpoint of another layout cannot be read."""
        return {"stage": str(self.stage), "ranks": str(collectives.world_size())}


def zero_config(
    *, stage: int, offload: bool, dtype: torch.dtype, max_grad_norm: float, kept_whole: int
) -> dict[str, Any]:
    """DeepSpeed's configuration. Gradients are sent and added up in 32 bits, whatever the weights are."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = kept_whole
    if offload:
        on_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero |= {"offload_optimizer": on_cpu, "offload_param": on_cpu}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # an update is when we say so
        "gradient_clipping": max_grad_norm,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own fused AdamW needs no compiler
    }


def _deepspeed(device: torch.device) -> Any:
    """The library, which looks for its device when it is imported. ValueError if it has found another one."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if (found := get_accelerator().device_name()) != device.type:
        raise ValueError(f"DeepSpeed works on {found}, the model is on {device}: set DS_ACCELERATOR={device.type}")
    deepspeed.utils.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)  # of what DeepSpeed calls
    # it would compile a kernel for sums between CPUs, for minutes; gloo has them
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    collectives.init_single(device)
    return deepspeed
