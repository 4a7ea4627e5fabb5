"""Links between the repository's pages lead somewhere: files exist, and so do the headings that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "bundle/docs/*.md", "apps/*/*.md", "deploy/**/*.md")
    for page in REPOSITORY.glob(pattern)
)


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    dead = []
    for link in LINK.finditer(text):
        goal = (page.parent / link["path"]).resolve() if link["path"] else page
        if not goal.exists() or (link["anchor"] and goal.suffix == ".md" and link["anchor"] not in anchors(goal)):
            dead.append(link[0])
    assert not dead, f"{page.name}: {dead}"


def test_readme_fits_on_few_screens() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_no_page_is_left_out_of_the_overview() -> None:
    """docs/README.md names every page of the folder."""
    overview = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [str(page.relative_to(REPOSITORY / "docs")) for page in (REPOSITORY / "docs").rglob("*.md")]
    assert not [page for page in pages if f"({page})" not in overview and page != "README.md"]


def test_issue_forms_warn_of_patient_data() -> None:
    yaml = pytest.importorskip("yaml")
    forms = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {form.stem for form in forms} >= {"bug_report", "wrong_segmentation", "feature_request"}
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem == "config":
            continue
        assert {"name", "description", "body"} <= set(content)
        ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
        assert len(set(ids)) == len(ids) > 0
        assert "patient data" in form.read_text(encoding="utf-8"), form.name
