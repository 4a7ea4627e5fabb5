"""The training task: fine-tune the weights in use on the datastore's final labels, publish them if they are no worse.

It runs the bundle's own ``train.json``, ``small_network.json`` and ``finetune.json`` in a process of its own, at low
priority, so that a run can neither take the server down nor change the network that answers. New weights are put into
use when the run ended well and their validation score is not below that of the present ones by more than a tolerance.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from lib.saved_labels import LabelReader
from scripts.errors import InputError
from scripts.request import as_stages
from scripts.text import Terminology
from scripts.weights import part_of, read_plain

from .case_list import CaseList, write_case_list
from .weights_store import WeightsStore

logger = logging.getLogger(__name__)

CONFIGS = ("train.json", "small_network.json", "finetune.json")
RUN_SCRIPT = Path(__file__).with_name("fine_tuning_run.py")
STAGES: Mapping[str, Mapping[str, str]] = {
    "coarse": {"weights": "weights", "spacing": "spacing", "roi_size": "roi_size"},
    "fine": {"weights": "fine_weights", "spacing": "fine_spacing", "roi_size": "fine_roi_size"},
}
"""Keys of the inference config that belong to each stage."""
NUMBERS = {"coarse": 1, "fine": 2}
NICENESS = 10
LAST_LINES = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        published: number of the new version, or None.
        reason: why it was or was not put into use.
        score_before: mean Dice of the weights in use on the validation patches, None if it could not be measured.
        score: that of the run's best weights.
        training: cases.
        validation: cases.
        skipped: final labels that could not be used.
        structures: name -> cases.
        seconds: of the whole run.
    """

    published: int | None
    reason: str
    score_before: float | None
    score: float | None
    training: int
    validation: int
    skipped: int
    structures: Mapping[str, int]
    seconds: float


