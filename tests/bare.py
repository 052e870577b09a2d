"""Install the wheel with nothing beside it, and use it: train, predict, report, serve.

    python tests/bare.py [--constraint constraints.txt]

Builds the wheel, makes a virtual environment that has it, its dependencies and the extra `serve`
and no more, far from the checkout, and runs there what a new user would. `make package` calls it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PORT = 8765


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = built(work)
        print(f"built {wheel.name}, {wheel.stat().st_size // 1000} kB", flush=True)
        bin = installed(wheel, work / "environment", given.constraint.resolve())
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

        def vitrail(*words: str) -> str:
            return subprocess.run(
                [bin / "vitrail", *words],
                cwd=work,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout

        print(vitrail("--version"), end="")
        summary = json.loads(vitrail("train", "digits", "--out", "run", "--json"))
        print(f"trained: {summary['top1']:.2%} of the held-out digits", flush=True)
        answers = json.loads(vitrail("predict", "run", "run/examples", "--json"))
        print(f"predicted: {len(answers)} examples, none failed: {not any_failed(answers)}")
        assert not any_failed(answers)
        assert (work / "run/report.html").exists()
        serves(bin, work, environment, answers)


def built(work: Path) -> Path:
    """Build the wheel from this checkout into `work`."""
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(work)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return work / done.stdout.split()[-1]


def installed(wheel: Path, environment: Path, constraint: Path) -> Path:
    """Install the wheel with the extra `serve` into a new environment; give its bin folder."""
    venv.create(environment, with_pip=True)
    bin = environment / "bin"
    words = ("install", "--quiet", "--disable-pip-version-check", "--constraint", str(constraint))
    subprocess.run([bin / "pip", *words, f"{wheel}[serve]"], check=True)
    subprocess.run([bin / "pip", "check"], check=True)
    return bin


def any_failed(answers: list[dict[str, object]]) -> bool:
    return any(answer["error"] for answer in answers)


def serves(bin: Path, work: Path, environment: dict[str, str], answers: list[dict]) -> None:
    """Serve the run, ask for the page and an answer, and stop it."""
    command = [bin / "vitrail", "serve", "run", "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{PORT}"
        wait_for(f"{address}/ready")
        page = urllib.request.urlopen(f"{address}/").read()
        image = sorted((work / "run/examples").iterdir())[0]
        request = urllib.request.Request(
            f"{address}/v1/predict", image.read_bytes(), {"Content-Type": "image/png"}
        )
        (found,) = json.load(urllib.request.urlopen(request))["results"]
        wanted = next(a for a in answers if str(a["path"]).endswith(image.name))
        print(f"served: a page of {len(page)} bytes; {image.name} is {found['top'][0]['label']}")
        assert found["top"][0]["label"] == wanted["top"][0]["label"]
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0, said


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{address} did not answer within a minute")


if __name__ == "__main__":
    main()
