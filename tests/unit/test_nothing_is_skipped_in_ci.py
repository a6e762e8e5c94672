"""In CI a skipped test fails the run: a tool that is missing there is a mistake, not a reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FORMS = {
    "in the test": "import pytest\ndef test_it():\n    pytest.skip('no Node')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='no Node')\ndef test_it(): pass\n",
    "by the module": "import pytest\npytest.importorskip('no_such_module')\n",
}


def run(folder: Path, text: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_skip_fails_in_ci(form: str, tmp_path: Path) -> None:
    done = run(tmp_path, FORMS[form], "true")
    assert done.returncode != 0, done.stdout
    assert "skipped in CI" in done.stdout


@pytest.mark.parametrize("form", FORMS)
def test_a_skip_is_a_skip_elsewhere(form: str, tmp_path: Path) -> None:
    done = run(tmp_path, FORMS[form], "")
    assert done.returncode in (0, 5), done.stdout
    assert "1 skipped" in done.stdout
