"""Use the OHIF viewer of a MONAI Label server in a headless Chromium, as a person would."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a graphics card; the image is drawn by it.
OPTIONS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WIDTH, HEIGHT = 1440, 860
AUTO, CLASSES, POINTS = "Auto-Segmentation", "Class Prompts", "Point Prompts"


class Viewer:
    """One page with OHIF in its MONAI Label mode.

    Args:
        page: of playwright.
        server: address of the MONAI Label server.
    """

    def __init__(self, page: Any, server: str) -> None:
        self.page, self.server = page, server
        self.requests: list[Any] = []
        """Inference requests that the viewer sent."""
        page.on("request", lambda request: self.requests.append(request) if "/infer/" in request.url else None)

    def open(self, study: str) -> None:
        """Open a study and connect to the server."""
        page = self.page
        page.goto(f"{self.server}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="domcontentloaded")
        page.wait_for_selector("#monailabelServerURL", timeout=120_000)
        self._close_banner()
        page.wait_for_selector(".cornerstone-canvas", timeout=120_000)
        page.fill("#monailabelServerURL", self.server)
        page.click(".settingsTable button.actionButton")
        page.wait_for_selector(f"text={AUTO}", timeout=60_000)
        page.wait_for_timeout(3_000)

    def tab(self, title: str) -> Any:
        """Open a tab of the panel and return its body."""
        label = self.page.locator("label.tab-label", has_text=title)
        body = self.page.locator(".tab").filter(has=label)
        if not body.locator(".tab-content").first.is_visible():
            label.click()
        self.page.wait_for_timeout(500)
        return body

    def choose(self, title: str, model: str) -> Any:
        """Open a tab and choose its model."""
        body = self.tab(title)
        body.locator("select.selectBox").first.select_option(model)
        self.page.wait_for_timeout(500)
        return body

    def set_option(self, model: str, key: str, value: str, picture: Path | None = None) -> None:
        """Change one of a model's options, such as its text prompt, and picture the dialog."""
        self.page.locator('a:has-text("Options / Configurations")').first.click()
        self.page.wait_for_selector("select[name=selectName]", timeout=10_000)
        self.page.select_option("select[name=selectName]", model)
        self.page.fill(f'[id="infer{model}{key}"]', value)
        if picture is not None:
            self.picture(picture)
        self.page.click('button[data-cy="Confirm-btn"]')
        self.page.wait_for_timeout(500)

    def run(self, body: Any, seconds: float = 120.0) -> bytes:
        """Press Run in a tab; returns the bytes that the server answered.

        Raises:
            RuntimeError: the server refused.
        """
        with self.page.expect_response(lambda answer: "/infer/" in answer.url, timeout=seconds * 1000) as waiting:
            body.locator(".modelSelector button.actionButton").first.click()
        answer = waiting.value
        content = bytes(answer.body())
        if not answer.ok:
            raise RuntimeError(f"the server answered {answer.status}: {content[:300].decode(errors='replace')}")
        self.page.wait_for_timeout(2_000)
        return content

    def tick(self, body: Any, name: str) -> None:
        """Tick a structure of the class prompts."""
        body.locator(f'tr:has-text("{name}") input[type=checkbox]').first.check()

    def click_image(self, body: Any, name: str, x: float, y: float) -> None:
        """Put a point for a structure.

        Args:
            body: of the point prompts' tab.
            name: of the structure.
            x: place in the axial view, as a fraction of its width.
            y: likewise of its height.
        """
        body.locator(f'tr.clickable-row:has-text("{name}")').first.click()
        canvas = self.page.locator(".cornerstone-canvas").first
        box = canvas.bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.page.wait_for_timeout(500)

    def open_saved(self, study: str, segment: str) -> None:
        """Open a study in the viewer's own segmentation mode, its DICOM SEG, and go to one of the segments."""
        page = self.page
        page.goto(f"{self.server}/ohif/segmentation?StudyInstanceUIDs={study}", wait_until="domcontentloaded")
        page.wait_for_selector(".cornerstone-canvas", timeout=120_000)
        page.wait_for_timeout(5_000)
        self._close_banner()
        page.locator('[data-cy="study-browser-thumbnail-no-image"]').first.dblclick()
        page.locator('[data-cy="yes-hydrate-btn"]').first.dispatch_event("click", timeout=60_000)
        page.locator(f"text={segment}").last.click(timeout=60_000)
        page.wait_for_timeout(5_000)

    def _close_banner(self) -> None:
        with contextlib.suppress(Exception):  # it comes once for each browser
            self.page.locator('[data-cy="confirm-and-hide-button"]').click(timeout=5_000)

    def picture(self, path: Path) -> Path:
        """Save what is on the screen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))
        return path


@contextlib.contextmanager
def browse(server: str) -> Iterator[Viewer]:
    """A viewer for a server, closed at the end.

    Raises:
        RuntimeError: no Chromium is installed.
    """
    from playwright.sync_api import sync_playwright

    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        raise RuntimeError("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(OPTIONS))
        try:
            yield Viewer(browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}), server)
        finally:
            browser.close()
