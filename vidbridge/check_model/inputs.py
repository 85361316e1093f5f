"""Whether text, pixels and positions reach the model as it was trained with them. No weight is needed."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from typing import Any, Sequence

import numpy as np
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vidbridge.check_model.base import Item, Row
from vidbridge.check_model.positions import TOLD_IN_WORDS, runs_by_rule
from vidbridge.media.decode import resized
from vidbridge.policy.model_folder import read_config, read_preprocessing
from vidbridge.policy.processor import Processor
from vidbridge.types import Clip, EncodedPrompt, Prompt

REPLY = "reply"  # an assistant's turn to look at how the template ends it


def check_template(processor: Processor, items: Sequence[Item]) -> Row:
    """The template shows all texts and videos, opens the assistant's turn and ends it with EOS."""
    problems = [problem for item in items for problem in template_problems(processor, item)]
    problems += suppression_problems(processor, items[0].prompt)
    eos = processor.tokenizer.convert_ids_to_tokens(processor.eos_id)
    num_videos = sum(len(item.prompt.clips) for item in items)
    return Row(
        name="chat template",
        ok=not problems,
        found="; ".join(dict.fromkeys(problems))
        or f"{len(items)} prompts with {num_videos} videos; a turn ends with {eos}; "
        f"{len(processor.suppressed_ids):,} tokens are never sampled",
        advice="take chat_template.jinja (or .json), tokenizer.json and config.json from the released model"
        if problems
        else "",
    )


def template_problems(processor: Processor, item: Item) -> list[str]:
    """Return what is wrong with one prompt and the answer to it, a phrase each."""
    messages = list(item.prompt.messages)

    def rendered(messages: list[Any], *, opens: bool) -> str:
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
        assert isinstance(text, str)
        return text

    problems, prompt = [], rendered(messages, opens=True)
    for message in messages:
        for text in texts_of(message):
            if text.strip() not in prompt:
                problems.append(f"the text of the {message['role']} message is not in the prompt")
    answered = rendered([*messages, {"role": "assistant", "content": [{"type": "text", "text": REPLY}]}], opens=False)
    if not answered.startswith(prompt + REPLY) or prompt == rendered(messages, opens=False):
        problems.append("a prompt does not end where the assistant's turn begins")
    else:
        end = processor.tokenizer(answered[len(prompt + REPLY) :], add_special_tokens=False).input_ids
        if end[:1] != [processor.eos_id]:
            eos, found = processor.tokenizer.convert_ids_to_tokens([processor.eos_id, *end[:1]])
            problems.append(f"the template ends a turn with {found}, but EOS is {eos}")
    try:
        problems += placeholder_problems(processor, processor.encode(item.prompt))
    except ValueError as error:
        problems.append(str(error))
    try:
        gold = processor.decode(processor.encode_completion(item.gold))
        if unicodedata.normalize("NFC", gold) != unicodedata.normalize("NFC", item.gold):
            problems.append(f"an answer is not read as it was written: {item.gold!r} comes back as {gold!r}")
    except ValueError as error:
        problems.append(str(error))
    return problems


