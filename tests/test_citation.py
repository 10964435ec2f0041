"""CITATION.cff and CHANGELOG.md: of this version, and in the format that tools read."""

import datetime
import re
from pathlib import Path

import pytest
import yaml

import bloomlab

ROOT = Path(bloomlab.__file__).parent.parent
REQUIRED = {"authors", "cff-version", "message", "title"}
ALLOWED = REQUIRED | {  # all keys of the Citation File Format, 1.2.0
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license",
    "license-url", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "type", "url", "version",
}  # fmt: skip
PERSON = {"affiliation", "alias", "email", "family-names", "given-names", "name-particle", "orcid"}
ENTITY = {"name", "website", "email", "alias", "orcid"}
KINDS = {"Added", "Changed", "Deprecated", "Fixed", "Removed", "Security"}


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_the_keys_are_those_of_the_format(citation):
    assert REQUIRED <= set(citation) <= ALLOWED
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    for author in citation["authors"]:
        assert set(author) <= PERSON or set(author) <= ENTITY


def test_references_name_authors_title_and_type(citation):
    for one in citation["references"]:
        assert {"authors", "title", "type"} <= set(one)
        assert one["type"] in ("article", "software")
        assert all(set(a) <= PERSON or set(a) <= ENTITY for a in one["authors"])
        assert one["url"].startswith("https://")
    values = [i["value"] for one in citation["references"] for i in one.get("identifiers", [])]
    assert values == ["arXiv:2211.05100", "arXiv:2108.12409"]


def test_version_and_date_are_those_of_the_changelog(citation):
    assert citation["version"] == bloomlab.__version__
    date = datetime.date.fromisoformat(citation["date-released"])
    log = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", log, re.MULTILINE)
    assert released[0] == (bloomlab.__version__, date.isoformat())
    assert [day for _, day in released] == sorted((day for _, day in released), reverse=True)


def test_the_changelog_has_the_sections_of_its_format():
    log = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert log.startswith("# Changelog\n")
    assert log.index("## [Unreleased]") < log.index(f"## [{bloomlab.__version__}]")
    assert set(re.findall(r"^### (.*)$", log, re.MULTILINE)) <= KINDS
