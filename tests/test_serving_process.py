"""A server among people who do not mean well, in a hurry, or with a signal: as a real process."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from servers import PNG, Answer, Process, form, picture, read, serving

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(tmp_path_factory.mktemp("server"), "--max-images", "64") as found:
        yield found


def much() -> tuple[str, bytes]:
    """Give a form whose images take long to decode, and little to send."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "PNG")
    return form([(f"{i}.png", file.getvalue()) for i in range(40)])


def half_sent(server: Process) -> tuple[socket.socket, bytes]:
    """Begin a request; give its connection and what is still to be sent."""
    image = picture()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x.localhost\r\nContent-Length: {len(image)}\r\n"
    head = head.replace("x.localhost", "localhost") + "Content-Type: image/png\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(head.encode() + image[:50])
    return connection, image[50:]


def received(connection: socket.socket) -> bytes:
    parts = []
    while piece := connection.recv(65536):
        parts.append(piece)
        if b"}]}" in piece or b'"message"' in piece:
            break
    return b"".join(parts)


def in_hand(server: Process, what: str = "requests") -> int:
    for line in server.ask("GET", "/metrics").body.decode().splitlines():
        if line.startswith(f"vitrail_{what}_in_hand "):
            return int(float(line.split()[1]))
    raise AssertionError("no such count")


def wait_until_in_hand(server: Process, count: int, what: str = "requests") -> None:
    while in_hand(server, what) < count:
        time.sleep(0.01)


