"""GRPO for video language models that answer and describe (VidBridge-R1)."""
