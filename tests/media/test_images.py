"""Image files: upright, in the right colours, in the size of a frame; and every refusal."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.conftest import random_image, video_prompt
from tests.media.videos import corners, counting
from tests.policy.builders import FRAMES
from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.image_file import image_size, read_image
from vidbridge.media.reader import VideoReader
from vidbridge.policy.processor import Processor
from vidbridge.types import ImageRef

BUDGET = FrameBudget(fps=2.0, max_frames=8, min_pixels=256, max_pixels=1024, multiple=8)


def saved(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright_as_its_exif_says(tmp_path, orientation):
    """What a camera stores so that each orientation shows the corners: the inverse of its turn."""
    turns = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p),  # to be turned a quarter clockwise
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](corners())))
    path = saved(tmp_path / "a.png", stored, exif=exif)
    assert np.array_equal(read_image(path), corners())
    assert image_size(path) == corners().shape[:2]


def palette(transparent):
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = 1 if transparent else 0
    return image


SIXTEEN = np.array([[257 * 40 + 128]], np.uint16)  # 40.498 levels of 8 bits


@pytest.mark.parametrize(
    ("image", "name", "shown"),
    [
        (Image.new("RGB", (1, 1), (10, 20, 30)), "a.png", (10, 20, 30)),
        (Image.new("L", (1, 1), 77), "a.png", (77, 77, 77)),
        (Image.new("1", (1, 1), 1), "a.png", (255, 255, 255)),
        (palette(transparent=False), "a.png", (10, 20, 30)),
        (palette(transparent=True), "a.png", (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 51)), "a.png", (206, 208, 210)),  # a fifth of it on white
        (Image.new("LA", (1, 1), (100, 0)), "a.png", (255, 255, 255)),
        (Image.fromarray(SIXTEEN), "a.png", (40, 40, 40)),
        (Image.fromarray(SIXTEEN), "a.tiff", (40, 40, 40)),
        (Image.new("CMYK", (1, 1), (0, 255, 0, 0)), "a.tiff", (255, 0, 255)),  # magenta
        (Image.new("RGB", (1, 1), (10, 20, 30)), "a.bmp", (10, 20, 30)),
        (Image.new("RGB", (1, 1), (10, 20, 30)), "a.ppm", (10, 20, 30)),
        (Image.new("P", (1, 1), 0), "a.gif", (0, 0, 0)),
    ],
)
def test_colours(tmp_path, image, name, shown):
    assert read_image(saved(tmp_path / name, image)).tolist() == [[list(shown)]]


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.jpg", "L"), ("a.webp", "RGB")])
def test_lossy_files(tmp_path, name, mode):
    pixels = read_image(saved(tmp_path / name, Image.fromarray(corners()).convert(mode), quality=95))
    expected = np.asarray(Image.fromarray(corners()).convert(mode).convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).mean() < 6


def test_an_image_is_one_frame_of_the_budgets_size_without_a_time(tmp_path):
    """64 x 48 pixels in 1,024: 36.95 x 27.7, cut to multiples of 8."""
    path = saved(tmp_path / "a.png", Image.fromarray(corners()))
    for workers, cache in ((0, None), (1, None), (0, str(tmp_path / "cache"))):
        reader = VideoReader(str(tmp_path), workers=workers, cache=cache, cache_gb=1.0)
        for _ in range(2):  # the second one out of the cache
            clip = reader(ImageRef(path="a.png"), BUDGET)
            assert clip.frames.shape == (1, 24, 32, 3) and clip.is_image
            assert np.array_equal(clip.frames, decode(ImageRef(path=path), BUDGET).frames)
    with pytest.raises(VideoError, match="leads out of"):
        VideoReader(str(tmp_path / "cache"))(ImageRef(path="../a.png"), BUDGET)


@pytest.mark.parametrize("shape", [(16, 24), (47, 64), (300, 200), (5, 9)])
def test_from_file_to_patches_as_the_hugging_face_image_processor(random_qwen_folder, tmp_path, shape):
    path = saved(tmp_path / "a.png", Image.fromarray(random_image(*shape).frames[0]))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(random_qwen_folder)
    size = {"shortest_edge": FRAMES.min_pixels, "longest_edge": FRAMES.max_pixels}
    expected = theirs(Image.open(path), size=size, return_tensors="pt")
    processor = Processor.from_folder(random_qwen_folder, FRAMES).sized()
    ours = processor.encode(video_prompt(decode(ImageRef(path=path), processor.frames)))
    assert torch.equal(ours.grid_thw, expected["image_grid_thw"])
    torch.testing.assert_close(ours.pixel_values, expected["pixel_values"], atol=1e-5, rtol=1e-5)


def moving(path):
    pictures = [Image.new("L", (8, 8), level) for level in (0, 128, 255)]
    return saved(path, pictures[0], save_all=True, append_images=pictures[1:])


@pytest.mark.parametrize(
    ("make", "reason", "told"),
    [
        (lambda path: str(path), "missing", "no such image file"),
        (lambda path: str(path.parent), "not_a_file", "is a folder"),
        (lambda path: [path.touch(), str(path)][1], "empty", "is empty"),
        (lambda path: [path.write_text("<html>"), str(path)][1], "not_an_image", "is a web page; read are jpg, png"),
        (lambda path: str(counting(path.with_suffix(".mp4"))), "not_an_image", "is no image that can be opened"),
        (lambda path: moving(path.with_suffix(".gif")), "moving", "holds 3 pictures: save the one that is meant"),
        (lambda path: moving(path.with_suffix(".webp")), "moving", "holds 3 pictures"),
        (lambda path: saved(path, Image.new("1", (9000, 9000))), "too_large", "is 9000 x 9000 pixels large, at most"),
        (lambda path: saved(path, Image.new("1", (900, 4))), "unusable", "is too long and thin"),
        (lambda path: saved(path.with_suffix(".tiff"), Image.new("F", (8, 8))), "not_an_image", "has fractions"),
    ],
)
def test_what_is_refused(tmp_path, make, reason, told):
    with pytest.raises(VideoError, match=told) as refusal:
        decode(ImageRef(path=make(tmp_path / "a.png")), BUDGET)
    assert refusal.value.reason == reason


def test_a_postscript_file_starts_no_program(tmp_path):
    path = saved(tmp_path / "a.eps", Image.new("RGB", (8, 8)))
    with pytest.raises(VideoError, match="not_an_image"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tiff", "a.ppm"])
def test_a_file_that_was_cut_short_or_damaged_is_refused_or_read(tmp_path, name):
    """What is cut is refused, what is damaged is refused too or shows something; no other error, and no loop."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    content = Path(saved(tmp_path / name, Image.fromarray(pixels))).read_bytes()
    rng = np.random.default_rng(1)
    with warnings.catch_warnings(action="ignore"):
        for part in (0.1, 0.5, 0.9):
            (tmp_path / name).write_bytes(content[: int(len(content) * part)])
            with pytest.raises(VideoError, match="damaged|not_an_image"):
                read_image(str(tmp_path / name))
        for _ in range(40):
            damaged = bytearray(content)
            for at in rng.integers(0, min(len(content), 400), 3):
                damaged[at] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                assert read_image(str(tmp_path / name)).ndim == 3
            except VideoError as error:
                assert error.reason in ("damaged", "not_an_image", "too_large", "moving")
