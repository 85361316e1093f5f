"""The same record in Weights & Biases: online when a key is configured, else a folder for `wandb sync`."""

from __future__ import annotations

import functools
import json
import netrc
import os
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence
from urllib.parse import urlparse

import wandb

from vidbridge.record.clips import is_image, shown
from vidbridge.record.completions import COLUMNS


class WandbSink:
    """One W&B run, from ``start`` on. ``config`` is logged as it is: hand in a version without secrets."""

    def __init__(
        self,
        *,
        run_dir: Path,
        mode: Literal["online", "offline"],
        project: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        # tables with clips are kept as artifacts: beside the run, so that the folder is all that `wandb sync` needs
        os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb"))
        self._run_dir = run_dir
        self._offline = mode == "offline"
        self._init = functools.partial(
            wandb.init,
            dir=run_dir,
            mode=mode,
            project=project,
            group=group,
            job_type=job_type,
            tags=list(tags),
            config=dict(config),
            # our console is the only one: nothing printed, nothing captured
            settings=wandb.Settings(silent=True, console="off"),
        )

    def start(self, run_id: str | None) -> str:
        """A new W&B run, or run ``run_id`` gone on with; returns its id.

        Offline there is no going on: a further folder of the same id, and `wandb sync` joins them.
        """
        self._run = self._init(id=run_id, resume=None if self._offline or run_id is None else "allow")
        return self._run.id

    @property
    def where(self) -> str:
        folder = Path(self._run.dir).parent
        return f"{folder} (offline; `wandb sync` uploads it)" if self._offline else str(self._run.url)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def completions(self, step: int, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table with what was shown beside each completion; one upload for each distinct clip.

        A column of W&B holds playable videos or images, not both.
        """
        clips = {clip["path"]: self._visible(clip) for row in rows for clip in row["clips"]}
        kinds = {"clip": wandb.Video, "image": wandb.Image}
        cells: list[dict[str, Any]] = []
        for row in rows:
            told = "\n".join(line for clip in row["clips"] for line in shown(clip))
            cells.append({**row, "gates": json.dumps(row["gates"]), "terms": json.dumps(row["terms"]), "shown": told})
            for name, kind in kinds.items():
                of_kind = [seen for clip in row["clips"] if isinstance(seen := clips[clip["path"]], kind)]
                cells[-1] |= {f"{name} {n + 1}" if n else name: seen for n, seen in enumerate(of_kind)}
        visible = sorted({name for line in cells for name in line if name.split()[0] in kinds})
        columns = [*visible, *COLUMNS, "shown"]
        table = wandb.Table(columns=[*columns])
        for line in cells:
            table.add_data(*map(line.get, columns))
        self._run.log({f"completions/{stage}": table}, step=step)  # of one name, a step keeps only the last

    def _visible(self, clip: Mapping[str, Any]) -> wandb.Video | wandb.Image:
        path, caption = str(self._run_dir / clip["path"]), "\n".join(shown(clip))
        if is_image(clip):
            return wandb.Image(path, caption=caption)
        return wandb.Video(path, caption=caption, format="mp4")

    def finish(self, summary: Mapping[str, Any], curves: Path) -> None:
        self._run.log({"curves": wandb.Image(str(curves))})
        self._run.summary.update(dict(summary))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def mode_by_key() -> Literal["online", "offline"]:
    """Online when W&B would find a key (WANDB_API_KEY or netrc), unless WANDB_MODE says otherwise."""
    if wished := os.environ.get("WANDB_MODE"):
        return "online" if wished == "online" else "offline"
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlparse(wandb.Settings().base_url).hostname
    try:
        return host is not None and host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
