"""From a video, or a montage of several, to the frames that a budget asks for."""

from __future__ import annotations

from contextlib import ExitStack

from vidbridge.errors import VideoError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.montage import in_files, render
from vidbridge.media.resize import letterboxed, resized
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Clip, Montage, VideoRef


def decode(video: VideoRef | Montage, frames: FrameBudget) -> Clip:
    """Return the frames of ``video`` at the budget's times and of its size, with the times at which they are played.

    VideoError when a file cannot be read, or ends before what is shown of it begins.
    """
    montage = video if isinstance(video, Montage) else Montage(sources=(video,))
    shown = dict.fromkeys(segment.source for segment in in_files(montage))
    try:
        with ExitStack() as stack:
            files = {index: stack.enter_context(VideoFile(montage.sources[index].path)) for index in shown}
            # alone a video fills its frames, whose sides are rounded to patches
            return render(montage, files, frames, fit=letterboxed if isinstance(video, Montage) else resized)
    except VideoError:
        raise
    except ValueError as error:  # too long and thin, or an effect without a frame
        raise VideoError(video.path, "unusable", str(error)) from error
