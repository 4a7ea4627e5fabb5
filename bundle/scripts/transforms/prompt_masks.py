"""Turn a user's masks into spatial prompts, one bit per target, on the image's own grid."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import MetaKeys, convert_to_tensor

from scripts.errors import InputError
from scripts.request import Request, decode_request
from scripts.transforms.grid_merger import filled_masks, native_shape, pack_masks
from scripts.transforms.reading import LoadVolume
from scripts.transforms.resampling import resample_like

logger = logging.getLogger(__name__)
CORNER_TOLERANCE = 0.05


def check_same_grid(mask: MetaTensor, image: MetaTensor, name: str) -> None:
    """Refuse a mask that does not lie on the image's own grid.

    Args:
        mask: as loaded.
        image: loaded, possibly resampled since.
        name: of the mask, for the message.

    Raises:
        InputError: another shape, or corners further apart than 5 % of a voxel.
    """
    shape, wanted = tuple(mask.shape[1:]), native_shape(image)
    if shape != wanted:
        raise InputError(f"prompt mask {name} has shape {shape}, the image {wanted}: draw it on this image")
    ours = np.asarray(mask.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    theirs = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=float)
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], [1], indexing="ij")).reshape(4, -1)
    apart = np.linalg.norm((ours - theirs) @ corners, axis=0).max()
    if apart > CORNER_TOLERANCE * np.linalg.norm(theirs[:3, :3], axis=0).min():
        raise InputError(
            f"prompt mask {name} lies elsewhere in space than the image (corners up to {apart:.2f} mm apart): "
            "draw it on this image or resample it to it"
        )


class LoadPromptMasksd(Transform):
    """Load masks, check that they fit the image and put them on its grid as prompts.

    ``mask_key`` holds a path or a list of paths; absent or None means text-only. One path is a label map: its values
    are named by the table at ``names_key``, or are the targets' own label values (such as an earlier answer of ours,
    corrected by hand). Several paths are one mask for each target, in the order asked.

    Args:
        parser: understands the names in the table.
        image_key: preprocessed image at its own resolution, its axes perhaps turned since it was read.
        mask_key: path or paths.
        names_key: table label value -> name, a dictionary or the path of a JSON file; optional.
        prompts_key: where the prompts go.
        request_key: the request.
    """

    def __init__(
        self,
        parser: Any,
        image_key: str = "image",
        mask_key: str = "prompt_mask",
        names_key: str = "prompt_mask_names",
        prompts_key: str = "prompts",
        request_key: str = "request",
    ) -> None:
        self.parser = parser
        self.load = LoadVolume()
        self.image_key = image_key
        self.mask_key = mask_key
        self.names_key = names_key
        self.prompts_key = prompts_key
        self.request_key = request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with packed prompts ``[ceil(N / 8), H, W, D]`` (``pack_masks``) for the masks.

        Raises:
            InputError: a mask on another grid, empty, or not assignable to the targets.
        """
        d = dict(data)
        paths, names = d.pop(self.mask_key, None), d.pop(self.names_key, None)
        if not paths:
            return d
        request, image = decode_request(d[self.request_key]), d[self.image_key]
        if isinstance(paths, (str, Path)):
            labels = self._on_image_grid(paths, image)
            values = self._values(request, names)
            bits = pack_masks(torch.isin(labels, torch.tensor(v, dtype=torch.float32)) for v in values)
        else:
            if len(paths) != len(request.targets):
                asked = ", ".join(target.name for target in request.targets)
                raise InputError(
                    f"{len(paths)} prompt masks for {len(request.targets)} targets ({asked}): give one each"
                )
            bits = pack_masks(self._on_image_grid(path, image) > 0 for path in paths)
        filled = filled_masks(bits, len(request.targets))
        empty = [target.name for target, any_voxel in zip(request.targets, filled, strict=True) if not any_voxel]
        if len(empty) == len(request.targets):
            raise InputError(f"the prompt mask holds none of the structures asked for: {', '.join(empty)}")
        if empty:
            logger.info("no prompt for %s: found by text alone", ", ".join(empty))
        d[self.prompts_key] = MetaTensor(bits, affine=image.affine)
        return d

    def _on_image_grid(self, path: str | Path, image: MetaTensor) -> torch.Tensor:
        """The values of one mask ``[H, W, D]`` on the image's grid."""
        mask = self.load(path)
        check_same_grid(mask, image, Path(path).name)
        if not torch.isfinite(mask).all() or (mask != mask.round()).any():
            raise InputError(f"prompt mask {Path(path).name} holds values that are no whole numbers: it is not a mask")
        return convert_to_tensor(resample_like(mask, image), track_meta=False)[0]

    def _values(self, request: Request, names: Any) -> list[list[float]]:
        """Label values that stand for each target."""
        if names is None:
            return [[float(target.id)] for target in request.targets]
        table = self._read_table(names)
        by_target: dict[str, list[float]] = {target.name: [] for target in request.targets}
        for value, name in table.items():
            for target in self.parser.parse(str(name), request.modality):
                if target.name in by_target:
                    by_target[target.name].append(float(value))
        if not any(by_target.values()):
            raise InputError(f"prompt_mask_names {table} names none of the targets {list(by_target)}")
        return list(by_target.values())

    @staticmethod
    def _read_table(names: Any) -> dict[int, Any]:
        if isinstance(names, (str, Path)):
            try:
                names = json.loads(Path(names).read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise InputError(f"prompt_mask_names {names}: not a readable JSON file ({e})") from e
        try:
            return {int(value): name for value, name in names.items() if int(value) != 0}
        except (AttributeError, TypeError, ValueError) as e:
            raise InputError(f"prompt_mask_names must map label values to names, got {names!r}") from e
