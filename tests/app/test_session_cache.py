"""Work on images between requests: what is kept, for whom, how much of it, and what ends it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.configs import ModelConfig
from lib.engine import Engine
from lib.infers import MedalSInfer, Service
from lib.sessions import WorkStore, work_key
from lib.work import Work

STEM, PUTAMEN = "Brain-stem", "Left putamen"
EMPTY = [20, 12, 16]

Ask = Callable[..., Any]
Save = Callable[..., str]


@pytest.fixture
def alone(bundle_dir: Path, models: dict[str, ModelConfig], engine: Engine) -> Callable[[float], MedalSInfer]:
    """The points model with a store of its own, of some GiB."""

    def make(max_gb: float) -> MedalSInfer:
        return MedalSInfer(str(bundle_dir), models["points"], Service(engine, WorkStore(max_gb)))

    return make


def send(task: MedalSInfer, image: str, **request: Any) -> dict[str, Any]:
    path, params = task({"image": image, **request})
    Path(path).unlink()
    return params


def test_a_question_is_answered_once(ask: Ask, save: Save, finder: Any) -> None:
    image = save()
    ask("text", image, prompt="brainstem")
    asked = finder.asked
    ask("text", image, prompt="the brain stem, please")
    ask("points", image, label_prompt=[13])
    assert finder.asked == asked
    ask("text", image, prompt="left putamen")
    assert finder.asked > asked


def test_a_changed_file_is_read_again(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image = save()
    ask("text", image, prompt="brainstem")
    before = Path(image).stat()
    image = save(voxels=head["picture"](shift=5))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert np.array_equal(ask("text", image, prompt="brainstem").mask(STEM), head["truth"](STEM, shift=5))


def test_clients_do_not_see_each_others_corrections(ask: Ask, save: Save, head: dict[str, Any]) -> None:
    image = save()
    ask("points", image, label_prompt=[9], points=[EMPTY], client_id="one")
    assert ask("edit", image, label=PUTAMEN, client_id="one").mask(PUTAMEN).sum() == 512
    other = ask("points", image, label_prompt=[9], points=[[5, 20, 25]], client_id="two")
    assert not other.mask(PUTAMEN)[tuple(EMPTY)]


def test_the_budget_holds(alone: Callable[[float], MedalSInfer], save: Save, finder: Any) -> None:
    task = alone(1.0)
    send(task, save("first.nii.gz"), label_prompt=[9])
    one = task.service.store.nbytes
    assert one > 40 * 24 * 32 * 4
    task = alone(2.5 * one / 2**30)
    images = [save(f"{number}.nii.gz") for number in range(4)]
    for image in images:
        send(task, image, label_prompt=[9])
    assert len(task.service.store) == 2
    assert task.service.store.nbytes <= 2.5 * one
    asked = finder.asked
    send(task, images[3], label_prompt=[9])
    send(task, images[2], label_prompt=[9])
    assert finder.asked == asked
    send(task, images[0], label_prompt=[9])
    assert finder.asked > asked
    # Images that do not fit are answered all the same.
    task = alone(0.5 * one / 2**30)
    assert send(task, images[0], label_prompt=[9])["structures"][PUTAMEN]["voxels"] == 512
    assert len(task.service.store) == 0


def test_a_history_of_clicks_does_not_grow_without_end(alone: Callable[[float], MedalSInfer], save: Save) -> None:
    task, image = alone(1.0), save()
    sizes = []
    for step in range(30):
        send(task, image, label_prompt=[9], points=[EMPTY, [5, 20, 20 + step % 2]])
        sizes.append(task.service.store.nbytes)
    assert max(sizes[10:]) <= 1.1 * max(sizes[:10])


def test_concurrent_requests_never_mix_images(
    alone: Callable[[float], MedalSInfer], save: Save, head: dict[str, Any]
) -> None:
    """100 requests of 8 clients on 4 images in a store too small for them: every answer is that of its image."""
    shifts = {save(f"shift_{shift}.nii.gz", head["picture"](shift)): shift for shift in (0, 1, 2, 3)}
    task = alone(1.0)
    send(task, next(iter(shifts)), label_prompt=[13, 9])
    task.service.store.max_bytes = int(2.5 * task.service.store.nbytes)

    def one(number: int) -> bool:
        image = list(shifts)[number % 4]
        params = send(task, image, label_prompt=[13, 9] if number % 3 else [13], client_id=str(number % 8))
        middle = [float(value) for value in params["centroids"][STEM][1:]]
        return middle == [18.5 + shifts[image], 4.5, 26.5]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(100)))
    assert task.service.store.nbytes <= task.service.store.max_bytes


def test_one_request_at_a_time_has_the_network(alone: Callable[[float], MedalSInfer], save: Save, finder: Any) -> None:
    inside, most = 0, 0

    def count() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1

    finder.while_asked = count
    task, images = alone(1.0), [save(f"{number}.nii.gz") for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda image: send(task, image, label_prompt=[9]), images))
    assert most == 1


def test_a_failed_request_ends_its_own_session_only(ask: Ask, save: Save, finder: Any, head: dict[str, Any]) -> None:
    image, other = save("one.nii.gz"), save("two.nii.gz")
    ask("points", image, label_prompt=[9], points=[EMPTY])
    ask("points", other, label_prompt=[9], points=[EMPTY])
    finder.fails = True
    with pytest.raises(RuntimeError, match="the network fails"):
        ask("points", image, label_prompt=[9], points=[EMPTY, [5, 20, 25]])
    asked = finder.asked
    finder.fails = False
    assert ask("points", other, label_prompt=[9], points=[EMPTY]).mask(PUTAMEN)[tuple(EMPTY)]
    assert finder.asked == asked
    answer = ask("points", image, label_prompt=[9], points=[EMPTY, [5, 20, 25]])
    assert answer.mask(PUTAMEN)[5, 20, 25]


def test_a_refused_request_leaves_the_session(ask: Ask, save: Save, finder: Any) -> None:
    image = save()
    request = {"label_prompt": [9], "points": [EMPTY]}
    first = ask("points", image, **request)
    asked = finder.asked
    with pytest.raises(ValueError, match="outside the image"):
        ask("points", image, label_prompt=[9], points=[EMPTY, [400, 1, 1]])
    assert np.array_equal(ask("points", image, **request).labels, first.labels)
    assert finder.asked == asked


def test_new_weights_end_all_sessions(
    alone: Callable[[float], MedalSInfer], bundle_dir: Path, save: Save, tmp_path: Path
) -> None:
    """With the shipped network: what was answered with the old weights is not shown as the answer of the new."""
    engine = Engine(bundle_dir, {"device": "cpu"})
    model = alone(1.0).model
    task = MedalSInfer(str(bundle_dir), model, Service(engine, WorkStore(1.0)))
    image = save()
    send(task, image, label_prompt=[9])
    state = torch.load(bundle_dir / "models" / "model.pt", weights_only=True)
    torch.save(state, tmp_path / "new.pt")
    engine.reload({"weights": str(tmp_path / "new.pt")})
    fresh = Work(engine.pipeline, engine.generation, model.modality)
    with task.service.store.borrow(work_key(image, "", model.modality), engine.generation, lambda: fresh) as work:
        assert work is fresh
    with pytest.raises(ValueError, match="no weights"):
        engine.reload({"weights": str(tmp_path / "absent.pt")})
    assert engine.generation == 1
    assert send(task, image, label_prompt=[9])["label_names"] is not None


def test_an_image_that_is_gone_is_said(ask: Ask, save: Save) -> None:
    image = save()
    Path(image).unlink()
    with pytest.raises(ValueError, match="image"):
        ask("text", image, prompt="brainstem")
