"""One fine-tuning run in a process of its own: score the present weights, train, and write down every score.

    python fine_tuning_run.py settings.json

The process ends with the one that started it, so that a killed training task leaves no run behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARENT_CHECK_SECONDS = 1.0
ORPHANED = 3
"""Exit code where the parent is gone."""


def main(settings_file: str) -> None:
    """Run the bundle's training config.

    Args:
        settings_file: JSON with ``bundle_root``, ``configs`` (files, later ones overlay earlier ones), ``overrides``
            (keys of the config), ``scores`` (file to write) and ``parent`` (process to end with).
    """
    settings: dict[str, Any] = json.loads(Path(settings_file).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(int(settings["parent"]),), daemon=True).start()
    sys.path.insert(0, settings["bundle_root"])
    os.chdir(settings["bundle_root"])
    _train(settings)


def _train(settings: dict[str, Any]) -> None:
    from ignite.engine import Engine, Events
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=settings["configs"],
        meta_file=str(Path(settings["bundle_root"]) / "configs" / "metadata.json"),
        logging_file=str(Path(settings["bundle_root"]) / "configs" / "logging.conf"),
        workflow_type="train",
        **settings["overrides"],
    )
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    scores: list[float | None] = []

    def note(engine: Engine) -> None:
        from scripts.handlers.validation import key_metric

        score = key_metric(engine)
        scores.append(score if score == score else None)
        Path(settings["scores"]).write_text(json.dumps(scores), encoding="utf-8")

    evaluator.add_event_handler(Events.COMPLETED, note)
    evaluator.run()
    # The present weights are what the run is measured against, not one of its results.
    for file in (Path(workflow.parser.get_parsed_content("output_dir")) / "best").glob("*.pt"):
        file.unlink()
    workflow.run()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(ORPHANED)


if __name__ == "__main__":
    main(sys.argv[1])
