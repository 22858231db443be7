"""The gallery is what the tables say."""

from pathlib import Path

import pytest

from common import gallery
from common.data.datasets import DATASETS
from common.tables.baselines import BASELINES
from common.tables.features import FEATURES
from common.tables.problems import PROBLEMS
from common.tables.suites import SUITES
from common.tables.teachers import TEACHERS

FILE = Path(gallery.__file__).with_name("GALLERY.md")


def test_the_file_is_what_the_command_prints(capsys):
    assert gallery.main() == 0
    assert FILE.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "the tables have changed: python -m common.gallery > common/GALLERY.md"
    )


@pytest.mark.parametrize("table", [PROBLEMS, TEACHERS, FEATURES, BASELINES, DATASETS], ids=lambda t: t.kind)
def test_every_row_of_a_table_is_a_line_of_its_own(table):
    starts = [line.split(" | ")[0] for line in gallery.page().splitlines() if line.startswith("| `")]
    for name in table:
        assert f"| `{name}`" in starts


def test_every_entry_of_a_suite_is_shown():
    lines = [line for line in gallery.page().splitlines() if line.startswith("| `suite:")]
    for name, entries in SUITES.items():
        for entry in entries:
            (line,) = (row for row in lines if row.startswith(f"| `suite:{name}` | `{entry.problem}` | "))
            steps, trained = line.strip("| ").split(" | ")[2:]
            assert f"{entry.steps:,}" in steps.split(", ")
            assert trained == ("yes" if entry.trained_on else "no")


def test_the_tables_are_rectangular():
    page = gallery.page().replace("\\|", "")
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert len(blocks) == 6
    for lines in blocks:
        assert lines[1].replace("|", "").replace("-", "").strip() == ""
        assert len({line.count("|") for line in lines}) == 1