def test_sigterm_lets_requests_in_hand_finish_and_takes_no_more(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        connection, rest = half_sent(server)
        wait_until_in_hand(server, 1)

        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda line: line["event"] == "stopping")
        ready, live = server.ask("GET", "/ready"), server.ask("GET", "/health")
        refused = server.ask("POST", "/v1/predict", picture(), **{"content_type": "image/png"})
        assert server.process.poll() is None
        connection.sendall(rest)
        answer = received(connection)

        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"error": null' in answer
        assert (ready.status, ready.json["code"]) == (503, "stopping")
        assert (live.status, live.json) == (200, {"status": "stopping"})
        assert (refused.status, refused.json["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) > 0
        assert server.process.wait(30) == 0
        connection.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_without_work_ends_at_a_signal(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with serving(tmp_path) as server:
        server.ask("GET", "/health")

        assert server.stop(number) == code
        assert server.lines()[-1]["event"] == "stopped"


def test_what_is_not_over_in_the_grace_time_is_cut_off_and_told(tmp_path: Path) -> None:
    with serving(tmp_path, "--grace", "0.3") as server:
        connection, _ = half_sent(server)
        wait_until_in_hand(server, 1)

        assert server.stop() == 1
        assert server.lines()[-1]["cut_off"] == 1
        connection.close()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        connection, _ = half_sent(server)
        wait_until_in_hand(server, 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda line: line["event"] == "stopping")

        assert server.stop() == 128 + signal.SIGTERM
        connection.close()


def test_more_than_may_wait_is_refused_unread_and_all_is_well_afterwards(tmp_path: Path) -> None:
    kind, body = much()
    first: list[Answer] = []

    def ask() -> None:
        first.append(server.ask("POST", "/v1/predict", body, content_type=kind))

    with serving(tmp_path, "--queue", "40", "--max-images", "40") as server:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until_in_hand(server, 9, "images")
        connection = server.connect()
        connection.putrequest("POST", "/v1/predict")  # its body never comes: nobody waits for it
        for name, value in (*PNG.items(), ("Content-Length", "1000")):
            connection.putheader(name, value)
        connection.endheaders()
        refused = read(connection)
        connection.close()
        alive = server.ask("GET", "/ready")
        thread.join()

        assert (refused.status, refused.json["code"]) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert alive.status == 200
        assert [found.status for found in first] == [200]
        assert all(row["error"] is None for row in first[0].json["results"])
        assert server.form("/v1/predict", [("a", picture())]).status == 200


def test_work_that_nobody_waits_for_is_dropped(server: Process) -> None:
    kind, body = much()
    connection = server.connect()
    connection.request("POST", "/v1/predict", body, {"Content-Type": kind})
    wait_until_in_hand(server, 9, "images")
    connection.close()

    assert server.wait_for(lambda line: line.get("status") == 499)["images"] == 40
    while in_hand(server):
        time.sleep(0.01)
    assert in_hand(server, "images") == in_hand(server, "bytes") == 0


def test_a_gigabyte_is_refused_by_its_length_alone(server: Process) -> None:
    connection = server.connect()
    connection.putrequest("POST", "/v1/predict")
    for name, value in (*PNG.items(), ("Content-Length", str(2**30))):
        connection.putheader(name, value)
    connection.endheaders()

    found = read(connection)
    connection.close()

    assert (found.status, found.json["code"]) == (413, "too_large")


def test_who_sends_a_gigabyte_unasked_still_reads_the_refusal(server: Process) -> None:
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
    for _ in range(64):
        connection.sendall(bytes(2**20))

    assert received(connection).startswith(b"HTTP/1.1 413 ")
    connection.close()


def test_a_body_of_unknown_length_is_counted_as_it_comes(server: Process) -> None:
    connection = server.connect()
    pieces = (bytes(2**20) for _ in range(40))
    with suppress(BrokenPipeError, ConnectionResetError):  # it is refused before its end
        connection.request("POST", "/v1/predict", pieces, PNG, encode_chunked=True)
    found = read(connection)
    connection.close()

    assert (found.status, found.json["code"]) == (413, "too_large")


def open_files(process: int) -> list[str]:
    found = []
    for name in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that was closed meanwhile
            found.append(os.readlink(name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_never_touches_the_disk(server: Process) -> None:
    connection, rest = half_sent(server)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {20 * 2**20}\r\n"
    large = socket.create_connection(("127.0.0.1", server.port))
    large.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode() + bytes(8 * 2**20))
    while in_hand(server, "bytes") < 8 * 2**20:
        time.sleep(0.01)

    opened = open_files(server.process.pid)
    large.close()
    connection.sendall(rest)
    connection.close()

    files = [name for name in opened if name.startswith("/") and not name.startswith("/dev/")]
    assert files == [str(server.log)]


@pytest.mark.slow
def test_who_sends_slowly_is_cut_off(server: Process) -> None:
    slow_head = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    slow_head.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: local")
    slow_body, _ = half_sent(server)
    slow_body.settimeout(30)

    said = received(slow_body)
    end = slow_head.recv(100)

    assert said.startswith(b"HTTP/1.1 408 ")
    assert end == b""
    slow_head.close()
    slow_body.close()


def test_what_is_no_http_gets_a_no_in_json(server: Process) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    found = received(connection)
    connection.close()

    assert found.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "http"' in found


def test_a_token_is_asked_of_all_but_the_page(tmp_path: Path) -> None:
    image = picture()

    with serving(tmp_path, "--token", "s3cret", "--host", "127.0.0.1") as server:

        def status(path: str, **headers: str) -> int:
            method = "POST" if "predict" in path else "GET"
            body = image if method == "POST" else None
            return server.ask(method, path, body, content_type="image/png", **headers).status

        for path in ("/v1/predict", "/v1/model", "/metrics", "/nowhere"):
            assert status(path) == 401
            for wrong in ("Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer "):
                assert status(path, authorization=wrong) == 401
        assert status("/v1/predict", authorization="Bearer s3cret") == 200
        assert status("/metrics", authorization="bearer s3cret") == 200
        for path in ("/", "/page/page.js", "/health", "/ready", "/openapi.json"):
            assert status(path) == 200
        assert "s3cret" not in server.log.read_text()


def test_a_name_that_is_allowed_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "--allow-host", "One.example", "--allow-host", "two.example") as server:
        found = [server.ask("GET", "/health", host=f"{n}.example").status for n in ("one", "two")]

        assert found == [200, 200]
        assert server.ask("GET", "/health", host="three.example").status == 421


def command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vitrail.cli", "serve", *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def test_other_machines_are_answered_only_with_a_token_or_on_request() -> None:
    found = command("nano", "--host", "0.0.0.0", "--port", "0")

    assert found.returncode == 2
    assert "0.0.0.0 is reached by other machines: give a token" in found.stderr


@pytest.mark.parametrize("flags", [("--token", "abc"), ("--insecure",)])
def test_a_host_that_others_reach_is_warned_of(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", *flags) as server:
        assert "warning: other machines reach 0.0.0.0" in server.log.read_text()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--port", "70000"), "port is 70000"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--queue", "8"), "a request may bring 64 images, but only 8 fit the queue"),
        (("--wait", "nan"), "wait is nan"),
        (("--token", ""), "the token is empty"),
        (("--host", "no.such.host.invalid", "--insecure"), "cannot be listened at"),
        (("--ports", "1"), 'has no flag "--ports". Did you mean "--port"?'),
    ],
)
def test_a_wrong_flag_is_told_before_a_model_is_loaded(flags: tuple[str, ...], told: str) -> None:
    found = command("nano", *flags)

    assert found.returncode == 2
    assert told in found.stderr
    assert "Traceback" not in found.stderr


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = command("nano", "--port", str(other.getsockname()[1]))

    assert found.returncode == 2
    assert "cannot be listened at: Address already in use" in found.stderr