def texts_of(message: Any) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def placeholder_problems(processor: Processor, encoded: EncodedPrompt) -> list[str]:
    """Tokens of patches must stand in runs between the borders, as many and as long as the grids say."""
    config, ids = processor.config, encoded.input_ids.tolist()
    grids = runs_by_rule(processor, encoded)
    expected = [math.prod(grid) // config.vision_config.spatial_merge_size**2 for grid in grids]
    runs = runs_of(processor.is_vision(encoded.input_ids).tolist())
    problems = []
    if [stop - start for start, stop in runs] != expected:
        problems.append(f"clips of {expected} tokens have runs of {[stop - start for start, stop in runs]}")
    for start, stop in runs:
        borders = (config.vision_start_token_id, config.vision_end_token_id)
        if (*ids[start - 1 : start], *ids[stop : stop + 1]) != borders:
            problems.append("a clip does not stand between vision_start and vision_end")
    return problems


def runs_of(marked: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where ``marked`` is true without a gap, as (start, stop)."""
    edges = np.flatnonzero(np.diff([0, *marked, 0]))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def suppression_problems(processor: Processor, prompt: Prompt) -> list[str]:
    """No control token but EOS may be sampled: those of config.json, of the template, and all that decoding hides."""
    config, tokenizer = processor.config, processor.tokenizer
    control = control_tokens(processor)
    suppressed = set(processor.suppressed_ids.tolist())
    borders = (config.vision_start_token_id, config.vision_end_token_id)
    sampled = {*control, config.video_token_id, config.image_token_id, *borders} - suppressed - {processor.eos_id}
    problems = []
    if sampled:
        problems.append(f"control tokens may be sampled: {tokenizer.convert_ids_to_tokens(sorted(sampled))}")
    if processor.eos_id in suppressed:
        problems.append("EOS is never sampled: no completion would end")
    return problems


def control_tokens(processor: Processor) -> list[int]:
    """Ids of the tokens that decoding leaves out of the text."""
    tokenizer = processor.tokenizer
    ids = sorted({*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids})
    return [id for id in ids if not tokenizer.decode([id], skip_special_tokens=True)]


def check_control_tokens(processor: Processor, item: Item) -> Row:
    """Text of the data that spells a control token is refused, or read as the letters it consists of."""
    counted = processor.encode(item.prompt).input_ids
    obeyed, num_refused = [], 0
    control = [token for token in control_tokens(processor) if token != processor.tokenizer.unk_token_id]  # any word is
    for token in control:
        spelt = processor.tokenizer.convert_ids_to_tokens(token)
        try:
            ids = processor.encode(with_text(item.prompt, f" {spelt} ")).input_ids
        except ValueError:
            num_refused += 1
            continue
        if int((ids == token).sum()) != int((counted == token).sum()):
            obeyed.append(str(spelt))
    read = len(control) - num_refused - len(obeyed)
    return Row(
        name="control tokens in texts",
        ok=not obeyed,
        found=f"a question that spells {', '.join(obeyed)} is obeyed: it can end its turn and write the answer"
        if obeyed
        else f"{len(control)} spelt in a question: {num_refused} refused, {read} read as letters",
        advice="remove these texts from the data" if obeyed else "",
    )


def with_text(prompt: Prompt, text: str) -> Prompt:
    """Return the prompt with ``text`` at the end of its last message."""
    *others, last = prompt.messages
    content = last["content"]
    content = content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return replace(prompt, messages=(*others, {**last, "content": content}))


def check_pixels(processor: Processor, path: str) -> Row:
    """Patches of moving waves in several sizes against those of the Hugging Face processor at ``path``."""
    budget = replace(processor.frames, total_pixels=None)
    theirs, name, note = hugging_face_patches(path, budget.min_pixels, budget.max_pixels)
    side = math.isqrt(budget.max_pixels)
    fits = budget.size(side, side, 1)
    sizes = [fits, (side // 2, side // 3), (2 * side + 1, 3 * side), (side // 2, 4 * side)]
    grey_level = 1 / 255 / min(processor.numbers["image_std"])
    problems, exact, in_levels = [], 0.0, 0.0
    for height, width in sizes:
        frames = waves(4 if processor.config.model_type in TOLD_IN_WORDS else 3, height, width)
        if note:  # stills
            frames = frames[:1].repeat(processor.numbers["temporal_patch_size"], axis=0)
        size = budget.size(height, width, len(frames))
        seen = np.stack([resized(frame, size) for frame in frames])
        clip = Clip(frames=seen, times_s=np.arange(len(seen)) + 0.5)
        content = [{"type": "video"}, {"type": "text", "text": "."}]
        ours = processor.encode(Prompt(messages=({"role": "user", "content": content},), clips=(clip,)))
        patches, grid = theirs(frames)
        if ours.grid_thw.tolist() != grid:
            problems.append(f"{width} x {height}: grid {ours.grid_thw.tolist()}, theirs is {grid}")
            continue
        apart = float((ours.pixel_values - patches).abs().max())
        if size == (height, width):
            exact = max(exact, apart)
        else:  # Pillow and torchvision round to whole grey levels after each of two passes
            in_levels = max(in_levels, apart / grey_level)
    if exact > 1e-5:
        problems.append(f"frames that fit are {exact:.2g} apart")
    if in_levels > 2.01:
        problems.append(f"resized frames are {in_levels:.1f} grey levels apart")
    mean = ", ".join(f"{value:.3f}" for value in processor.numbers["image_mean"])
    fine = f"{name}, {len(sizes)} sizes: {exact:.1e} apart where they fit, {in_levels:.1f} grey levels where resized"
    return Row(
        name="pixels",
        ok=not problems,
        found=(f"{name}: " + "; ".join(problems) if problems else fine) + f" (mean {mean})" + note,
        advice="compare image_mean, image_std and the sizes in preprocessor_config.json and "
        "video_preprocessor_config.json with the released model's"
        if problems
        else "",
    )


def hugging_face_patches(path: str, min_pixels: int, max_pixels: int) -> tuple[Any, str, str]:
    """A function from frames [T, H, W, 3] to patches and grid, whose it is, and what to know about it.

    It is the video processor's where torchvision can be imported, else the image processor's for a still picture.
    """
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    try:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    except (ImportError, RuntimeError, OSError):  # not there, or made for another torch
        video_settings = read_preprocessing(path).get("video_preprocessor_config.json")
        images = (
            Qwen2VLImageProcessorPil.from_dict(video_settings)
            if video_settings
            else Qwen2VLImageProcessorPil.from_pretrained(path)
        )

        def of_still(frames: np.ndarray) -> tuple[torch.Tensor, Any]:
            out = images([frames[0]], size=size, return_tensors="pt", input_data_format="channels_last")
            return out["pixel_values"], out["image_grid_thw"].tolist()

        return of_still, type(images).__name__, "; torchvision cannot be imported: stills, no videos"
    of_qwen3 = read_config(path).model_type in TOLD_IN_WORDS
    videos = (Qwen3VLVideoProcessor if of_qwen3 else Qwen2VLVideoProcessor).from_pretrained(path)

    def of_video(frames: np.ndarray) -> tuple[torch.Tensor, Any]:
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
        # the limits of Qwen3-VL are those of all frames together
        limits = {edge: pixels * len(frames) for edge, pixels in size.items()} if of_qwen3 else size
        out = videos([planes], size=limits, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt")
        return out["pixel_values_videos"], out["video_grid_thw"].tolist()

    return of_video, type(videos).__name__, ""


def waves(num_frames: int, height: int, width: int) -> np.ndarray:
    """Smooth frames [T, H, W, 3] uint8 that move, each channel in its own phase."""
    time, row, column = np.mgrid[0:num_frames, 0:height, 0:width]
    planes = [128 + 100 * np.sin(row / 9 + column / 7 + time + phase) for phase in (0, 1, 2)]
    return np.stack(planes, axis=-1).astype(np.uint8)
