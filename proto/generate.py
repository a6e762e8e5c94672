"""Remake the Python stubs under `arbor/` from the contracts under `proto/`; with `--check`, only compare.

The stubs are committed, so that nothing has to be generated before the first run; `make proto` remakes them
and `make proto-check` fails when what is committed is not what the contracts say. For each
`proto/arbor/x/v1/y.proto` there come `arbor/x/v1/y_pb2.py`, `y_pb2_grpc.py` (where it has services) and their
typed `.pyi`, and an `__init__.py` in each folder.
"""

import filecmp
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "proto"
INIT = '"""Made by `make proto` from the contracts in `proto/`; never edited."""\n'


def includes() -> list[str]:
    """Folders in which an `import` of a contract is looked up: ours, protobuf's, Google's common types."""
    common = next(
        str(Path(str(file.locate())).parents[2])
        for file in metadata.files("googleapis-common-protos") or []
        if str(file) == "google/rpc/status.proto"
    )
    return [str(CONTRACTS), str(Path(grpc_tools.__file__).parent / "_proto"), common]


def generate(target: Path) -> None:
    """Write all stubs into `target`/arbor."""
    contracts = sorted(str(path.relative_to(CONTRACTS)) for path in (CONTRACTS / "arbor").rglob("*.proto"))
    (target / "arbor").mkdir(parents=True, exist_ok=True)
    if contracts:
        # The mypy plugins are looked up on PATH; they stand beside the interpreter that runs us.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        arguments = ["protoc", *(f"-I{folder}" for folder in includes())]
        arguments += [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
        arguments += [f"--{kind}_out=quiet:{target}" for kind in ("mypy", "mypy_grpc")]
        if protoc.main([*arguments, *contracts]) != 0:
            raise SystemExit("protoc refused the contracts (see above)")
    # A contract without services gives an empty grpc module: no use to anybody.
    for stub in (target / "arbor").rglob("*_pb2_grpc.py"):
        if "class " not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    for folder in [target / "arbor", *(p for p in (target / "arbor").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").write_text(INIT)
    (target / "arbor" / "py.typed").write_text("")


def files_of(target: Path) -> set[Path]:
    """The generated files under `target`/arbor, relative to `target`."""
    return {
        path.relative_to(target)
        for path in (target / "arbor").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def main() -> None:
    """Remake, or with `--check` compare; exit status 1 names what differs."""
    check = "--check" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        wanted, present = files_of(fresh), files_of(ROOT)
        differing = sorted(
            path
            for path in wanted | present
            if path not in wanted
            or path not in present
            or not filecmp.cmp(fresh / path, ROOT / path, shallow=False)
        )
        if check and differing:
            names = "\n  ".join(str(path) for path in differing)
            raise SystemExit(f"the stubs differ from the contracts; run `make proto`:\n  {names}")
        for path in differing:
            if path in wanted:
                (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
                (ROOT / path).write_bytes((fresh / path).read_bytes())
            else:
                (ROOT / path).unlink()


if __name__ == "__main__":
    main()
