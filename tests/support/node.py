"""Where the tools from npm are: Node 22 itself, buf and matrix-js-sdk, as `make setup` installs them.

`python -m tests.support.node buf ARGS...` runs buf, and says so by name when it cannot: without npm on the
machine that is no failure, except in CI (`CI=true`), where nothing may be left out.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = ROOT / "node_modules"
NODE = MODULES / "node" / "bin" / "node"
BUF = MODULES / "@bufbuild" / "buf" / "bin" / "buf"


def missing() -> str | None:
    """Why the npm tools cannot be used, as a reason for a skip; `None` when they can."""
    for path in (NODE, BUF, MODULES / "matrix-js-sdk"):
        if not path.exists():
            return f"needs Node: {path.relative_to(ROOT)} is not there (install npm, then `make setup`)"
    return None


def main(arguments: list[str]) -> int:
    """Run `buf ...` or `node ...`; the exit status is the tool's."""
    tool, *rest = arguments
    if reason := missing():
        print(f"SKIPPED {' '.join(arguments)}: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CI") == "true" else 0
    command = {"buf": [str(NODE), str(BUF)], "node": [str(NODE)]}[tool]
    return subprocess.run([*command, *rest], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
