"""Names for files that cannot be read here, by their first bytes."""

from __future__ import annotations

# Where the bytes stand, the bytes, and what begins so.
_BEGINNINGS = (
    (0, b"version https://git-lfs", "a Git LFS pointer, the file itself was not downloaded (`git lfs pull` gets it)"),
    (0, b"#EXTM3U", "an HLS playlist"),
    (0, b"ffconcat", "a list of files for ffmpeg"),
    (0, b"v=0", "a session description (SDP)"),
    (0, b"<?xml", "an XML file"),
    (0, b"<MPD", "a DASH playlist"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"{", "a JSON file"),
    (0, b".RMF", "a RealMedia file"),
    (0, b"YUV4MPEG2", "raw pictures (Y4M)"),
    (0, b"DKIF", "a bare VP8, VP9 or AV1 stream (IVF)"),
    (0, b"\x00\x00\x00\x01\x67", "a bare H.264 stream"),
    (0, b"\x00\x00\x01\x67", "a bare H.264 stream"),
    (0, b"\x00\x00\x00\x01\x40\x01", "a bare H.265 stream"),
    (0, b"\x00\x00\x01\xb3", "a bare MPEG-1 or MPEG-2 stream"),
    (0, b"\x00\x00\x01\xb0", "a bare MPEG-4 stream"),
    (0, b"\x06\x0e\x2b\x34", "an MXF file"),
    (0, bytes.fromhex("b7d800203749da11"), "a recording of Windows Media Center (WTV)"),
    (0, b"nut/multimedia container", "a NUT file"),
    (0, b"\x1f\x07\x00", "a DV file"),
    (0, b"FWS", "a Flash animation"),
    (0, b"CWS", "a Flash animation"),
    (0, b"ID3", "an audio file (MP3)"),
    (0, b"fLaC", "an audio file (FLAC)"),
    (8, b"WAVE", "an audio file (WAV)"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
)
READ = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv and gif files"


def kind_of(path: str) -> str | None:
    """Return what a file is by its first bytes, where that is nothing that is read; None where nobody knows."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as a download that was broken off leaves them"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, mark, kind in _BEGINNINGS:
        if head[start : start + len(mark)] == mark or (start == 0 and text[: len(mark)].lower() == mark.lower()):
            return kind
    return None
