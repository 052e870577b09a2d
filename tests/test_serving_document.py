"""The OpenAPI document against the server that it describes, by schemathesis: `make serving`."""

import subprocess
import sys
from pathlib import Path

import pytest

from servers import serving

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

# A document has no words for what a file must hold: schemathesis is told what an image is.
HOOKS = """
import schemathesis
from hypothesis import strategies

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
image = strategies.just(PNG)
schemathesis.openapi.format("binary", image)
for kind in ("*", "jpeg", "png", "webp", "gif", "bmp", "tiff"):
    schemathesis.openapi.media_type(f"image/{kind}", image)
"""


@pytest.mark.slow
def test_every_check_of_schemathesis_passes(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    with serving(tmp_path) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--checks", "all", "--max-examples", "30", "--seed", "1", "--no-color"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": "."},
            check=False,
        )
        failed = [line for line in server.lines() if line.get("status", 0) >= 500]

    assert done.returncode == 0, done.stdout + done.stderr
    assert failed == []
