"""Hold the bundle in another program: networks built and loaded once, then image by image, in memory.

    operator = SegmentOperator("bundle", overlays=["exported"])
    result = operator.compute(volume, affine, "both hippocampi and thalami")
    result.label_map, result.report

It is the body of an operator of MONAI Deploy, or of any server: ``setup`` makes one, ``compute`` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from scripts.config_files import config_file
from scripts.errors import InputError
from scripts.interactive import Result, Session
from scripts.pipeline import Pipeline
from scripts.weights import WeightsLoader

PARTS = ("preprocessing", "inferer", "network", "postprocessing", "parser", "device")


class SegmentOperator:
    """The inference config as a ``ConfigWorkflow``, called with images in memory. Not to be shared by threads.

    Args:
        bundle_root: folder of the bundle.
        overlays: configs to lay over ``inference.json``: names in ``configs``, such as "exported", or paths.
        overrides: replace keys of the config, such as ``device`` or ``stages``.

    Attributes:
        workflow: the workflow, for all that its config names: ``workflow.parser.get_parsed_content(...)``.

    Raises:
        InputError: no such bundle or overlay, no such device, or weights that are absent or do not fit.
    """

    def __init__(self, bundle_root: str | Path, overlays: Sequence[str | Path] = (), **overrides: Any) -> None:
        root = Path(bundle_root).expanduser().resolve()
        base = root / "configs" / "inference.json"
        if not base.is_file():
            raise InputError(f"operator: no {base}: give the folder of the bundle")
        files = [str(base), *(config_file(name, "operator", root=root) for name in overlays)]
        # There is no case yet to be checked, and no folder to be made.
        keys = {"progress": False, "save_masks": True, "initialize": ["$check_device(@device)"], **overrides}
        self.workflow = ConfigWorkflow(
            config_file=files,
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(root),
            **keys,
        )
        self.workflow.initialize()
        content = self.workflow.parser.get_parsed_content
        for handler in content("handlers"):
            if isinstance(handler, WeightsLoader):
                handler()
        self.session = Session(Pipeline(*map(content, PARTS)))

    def compute(
        self,
        image: str | Path | np.ndarray | torch.Tensor,
        affine: np.ndarray | torch.Tensor | None,
        prompts: str | Sequence[str],
        modality: str | None = None,
    ) -> Result:
        """Segment one image.

        Args:
            image: voxels ``[H, W, D]``, or the path of a file or DICOM folder.
            affine: 4x4 voxel to world matrix, RAS mm, of an array; None with a path.
            prompts: what to segment, in words.
            modality: "CT", "MRI", ... where the words do not say it; the config's where None.

        Returns:
            Label map on the image's grid, what was understood, and the report.

        Raises:
            ValueError: an image that cannot be used, or words that are not understood; the next call is none the worse.
        """
        self.session.set_image(image, affine, modality)
        return self.session.segment(prompts)