class FineTuning(BundleTrainTask):
    """MONAI Label's bundle training task, on the labels that were saved as final.

    Args:
        bundle_root: folder of the bundle.
        store: where weights are published.
        modality: of images of which the datastore does not tell it.
        inference: keys of the inference config that the app replaces (``weights``, ``device`` ...).
        training: keys of the training config to replace, for other networks.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        store: WeightsStore,
        modality: str,
        inference: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        root = Path(bundle_root).expanduser().resolve()
        super().__init__(str(root), {})
        self.store, self.modality = store, modality
        self.inference, self.training = dict(inference or {}), dict(training or {})

    def config(self) -> dict[str, Any]:
        """The options that clients show; ``steps`` 0 takes the bundle's own number."""
        return {
            "device": device_list(),
            "stage": [stage for stage in STAGES if self._stage_answers(stage)],
            "steps": 0,
            "val_split": 0.2,
            "tolerance": 0.01,
        }

    def stats(self) -> dict[str, Any]:
        """What was published: the versions' records, and the number of the one in use for every key."""
        return {"in_use": self.store.in_use(), "versions": self.store.versions()}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and publish what is no worse than before.

        The base class would train in this process and unload the bundle's modules under the networks that answer.

        Args:
            request: see ``config``; lists count by their first item.
            datastore: whose final labels teach.

        Returns:
            The fields of ``Outcome``.

        Raises:
            InputError: nothing to learn from, options out of range, another run going on.
            RuntimeError: the run failed; the weights in use stay.
        """
        options = self._options(request)
        runs = self.store.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(str(runs / ".lock"), timeout=0):
                for left in runs.glob("*/work"):  # of runs that were killed
                    shutil.rmtree(left, ignore_errors=True)
                return asdict(self._run(options, datastore, _new_folder(runs)))
        except Timeout as e:
            raise InputError("training: a run is going on; wait for it or stop it") from e

    def _run(self, options: Mapping[str, Any], datastore: Datastore, folder: Path) -> Outcome:
        began, work = time.time(), folder / "work"
        try:
            reader = LabelReader(self._terminology(), self.modality)
            cases = write_case_list(datastore, reader, work, options["val_split"])
            logger.info(
                "training on %d cases, validation on %d, %d structures; %d final labels are left out",
                *(cases.training, cases.validation, len(cases.structures), cases.skipped),
            )
            self._train(self._settings(options, cases, work), folder)
            outcome = self._publish(options, cases, work, began)
            (folder / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
            logger.info("training ended: %s", outcome.reason)
            return outcome
        finally:
            shutil.rmtree(work, ignore_errors=True)  # it holds patients' labels

    def _settings(self, options: Mapping[str, Any], cases: CaseList, work: Path) -> Path:
        """Write what the run needs."""
        stage, parser = STAGES[options["stage"]], self._inference()
        steps = {}
        if options["steps"]:
            steps = {"segment_steps": [options["steps"]], "segment_warmup": [max(1, options["steps"] // 10)]}
        overrides = {
            "bundle_root": self.bundle_path,
            "data_list": str(cases.cases),
            "prompts_json": str(cases.prompts),
            "modality": self.modality,
            "terminology::path": parser.get_parsed_content("terminology::path"),
            "embeddings": parser.get_parsed_content("embeddings"),
            "spacing": parser.get_parsed_content(stage["spacing"]),
            "roi_size": parser.get_parsed_content(stage["roi_size"]),
            "initial_weights": str(self._initial_weights(options["stage"], work)),
            "output_dir": str(work / "run"),
            "device": f"$torch.device({str(options['device'])!r})",
            "threads": max(1, (os.cpu_count() or 2) // 2),
            "validate#queries#transform#max_queries": cases.most,
            "validate#key_metric#val_mean_dice#num_classes": cases.most,
            **steps,
            **self.training,
        }
        settings = {
            "bundle_root": self.bundle_path,
            "configs": [str(Path(self.bundle_path) / "configs" / name) for name in CONFIGS],
            "overrides": overrides,
            "scores": str(work / "scores.json"),
            "parent": os.getpid(),
        }
        file = work / "settings.json"
        file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return file

    def _train(self, settings: Path, folder: Path) -> None:
        """Run the training process; its output goes to ``train.log`` and, line by line, to the task's log.

        Raises:
            RuntimeError: it ended with an error or was killed.
        """
        environment = {**os.environ, "PYTHONPATH": self.bundle_path, "PYTHONUNBUFFERED": "1"}
        lines: list[str] = []
        with subprocess.Popen(
            [sys.executable, str(RUN_SCRIPT), str(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as process:
            _lower_priority(process.pid)
            with (folder / "train.log").open("w", encoding="utf-8") as log:
                for line in process.stdout or ():
                    log.write(line)
                    lines = [*lines[1 - LAST_LINES :], line.strip()]
                    logger.info("%s", line.rstrip())
        if process.returncode:
            what = f"was killed (signal {-process.returncode})" if process.returncode < 0 else "failed"
            raise RuntimeError(
                f"training: the run {what}; the present weights stay. Its last words, see {folder.name}/train.log: "
                + " / ".join(line for line in lines if line)
            )

    def _publish(self, options: Mapping[str, Any], cases: CaseList, work: Path, began: float) -> Outcome:
        """Compare with the present weights, and put the new ones into use where they are no worse."""
        scores = json.loads((work / "scores.json").read_text(encoding="utf-8"))
        before = scores[0]
        found = sorted((work / "run" / "best").glob("*.pt"))
        score = max((one for one in scores[1:] if one is not None), default=None)
        facts = {
            "score_before": before,
            "score": score,
            "training": cases.training,
            "validation": cases.validation,
            "skipped": cases.skipped,
            "structures": dict(cases.structures),
        }
        number = None
        if not found or score is None or before is None:
            reason = "not put into use: the validation cases show none of the structures, nothing can be compared"
        elif score < before - options["tolerance"]:
            reason = f"not put into use: validation Dice {score:.4f}, the present weights have {before:.4f}"
        else:
            record = {**facts, "time": int(time.time()), "stage": options["stage"]}
            number = self.store.publish(STAGES[options["stage"]]["weights"], found[-1], record)
            reason = f"version {number} is in use: validation Dice {score:.4f}, before {before:.4f}"
        return Outcome(published=number, reason=reason, seconds=round(time.time() - began, 1), **facts)

    def _options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request's options in their types.

        Raises:
            InputError: one that cannot be used.
        """
        given = {key: _first(request.get(key, default)) for key, default in self.config().items()}
        try:
            options = {
                "device": name_to_device(str(given["device"])),
                "stage": str(given["stage"]),
                "steps": int(given["steps"]),
                "val_split": float(given["val_split"]),
                "tolerance": float(given["tolerance"]),
            }
        except (TypeError, ValueError) as e:
            raise InputError(f"training: steps, val_split and tolerance are numbers ({e})") from e
        if options["stage"] not in STAGES or not self._stage_answers(options["stage"]):
            known = ", ".join(self.config()["stage"]) or "none, there are no weights"
            raise InputError(f"training: no stage {options['stage']!r} that answers here; there are: {known}")
        if options["steps"] < 0 or not options["tolerance"] >= 0 or not 0 <= options["val_split"] < 1:
            raise InputError("training: wanted steps and tolerance from 0 on and val_split from 0 to below 1")
        return options

    def _inference(self) -> ConfigParser:
        """The inference config with the app's changes and the weights in use."""
        parser = ConfigParser()
        parser.read_config(Path(self.bundle_path) / "configs" / "inference.json")
        parser.update({"bundle_root": self.bundle_path, **self.inference, **self.store.current()})
        return parser

    def _terminology(self) -> Terminology:
        return Terminology.load(self._inference().get_parsed_content("terminology::path"))

    def _stage_answers(self, stage: str) -> bool:
        """Whether requests are answered with it: teaching another would change nothing that users see."""
        wanted = self.inference.get("stages")
        if wanted is not None and NUMBERS[stage] not in as_stages(wanted):
            return False
        return Path(self._inference().get_parsed_content(STAGES[stage]["weights"])).is_file()

    def _initial_weights(self, stage: str, work: Path) -> Path:
        """The weights in use; those of one stage alone where a file holds both."""
        file = Path(self._inference().get_parsed_content(STAGES[stage]["weights"]))
        state = read_plain(file)
        own = part_of(state, stage)
        if own.keys() == state.keys():
            return file
        torch.save(own, work / "initial.pt")
        return work / "initial.pt"


def _new_folder(runs: Path) -> Path:
    """The next number's folder."""
    number = 1 + max([0, *(int(folder.name) for folder in runs.iterdir() if folder.name.isdigit())])
    folder = runs / f"{number:04d}"
    folder.mkdir()
    return folder


def _first(value: Any) -> Any:
    """Clients send a list of choices whole where nothing was chosen."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _lower_priority(pid: int) -> None:
    try:
        psutil.Process(pid).nice(NICENESS)
    except (psutil.Error, OSError):
        logger.debug("the run keeps its priority")
