"""Peak memory of whole runs, from file to files, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.measuring import Row, Section, Settings
from scripts.benchmarks.phantom import write_ramp
from scripts.text import Terminology

TARGETS = (4, 24, 96)
LIMIT_GIB = 8.0
GROWTH = 1.1
KIB_PER_GIB = 2**20
MODALITY = "CT"


def run(settings: Settings) -> Section:
    """Stage 1 alone, as shipped, for three numbers of targets."""
    return _measure(settings, [1], TARGETS[:2] if settings.quick else TARGETS)


def run_two_stages(settings: Settings) -> Section:
    """Both stages; a region of interest as large as the volume, which is the worst case."""
    return _measure(settings, [1, 2], TARGETS[:1] if settings.quick else TARGETS[:2])


def _measure(settings: Settings, stages: Sequence[int], targets: Sequence[int]) -> Section:
    shape = (96, 96, 80) if settings.quick else (512, 512, 600)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        image = write_ramp(Path(folder) / "ramp.nii", shape)
        for count in targets:
            found[str(count)] = _in_own_process(settings, image, count, stages, Path(folder) / f"out_{count}")
    rows = [
        Row(f"peak resident memory, {count} targets", entry["peak_gib"], "GiB", LIMIT_GIB)
        for count, entry in found.items()
    ]
    fewest, most = str(min(targets)), str(max(targets))
    if len(found) > 1:
        growth = found[most]["peak_gib"] / found[fewest]["peak_gib"]
        rows.append(Row(f"peak with {most} targets / with {fewest}", growth, goal=GROWTH))
    rows += [Row(f"whole run, {count} targets, stand-in network", e["seconds"], "s") for count, e in found.items()]
    rows.append(Row("of the peak: Python and its libraries", found[fewest]["before_gib"], "GiB"))
    return Section(
        f"Memory, {' x '.join(map(str, shape))} voxels, stage{'s' if len(stages) > 1 else ''} "
        f"{' and '.join(map(str, stages))}, from NIfTI file to result files",
        rows,
        {"runs": found, "shape": list(shape), "stages": list(stages)},
        [
            "A stand-in answers in the small network's place: each target is a slice of the volume, so that every "
            "voxel is labelled and merged. The real small network runs on one window in a hundred for its memory. "
            "One target is a lesion: refined, and its objects numbered."
        ],
    )


def _in_own_process(
    settings: Settings, image: Path, count: int, stages: Sequence[int], output_dir: Path
) -> dict[str, Any]:
    """Run this module as a program and read what it says in its last line."""
    command = [sys.executable, "-m", "scripts.benchmarks.memory", str(image), str(output_dir)]
    command += ["--targets", str(count), "--stages", *map(str, stages), "--bundle_root", str(settings.bundle_root)]
    command += ["--device", str(settings.device), "--config_file", *settings.config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"bench: the run with {count} targets ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_case(settings: Settings, image: Path, count: int, stages: Sequence[int], output_dir: Path) -> dict[str, Any]:
    """Segment one image with the stand-in network; returns seconds and peak memory of this process."""
    terminology = Terminology.load()
    targets = terminology.targets(MODALITY, "lesion")[:1] + terminology.targets(MODALITY, "anatomy")[: count - 1]
    parser = settings.parser(
        image=str(image),
        prompts=[target.name for target in targets],
        modality=MODALITY,
        allow_untrained=True,
        output_dir=str(output_dir),
        stages=list(stages),
        handlers=[],
    )
    real = parser["network_def"]
    parser.update({"network_def": {"_target_": "scripts.benchmarks.phantom.BandNetwork", "network": real}})
    evaluator = parser.get_parsed_content("evaluator")
    before, began = peak_gib(), time.perf_counter()
    evaluator.run()
    report = json.loads((output_dir / f"{image.stem}_seg.json").read_text(encoding="utf-8"))
    return {
        "seconds": time.perf_counter() - began,
        "before_gib": before,
        "peak_gib": peak_gib(),
        "found": sum(structure["voxels"] is not None for structure in report["structures"]),
        "targets": len(report["structures"]),
    }


def peak_gib() -> float:
    """Highest resident memory of this process so far.

    Linux's own counter is read where there is one: ``getrusage`` of a started program begins with what the program
    that started it had.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / KIB_PER_GIB
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / KIB_PER_GIB


def main(arguments: Sequence[str] | None = None) -> None:
    """One run; its measurements are the last line on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("image", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--targets", type=int, required=True)
    parser.add_argument("--stages", type=int, nargs="+", default=[1])
    parser.add_argument("--bundle_root", type=Path, default=Path())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config_file", nargs="+", default=["configs/inference.json"])
    options = parser.parse_args(arguments)
    settings = Settings(tuple(options.config_file), options.bundle_root, device=torch.device(options.device))
    found = run_case(settings, options.image, options.targets, options.stages, options.output_dir)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
