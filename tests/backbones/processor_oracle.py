"""Writes processor_numbers.json: what the Hugging Face processors of the families make of some prompts.

    pip install --no-deps --target tv torchvision==0.28.0
    PYTHONPATH=.:tv python -m tests.backbones.processor_oracle

They need torchvision, which does not load beside every torch build, so their numbers are kept. Where its C++ side does
not load, its operators are declared and never called: resizing and normalising are Python.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

FILE = Path(__file__).with_name("processor_numbers.json")
KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
GRIDS, PIXELS = ("image_grid_thw", "video_grid_thw"), ("pixel_values", "pixel_values_videos")
EVERY = 97  # every so manieth number of the pixels is kept, and their sum


def summary(pixels: torch.Tensor) -> list[float]:
    """Return the sum of pixels [patches, D], and a sample of them."""
    return [float(pixels.double().sum()), *pixels.flatten()[::EVERY].tolist()]


def main() -> None:
    declare_operators()
    import transformers
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.video_utils import VideoMetadata

    from tests.backbones.families import processor_prompts, write_family
    from vidbridge.backbones import backbone_of

    numbers: dict[str, Any] = {"transformers": transformers.__version__}
    for kind in KINDS:
        with TemporaryDirectory() as name:
            folder = write_family(kind, Path(name))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            of_qwen3 = kind.startswith("qwen3")
            video_class = Qwen3VLVideoProcessor if of_qwen3 else Qwen2VLVideoProcessor
            videos = video_class(
                patch_size=4, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                size={"shortest_edge": 1, "longest_edge": 10**9}, do_sample_frames=False,
            )  # fmt: skip
            processor = (Qwen3VLProcessor if of_qwen3 else Qwen2_5_VLProcessor)(
                Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, videos,
                chat_template=tokenizer.chat_template,
            )  # fmt: skip
            module = backbone_of(kind).model_class.from_pretrained(folder).model
            numbers[kind] = []
            for prompt in processor_prompts():
                text = tokenizer.apply_chat_template(
                    list(prompt.messages), tokenize=False, add_generation_prompt=True
                )
                metadata = []
                films = [clip for clip in prompt.clips if not clip.is_image]
                for clip in films:  # times are index / rate: our frames lie at (i + 0.5) / fps
                    rate = 2 * round(1 / (clip.times_s[1] - clip.times_s[0]))
                    indices = [round(time_s * rate) for time_s in clip.times_s]
                    metadata.append(VideoMetadata(total_num_frames=100, fps=rate, frames_indices=indices))
                found = processor(
                    text=[text],
                    images=[clip.frames[0] for clip in prompt.clips if clip.is_image] or None,
                    videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in films] or None,
                    video_metadata=metadata or None,
                    return_tensors="pt",
                    return_metadata=True,
                )
                case = {"input_ids": found["input_ids"][0].tolist()}
                case |= {name: found[name].tolist() for name in GRIDS if name in found}
                case |= {name: summary(found[name]) for name in PIXELS if name in found}
                if of_qwen3:  # of Qwen2.5-VL the library's are not those of its training
                    positions, delta = module.get_rope_index(
                        input_ids=found["input_ids"],
                        mm_token_type_ids=found["mm_token_type_ids"],
                        **{name: found[name] for name in GRIDS if name in found},
                    )
                    case |= {"position_ids": positions[:, 0].tolist(), "rope_delta": int(delta)}
                numbers[kind].append(case)
    FILE.write_text(json.dumps(numbers) + "\n")
    print(f"written: {FILE}")


def declare_operators() -> None:
    """Let torchvision be imported where its operators are not there."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        spec = find_spec("torchvision")
        assert spec is not None and spec.origin is not None
        source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted({*re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source), "nms", "qnms"}):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        KEPT.append(library)  # what it defines goes when it does
        import torchvision  # noqa: F401


KEPT: list[torch.library.Library] = []

if __name__ == "__main__":
    main()
