"""From a video, a montage of several, or an image, to the frames that a budget asks for."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from vidbridge.errors import VideoError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.image_file import read_image
from vidbridge.media.montage import in_files, render
from vidbridge.media.resize import letterboxed, resized
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Clip, ImageRef, Montage, VideoRef, Visual


def decode(visual: Visual, frames: FrameBudget) -> Clip:
    """Return the frames of a video at the budget's times and of its size, with the times at which they are played.

    An image has the size of a frame of a video of one frame. VideoError when a file cannot be read, or ends before what
    is shown of it begins.
    """
    try:
        return image(visual, frames) if isinstance(visual, ImageRef) else video(visual, frames)
    except VideoError:
        raise
    except ValueError as error:  # too long and thin, or an effect without a frame
        raise VideoError(visual.path, "unusable", str(error)) from error


def image(visual: ImageRef, frames: FrameBudget) -> Clip:
    pixels = read_image(visual.path)
    size = frames.size(pixels.shape[0], pixels.shape[1], 1)
    return Clip(frames=resized(pixels, size)[None], times_s=np.zeros(1), is_image=True)


def video(visual: VideoRef | Montage, frames: FrameBudget) -> Clip:
    montage = visual if isinstance(visual, Montage) else Montage(sources=(visual,))
    shown = dict.fromkeys(segment.source for segment in in_files(montage))
    with ExitStack() as stack:
        files = {index: stack.enter_context(VideoFile(montage.sources[index].path)) for index in shown}
        # alone a video fills its frames, whose sides are rounded to patches
        return render(montage, files, frames, fit=letterboxed if isinstance(visual, Montage) else resized)
