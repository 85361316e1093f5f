"""Every container, codec and kind of file that the installed FFmpeg writes: the right frames, or refused as intended.

    python -m experiments.faults.decode_matrix [--json FILE]

What is right is known from writing the files; a plain reader, and FFmpeg's command line where it is installed, must
say the same where they believe the same clock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Iterator

import av
import numpy as np

from experiments.faults.harness import Case, Options, main
from experiments.faults.numbered import Made, Read, Spec, make, number_of, plain, second_readers, specs
from vidbridge.errors import VideoError
from vidbridge.media.video_file import VideoFile

# Files whose times the plain reader takes as the demuxer guesses them: decoding order, or another time 0.
GUESSED = ("avi", "wmv")
# The muxer's list of edits hides another number of pictures than were written for it: all readers must agree.
HIDDEN_BY_MUXER = (("mpeg4", "edit_list"), ("mpeg2video", "edit_list"), ("mpeg2video", "cut_open"))
OTHER_ZERO = ("late_alone",)  # FFmpeg begins with the first picture, ISO/IEC 14496-12 with the empty edit


def problem_of(made: Made) -> str | None:
    """What we read that is not so."""
    try:
        with VideoFile(str(made.path)) as file:
            if abs(file.duration_s - made.end_s) > made.tolerance_s:
                return f"lasts {file.duration_s:.3f} s instead of {made.end_s:.3f} s"
            if (file.height, file.width) != made.size:
                return f"is {file.width} x {file.height} instead of {made.size[1]} x {made.size[0]}"
            moments = made.moments()
            found = [number_of(np.rot90(pixels, -made.turned)) for pixels in file.frames_at(moments)]
    except VideoError as error:
        return None if error.reason == made.refusal else f"refused: {error.detail} [{error.reason}]"
    if made.refusal:
        return f"read though it is {made.refusal}"
    for time_s, number in zip(moments, found):
        if number != made.number_at(time_s):
            return f"shows {number} at {time_s:.3f} s instead of {made.number_at(time_s)}: {found}"
    return None


def contradiction(made: Made, read: Read) -> str | None:
    """Where another reader sees another frame than is known to be there."""
    times, numbers = read(made.path)
    order = np.argsort(times, kind="stable")
    times_s = np.array(times)[order]
    for time_s in made.moments():
        number = numbers[order[max(int(np.searchsorted(times_s, time_s, side="right")) - 1, 0)]]
        if number != made.number_at(time_s):
            return f"{read.__name__} shows {number} at {time_s:.3f} s instead of {made.number_at(time_s)}"
    return None


def problem(spec: Spec, folder: Path, *, with_command: bool = True) -> str | None:
    """What is wrong with how a file of this kind is read, by us or against the other readers."""
    made = make(spec, folder)
    is_mpg = spec.container == "mpg" and not made.refusal  # few pictures have times of their own, and gaps come of it
    if is_mpg or (spec.codec, spec.kind) in HIDDEN_BY_MUXER:
        times_s, numbers = plain(made.path)
        length_s = made.times_s[1] - made.times_s[0]
        made = replace(made, times_s=times_s, numbers=numbers, end_s=times_s[-1] + length_s)
    try:
        found = problem_of(made)
        if found or made.refusal or made.turned or spec.container in GUESSED or spec.kind in OTHER_ZERO:
            return found
        readers = second_readers()
        closes_gap = spec.container == "ts" and spec.kind == "late"
        if closes_gap or not with_command:  # a pause before the first picture is closed by the command
            readers.pop("ffmpeg", None)
        return next(filter(None, (contradiction(made, read) for read in readers.values())), None)
    finally:
        made.path.unlink(missing_ok=True)


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for spec in specs():
        try:
            yield str(spec), problem(spec, folder)
        except (av.FFmpegError, ValueError) as error:
            yield str(spec), f"cannot be written: {error}"


if __name__ == "__main__":
    av.logging.set_level(None)
    main("decode_matrix", cases)
