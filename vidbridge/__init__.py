"""GRPO for video language models that answer and describe (VidBridge-R1)."""

import time

STARTED = time.monotonic()  # of the process, nearly: the doors import this before anything that takes long
