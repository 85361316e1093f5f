"""The files of a run by name: whoever only looks for one of them imports nothing that fills it."""

METRICS = "metrics.jsonl"
ITEMS = "items.jsonl"
COMPLETIONS, SUMMARY = "completions.jsonl", "summary.json"
CURVES, DIAGNOSIS, PAGE = "curves.png", "diagnosis.png", "completions.html"
RECORD = (METRICS, COMPLETIONS, ITEMS)  # what grows while a run goes on
CHECK = "check_model.json"  # of vidbridge/check_model/command.py
