"""The MONAI Label app: ask for structures in words, correct the answer by hand, learn from what was corrected.

    python -m monailabel.main start_server --app apps/medal_s_label --studies FOLDER_OR_DICOMWEB_URL

This file puts the parts of ``lib`` together. They import the bundle's code, which is found first, so they are imported
where they are used.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.interfaces.app import MONAILabelApp

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore
    from monailabel.interfaces.tasks.infer_v2 import InferTask
    from monailabel.interfaces.tasks.scoring import ScoringMethod
    from monailabel.interfaces.tasks.strategy import Strategy
    from monailabel.interfaces.tasks.train import TrainTask

APP_DIR = Path(__file__).resolve().parent
if str(APP_DIR) not in sys.path:
    sys.path.insert(0, str(APP_DIR))  # MONAI Label takes it away again after this file is read

from lib.bundle import find_bundle  # noqa: E402
from lib.server import install, prepare  # noqa: E402

logger = logging.getLogger(__name__)


class MedalSApp(MONAILabelApp):
    """Medal S in MONAI Label.

    Args:
        app_dir: folder of this file.
        studies: folder or DICOMweb address.
        conf: see ``lib.options`` and ``lib.server.options``; ``bundle`` is the bundle's folder.

    Raises:
        ValueError: why the app cannot start, in one line.
    """

    studies: str

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None) -> None:
        given = dict(conf or {})
        serves = prepare(studies, given) is not None  # first, so that what is wrong from here on is said in one line
        self.bundle = find_bundle(given)
        self._set_up(given)
        if serves:
            self._get_ready()
        from scripts.metadata import read_metadata

        metadata = read_metadata(self.bundle)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=given,
            name=f"MONAILabel - {metadata['name']}",
            description=metadata["description"],
            version=metadata["version"],
        )
        # MONAI Label's own default starts a process with a whole app at every start and saved label. Its environment
        # variable cannot tell what the user wants: start_server sets it to the default.
        self._auto_update_scoring = self.options.auto_scoring
        install(self)

    def _set_up(self, conf: Mapping[str, str]) -> None:
        """Make what the tasks share; MONAI Label's constructor then asks for the tasks."""
        from lib.activelearning import Uncertainty
        from lib.configs import plan_models
        from lib.engine import Engine
        from lib.infers import Service
        from lib.options import AppOptions
        from lib.sessions import WorkStore
        from lib.trainers import WeightsStore, WeightsWatch
        from scripts.metadata import read_metadata, trained_structures
        from scripts.text import Terminology

        self.options = AppOptions.from_conf(conf, APP_DIR)
        self.terminology = Terminology.load(self.bundle / "configs" / "terminology.json")
        trained = trained_structures(read_metadata(self.bundle))
        self.models = plan_models(self.terminology, trained, self.options.modalities, self.options.kinds)
        self.weights = WeightsStore(self.options.weights_dir)
        self.engine = Engine(self.bundle, self.options.inference, self.weights.current())
        self.sessions_store = WorkStore(self.options.sessions_gb)
        watch = WeightsWatch(self.weights, self.engine.reload)
        self.service = Service(self.engine, self.sessions_store, watch.check)
        self.uncertainty = Uncertainty(
            self.engine.turn, self._structures, self.terminology, self.modality, self.weights.in_use
        )

    def _get_ready(self) -> None:
        """Do now what the first request would wait for; missing weights are noticed here."""
        from lib.answers import warm_up

        _ = self.engine.pipeline
        warm_up()

    @property
    def modality(self) -> str:
        """Of images of which the datastore does not tell it: that of the first model."""
        return self.models[0].modality

    def _structures(self, modality: str) -> list[str]:
        """What the models of a modality know."""
        return next((list(model.labels) for model in self.models if model.modality == modality), [])

    def init_datastore(self) -> Datastore:
        """The folder or archive of ``--studies``."""
        from lib.datastore import local, remote

        studies = str(self.studies).strip()
        if studies.startswith(("http://", "https://")):
            self.studies = studies.rstrip("/")
            return remote(self.studies, self.bundle)
        return local(studies)

    def init_infers(self) -> dict[str, InferTask]:
        """The models that the viewers list."""
        from lib.infers import MedalSInfer

        return {model.name: MedalSInfer(str(self.bundle), model, self.service) for model in self.models}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning on the corrected labels."""
        from lib.trainers import trainers

        return trainers(self.bundle, self.weights, self.modality, self.options.inference)

    def init_strategies(self) -> dict[str, Strategy]:
        """Which study to look at next."""
        from lib.activelearning import strategies

        return strategies(self.uncertainty)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Saved labels against answers."""
        from lib.scoring import methods

        return methods(self.terminology, self.modality)

    def init_batch_infer(self) -> Callable[..., Any]:
        """The same question about every image."""
        from lib.activelearning import BatchInference

        return BatchInference(self.weights.in_use, self.uncertainty)
