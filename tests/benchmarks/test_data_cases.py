"""Every case of docs/data.md, for both methods: the right colour at the right ray, or the error message."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import data_cases as cases
    from captures.writing import capture


@pytest.mark.parametrize("name", list(cases.CASES))
def test_right_or_a_sentence(name, tmp_path):
    case, folder = cases.CASES[name], tmp_path / "scan"
    folder.mkdir()
    case.make(folder)
    for method in cases.METHODS:
        found = cases.look(folder, method, case.gray)
        assert case.sentence in found.sentence
        assert bool(case.sentence) == bool(found.sentence), found.sentence
        if not case.sentence:
            assert found.error < cases.RIGHT
            assert case.warned in found.warnings


def test_the_measure_tells_wrong_rays(tmp_path):
    """The same images under a lens of another focal length."""
    capture(fl_x=30.0, fl_y=30.0)(tmp_path)
    for method in cases.METHODS:
        assert cases.look(tmp_path, method).error > 3 * cases.RIGHT


def test_the_table_in_the_docs_has_every_case():
    rows = {
        line.split("|")[1].strip() for line in (ROOT / "docs/data.md").read_text().splitlines() if line.startswith("| ")
    }
    assert set(cases.CASES) <= rows
