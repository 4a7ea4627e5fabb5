"""Ask of a file of the CVPR 2025 challenge what the file itself asks for.

The sentences of its ``text_prompts`` become the case's words. What they mean for the labels of ``segs``:

* A sentence that names several targets (a pair, a group) gives its label to all of them.
* Of two sentences that name the same target the one of the lower label value gets it; the other label stays empty
  unless it names something else too. A label map has one label for each voxel.
* A sentence that is not understood leaves its label empty; if none is understood, the case fails.
* With ``instance_label`` 1 the objects of all labels together are numbered 1, 2, ..., whatever the labels are.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.data.npz_reader import NPZ_SUFFIX, npz_prompts
from scripts.data.prompt_sentences import modality_of
from scripts.errors import InputError

if TYPE_CHECKING:
    from scripts.text import PromptParser, Target

logger = logging.getLogger(__name__)


class ChallengePrompts:
    """Complete a case that has no words by those of its NPZ file; other cases stay as they are.

    The modality is the case's own, else what the file's name begins with (``CT_``), else that of most sentences; one
    that a sentence names wins for this sentence.

    Args:
        parser: understands the sentences.
        text_key: entry for the words.
        modality_key: entry for the modality.
        labels_key: entry for the label values: JSON text, target id -> label value.
    """

    def __init__(
        self,
        parser: PromptParser,
        text_key: str = "text",
        modality_key: str = "modality",
        labels_key: str = "npz_labels",
    ) -> None:
        self.parser = parser
        self.text_key = text_key
        self.modality_key = modality_key
        self.labels_key = labels_key

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of ``case`` with words, modality and label values.

        Raises:
            InputError: the file holds no prompts, or none that is understood.
        """
        done = dict(case)
        if done.get(self.text_key) or not str(done["image"]).lower().endswith(NPZ_SUFFIX):
            return done
        name = Path(done["image"]).name
        prompts, _ = npz_prompts(done["image"])
        modality = done.get(self.modality_key) or modality_of(name) or self._modality(prompts)
        found = self._understand(prompts, modality, name)
        labels: dict[int, int] = {}
        for label, targets in found.items():
            new = [target for target in targets if target.id not in labels]
            labels.update({target.id: label for target in new})
            if not new:
                logger.warning("%s: label %d asks for the same as a lower one and stays empty", name, label)
        done[self.text_key] = [prompts[label] for label in found]
        done[self.modality_key] = modality
        done[self.labels_key] = json.dumps(labels)
        return done

    def _modality(self, prompts: Mapping[int, str]) -> str | None:
        """What most of the sentences that can be understood alone are about."""
        about: Counter[str] = Counter()
        for sentence in prompts.values():
            with contextlib.suppress(ValueError):
                about[self.parser.parse(sentence)[0].modality] += 1
        return about.most_common(1)[0][0] if about else None

    def _understand(self, prompts: Mapping[int, str], modality: str | None, name: str) -> dict[int, list[Target]]:
        found: dict[int, list[Target]] = {}
        refusals = []
        for label, sentence in prompts.items():
            try:
                found[label] = self.parser.parse(sentence, modality)
            except ValueError as e:
                refusals.append(str(e))
                logger.warning("%s: label %d stays empty: %s", name, label, e)
        if not found:
            raise InputError(f"{name}: none of its {len(prompts)} sentences is understood; the first: {refusals[0]}")
        return found
