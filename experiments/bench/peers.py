"""What the others do, in plain Hugging Face calls; the learner's side of it is vidbridge/policy/plain.py.

``module`` is the class as ``from_pretrained`` gives it, with nothing of vidbridge in it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from vidbridge.policy.plain import clips_of
from vidbridge.types import EncodedPrompt


def generate(
    module: PreTrainedModel, prompt: EncodedPrompt, *, num_return_sequences: int, **options: Any
) -> torch.Tensor:
    """Completions [num_return_sequences, T] of one prompt by ``generate``, at the prompt's own positions."""
    ids = prompt.input_ids[None].to(module.device)
    # generate wants the place in the row before the three rotary positions, and goes on counting from the last ones
    positions = torch.cat([torch.arange(ids.shape[1])[None], prompt.position_ids])[:, None]
    return module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=positions.to(module.device),
        num_return_sequences=num_return_sequences,
        **clips_of(module.config, [prompt], module.device),
        **options,
    )[:, ids.shape[1] :]
