"""A server's answers: those of `predict`, `embed` and `explain`, and a reason for every other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrail
from conftest import TINY
from servers import Process, form, picture, serving, tiny_bundle

pytest.importorskip("fastapi")

JPEG = {"content_type": "image/jpeg"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    flags = ("--max-bytes", "200000", "--max-images", "12", "--max-pixels", "20000")
    with serving(tmp_path_factory.mktemp("server"), *flags) as found:
        yield found


@pytest.fixture(scope="module")
def bundle() -> vitrail.Bundle:
    return tiny_bundle()


def plain(answer: Any) -> dict[str, Any]:
    return {"label": answer.label, "index": answer.index, "probability": answer.probability}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_answer_is_that_of_predict(server: Process, bundle: vitrail.Bundle, kind: str) -> None:
    image = picture(form=kind)

    found = server.ask("POST", "/v1/predict?top=3", image, content_type=f"image/{kind.lower()}")

    (wanted,) = vitrail.predict(bundle, image, top=3, device="cpu")
    assert found.status == 200
    assert found.json == {
        "model": "model",
        "results": [{"name": "image", "error": None, "top": [plain(a) for a in wanted.top]}],
    }


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_many_images_are_answered_in_order_and_alike_in_any_batch(
    server: Process, bundle: vitrail.Bundle, count: int
) -> None:
    images = [picture(seed) for seed in range(count)]

    found = server.form("/v1/predict", [(f"{i}.png", x) for i, x in enumerate(images)]).json

    wanted = vitrail.predict(bundle, images, device="cpu")
    assert [row["name"] for row in found["results"]] == [f"{i}.png" for i in range(count)]
    assert [row["top"] for row in found["results"]] == [
        [plain(a) for a in answer.top] for answer in wanted
    ]


def test_another_engine_answers_alike(tmp_path: Path, bundle: vitrail.Bundle) -> None:
    image = picture()

    with serving(tmp_path, "--engine", "openvino") as server:
        found = server.ask("POST", "/v1/predict", image, content_type="image/png").json
        model = server.ask("GET", "/v1/model").json

    (wanted,) = vitrail.predict(bundle, image, device="cpu")
    assert model["engine"] == "openvino"
    assert [row["index"] for row in found["results"][0]["top"]] == [a.index for a in wanted.top]
    np.testing.assert_allclose(
        [row["probability"] for row in found["results"][0]["top"]],
        [a.probability for a in wanted.top],
        atol=1e-6,
    )


def test_one_broken_image_among_many_has_an_error_of_its_own(server: Process) -> None:
    files = [("a.png", picture()), ("b.png", b"no image"), ("c.png", b""), ("d.png", picture())]

    rows = server.form("/v1/predict?top=1", files).json["results"]

    assert [row["error"] for row in rows][::3] == [None, None]
    assert rows[1]["error"].startswith("this is no image of a known format")
    assert rows[2]["error"] == "the file is empty"
    assert rows[0]["top"] == rows[3]["top"]
    assert rows[1]["top"] == rows[2]["top"] == []


def test_features_are_those_of_embed(server: Process, bundle: vitrail.Bundle) -> None:
    images = [picture(seed) for seed in range(3)]

    rows = server.form("/v1/embed", [(str(i), x) for i, x in enumerate(images)]).json["results"]

    wanted = vitrail.embed(bundle, images, device="cpu")
    np.testing.assert_array_equal(np.array([r["vector"] for r in rows], np.float32), wanted)


@pytest.mark.parametrize(
    ("query", "how"),
    [
        ("", {}),
        ("?method=attention", {"method": "attention"}),
        ("?method=attention&layers=0&layers=-1&heads=2&heads=4",
         {"method": "attention", "layers": [0, -1], "heads": [2, 4]}),
        ("?method=relevance&target=class-3", {"method": "relevance", "target": 3}),
    ],
)  # fmt: skip
def test_maps_are_those_of_explain(
    server: Process, bundle: vitrail.Bundle, query: str, how: dict[str, Any]
) -> None:
    image = picture()

    found = server.ask("POST", f"/v1/explain{query}", image, **JPEG).json["results"][0]

    wanted = vitrail.explain(bundle, image, device="cpu", **how)
    maps = np.array(found["explanation"]["maps"], np.float32)
    np.testing.assert_array_equal(maps, wanted.maps)
    assert found["explanation"]["target"]["label"] == wanted.label
    assert found["explanation"]["size"] == [60, 90]
    assert found["explanation"]["seen"] == list(wanted.seen)


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "code"),
    [
        ("/v1/predict", "image/png", b"", 400, "no_image"),
        ("/v1/predict", "image/png", b"just text", 422, "not_an_image"),
        ("/v1/predict", "text/plain", b"just text", 415, "media_type"),
        ("/v1/predict", "", b"just text", 415, "media_type"),
        ("/v1/predict", "application/json", b'{"url": "http://x/a.png"}', 415, "media_type"),
        ("/v1/predict", "multipart/form-data", b"--edge--", 400, "no_boundary"),
        ("/v1/predict", "multipart/form-data; boundary=edge", b"--edge--\r\n", 400, "no_image"),
        ("/v1/predict", "multipart/form-data; boundary=edge", b"nothing", 400, "bad_form"),
        ("/v1/predict", "multipart/form-data; boundary=edge", form([("a", b"x")])[1][:-9], 400,
         "bad_form"),
        ("/v1/predict", *form([("a.png", picture())], "file"), 400, "no_field"),
        ("/v1/predict", *form([("a.png", b"text")]), 422, "not_an_image"),
        ("/v1/predict", *form([("a.png", picture())] * 13), 413, "too_many"),
        ("/v1/predict?top=-1", "image/png", picture(), 422, "parameter"),
        ("/v1/predict?top=0", "image/png", picture(), 422, "parameter"),
        ("/v1/predict?top=1000000000", "image/png", picture(), 422, "parameter"),
        ("/v1/predict?top=1e9", "image/png", picture(), 422, "parameter"),
        ("/v1/predict?top=NaN", "image/png", picture(), 422, "parameter"),
        ("/v1/predict", "image/png", picture(0, 200, 200), 422, "not_an_image"),
        ("/v1/predict", "image/png", bytes(200_001), 413, "too_large"),
        ("/v1/explain?method=occlusion", "image/png", picture(), 422, "parameter"),
        ("/v1/explain?target=class-77", "image/png", picture(), 404, "no_class"),
        ("/v1/explain?target=77", "image/png", picture(), 404, "no_class"),
        ("/v1/explain?method=attention&layers=2", "image/png", picture(), 422, "parameter"),
        ("/v1/explain?method=relevance&heads=6", "image/png", picture(), 422, "parameter"),
        ("/nowhere", "image/png", picture(), 404, "no_page"),
        ("/../../etc/passwd", "image/png", picture(), 404, "no_page"),
        ("/v1/model", "image/png", picture(), 405, "method"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_json_and_tells_nothing_of_the_machine(
    server: Process, path: str, kind: str, body: bytes, status: int, code: str
) -> None:
    found = server.ask("POST", path, body, content_type=kind)

    assert (found.status, found.json["code"]) == (status, code)
    assert set(found.json) == {"code", "message"}
    assert found.json["message"]
    assert str(server.log.parent) not in found.body.decode()
    assert "Traceback" not in found.body.decode()
    assert server.ask("POST", "/v1/predict", picture(), **JPEG).status == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example"}, 421, "host"),
        ({"host": "evil.example:8000"}, 421, "host"),
        ({"origin": "http://evil.example"}, 403, "cross_site"),
        ({"origin": "null"}, 403, "cross_site"),
        ({"origin": "http://127.0.0.1:1"}, 403, "cross_site"),
        ({"sec-fetch-site": "cross-site"}, 403, "cross_site"),
        ({"sec-fetch-site": "same-site"}, 403, "cross_site"),
    ],
)
def test_no_other_site_may_ask_from_a_browser(
    server: Process, headers: dict[str, str], status: int, code: str
) -> None:
    found = server.ask("POST", "/v1/predict", picture(), **headers, **JPEG)

    assert (found.status, found.json["code"]) == (status, code)
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:80", "10.1.2.3:4"])
def test_an_address_and_localhost_are_answered_with_any_port(server: Process, host: str) -> None:
    assert server.ask("GET", "/v1/model", host=host, origin=f"http://{host}").status == 200


def test_the_model_is_described_without_its_place(server: Process) -> None:
    found = server.ask("GET", "/v1/model").json

    assert (found["model"], found["classes"]) == ("model", TINY.classes)
    assert found["grid"] == [5, 7]
    assert found["fills_up_to"] == 1
    assert found["limits"]["body"] == 200_000


def test_every_answer_carries_what_keeps_browsers_safe(server: Process) -> None:
    for path in ("/", "/page/page.js", "/v1/model", "/nowhere", "/health"):
        headers = server.ask("GET", path).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


def test_metrics_count_what_was_done(server: Process) -> None:
    def counted() -> dict[str, float]:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return {k: float(v) for k, _, v in (x.rpartition(" ") for x in lines if x[0] != "#")}

    before = counted()
    server.form("/v1/predict", [("a", picture()), ("b", b"x"), ("c", picture())])
    after = counted()

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grew('vitrail_requests_total{path="/v1/predict",status="200"}') == 1
    assert grew('vitrail_images_total{work="predict",outcome="ok"}') == 2
    assert grew('vitrail_images_total{work="predict",outcome="error"}') == 1
    assert grew('vitrail_request_seconds_count{path="/v1/predict"}') == 1
    assert after["vitrail_images_in_hand"] == after["vitrail_bytes_in_hand"] == 0


def test_a_request_writes_one_line_of_the_log_whatever_it_holds(server: Process) -> None:
    server.ask("GET", "/x%0a%7b%22event%22:%22forged%22%7d%1b[2J")

    found = server.wait_for(lambda line: str(line.get("path", "")).startswith("/x"))
    assert found["path"] == '/x\n{"event":"forged"}\x1b[2J'
    assert not [line for line in server.lines() if line["event"] == "forged"]


def test_the_document_names_every_answer_that_a_route_gives(server: Process) -> None:
    document = server.ask("GET", "/openapi.json").json

    routes = document["paths"]["/v1/predict"]["post"]
    assert {"200", "400", "408", "413", "415", "422", "429", "503"} <= set(routes["responses"])
    assert set(routes["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert set(document["paths"]) == {
        "/v1/predict", "/v1/embed", "/v1/explain", "/v1/model", "/health", "/ready", "/metrics",
    }  # fmt: skip


def test_the_page_is_light_and_fetches_nothing_from_elsewhere(server: Process) -> None:
    files = ("/", "/page/report.css", "/page/serve.css", "/page/page.js", "/page/ask.js",
             "/page/words.js", "/page/map.js", "/page/camera.js", "/page/icon.svg")  # fmt: skip
    found = [server.ask("GET", path) for path in files]

    assert [each.status for each in found] == [200] * len(files)
    assert sum(len(each.body) for each in found) < 300_000
    text = b"".join(each.body for each in found).decode()
    assert "http://www.w3.org/2000/svg" in text
    assert text.count("http://") == 1 and "https://" not in text


def test_a_model_without_classes_gives_features(tmp_path: Path) -> None:
    model = vitrail.ViT(TINY.replace(classes=0))
    preprocess = tiny_bundle().preprocess
    vitrail.save(vitrail.Bundle(model=model, preprocess=preprocess, labels=()), tmp_path / "bare")

    with serving(tmp_path, model="bare") as server:
        found = server.ask("POST", "/v1/predict", picture(), **JPEG)
        embedded = server.ask("POST", "/v1/embed", picture(), **JPEG)
        about = server.ask("GET", "/v1/model")

    assert (found.status, found.json["code"]) == (404, "no_class")
    assert len(embedded.json["results"][0]["vector"]) == TINY.width
    assert json.loads(about.body)["methods"] == ["rollout", "attention"]
