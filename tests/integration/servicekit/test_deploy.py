"""Row 29 for the proxy: `deploy/nginx/split.conf` sends to syncapi what syncapi serves, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
RULE = re.compile(r'^\s+"~(?P<pattern>[^"]+)" arbor_syncapi;$', re.MULTILINE)

# A process of its own: making a service starts threads, and nothing here stops them.
LIST_ROUTES = """
import asyncio, importlib, json, os, sys
from servicekit.config import load_config
from servicekit.http import Router
from servicekit.http.routing import _all_patterns

async def main():
    service = importlib.import_module(f"{sys.argv[1]}.service").create(
        load_config(None, {}, {"data_dir": sys.argv[2]})
    )
    router = Router()
    service.routes(router)
    print(json.dumps([[r.method, p] for r in router.routes for p in _all_patterns(r)]), flush=True)
    os._exit(0)

asyncio.run(main())
"""


def routes(service: str, directory: Path) -> list[tuple[str, str]]:
    """Return method and an example path of each route of the client API."""
    command = [sys.executable, "-c", LIST_ROUTES, service, str(directory)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout
    return [
        (method, re.sub(r"\{\w+\??\}", "!x%2Fy:z", pattern))
        for method, pattern in json.loads(output)
        if pattern.startswith("/_matrix/client/")
    ]


@pytest.mark.parametrize("service", ["clientapi", "syncapi"])
def test_the_proxy_sends_each_request_to_the_service_that_serves_it(service: str, tmp_path: Path) -> None:
    patterns = RULE.findall((ROOT / "deploy" / "nginx" / "split.conf").read_text())
    assert patterns
    for method, path in routes(service, tmp_path):
        to_syncapi = any(re.search(pattern, f"{method} {path}") for pattern in patterns)
        assert to_syncapi == (service == "syncapi"), f"{method} {path}"
        for odd in (f"{path}/odd/odd/odd", f"/x{path}", path.upper()):
            assert not any(re.search(pattern, f"{method} {odd}") for pattern in patterns), odd


def test_every_unit_runs_a_command_there_is(tmp_path: Path) -> None:
    from servicekit.cli.main import build_parser

    units = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
    assert len(units) == 5
    for unit in units:
        command = re.search(r"^ExecStart=\S+/arbor (.+)$", unit.read_text(), re.MULTILINE)
        assert command is not None, unit
        assert build_parser().parse_args(command[1].split()).config == "/etc/arbor/arbor.yaml"
