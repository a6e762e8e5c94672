"""In CI a skipped test fails the run: a tool that is missing there is a mistake, not a reason."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FORMS = {
    "in the test": "import pytest\ndef test_it():\n    pytest.skip('no Node')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='no Node')\ndef test_it(): pass\n",
    "by the module": "import pytest\npytest.importorskip('no_such_module')\n",
}


def run(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    for number, text in enumerate(FORMS.values()):
        (folder / f"test_{number}.py").write_text(text)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
        ],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_skip_fails_in_ci(tmp_path: Path) -> None:
    done = run(tmp_path, "true")
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("skipped in CI: test_") == 2 * len(FORMS), done.stdout
    assert " skipped" not in done.stdout.splitlines()[-1]


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    done = run(tmp_path, "")
    assert done.returncode == 0, done.stdout
    assert f"{len(FORMS)} skipped" in done.stdout
