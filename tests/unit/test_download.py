"""`zimage download` against a small hub on loopback that serves the embedded model."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from serve.download import needed
from serve.errors import WeightsError
from serve.settings import EMBEDDED_FOLDER
from serve.weights import verify

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIG = "transformer/diffusion_pytorch_model.safetensors"


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    status: int = 200
    error: str = ""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    hold: dict[str, threading.Event] = field(default_factory=dict)
    ranges: bool = True
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def gets(self, name: str) -> list[str | None]:
        """The Range headers of the GETs of one file."""
        return [span for method, path, span in self.log if method == "GET" and path.endswith(name)]

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sha256 = hashlib.sha256(data).hexdigest()
        lfs = (
            {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 130}
            if name.endswith("tensors")
            else None
        )
        entry = {"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": blob, "blobId": blob}
        return entry | ({"lfs": lfs} if lfs else {})


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path, self.headers.get("Range")))
        if hub.status != 200:
            self.reply(hub.status, {"X-Error-Code": hub.error}, b"{}")
        elif found := re.fullmatch(rf"/acme/fox/resolve/{COMMIT}/(.+)", path):
            self.file(found[1])
        elif path == "/api/models/acme/fox/revision/main":
            info = {"id": "acme/fox", "sha": COMMIT, "siblings": [hub.entry(name) for name in hub.files]}
            self.reply(200, {}, json.dumps(info).encode())
        elif path == f"/api/models/acme/fox/tree/{COMMIT}":
            self.reply(200, {}, json.dumps([hub.entry(name) for name in hub.files]).encode())
        elif path.startswith("/api/models/acme/fox/revision/"):
            self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

    def file(self, name: str) -> None:
        hub, data = self.server.hub, self.server.hub.files[name]
        entry, span = hub.entry(name), self.headers.get("Range")
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span and hub.ranges else 0
        headers = {"ETag": f'"{entry["blobId"]}"', "X-Repo-Commit": COMMIT}
        if "lfs" in entry:
            headers |= {"X-Linked-ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = hub.cut_after.get(name)
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self.reply(206 if start else 200, headers, data[start:], cut, hub.hold.get(name))

    def reply(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None, hold: Any = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            if hold:
                hold.wait(30)
            self.connection.close()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {str(f.relative_to(EMBEDDED_FOLDER)): f.read_bytes() for f in EMBEDDED_FOLDER.rglob("*") if f.is_file()}
    extra = {"README.md": b"# Fox", "assets/show.png": bytes(1000), "transformer/model.onnx": bytes(1000)}
    with Server(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub(files | extra, url=f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()


@dataclass
class Command:
    """`zimage`, with a Hugging Face home of its own, that can reach nothing but the given hub."""

    hub: Hub
    home: Path

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        quick = (
            "import serve.download as d; d.RETRY_WAIT_S = 0.01; d.CHUNK = 100_000; from serve.cli import main; main()"
        )
        settings = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "COLUMNS": "200",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", quick, *args],
            env=inherited | settings | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *args: str, **env: str) -> tuple[int, str]:
        process = self.start(*args, **env)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    @property
    def snapshot(self) -> Path:
        return self.home / "hub/models--acme--fox/snapshots" / COMMIT

    @property
    def blobs(self) -> Path:
        return self.snapshot.parents[1] / "blobs"

    def blob(self, name: str) -> Path:
        return self.blobs / hashlib.sha256(self.hub.files[name]).hexdigest()


@pytest.fixture
def zimage(hub: Hub, tmp_path: Path) -> Command:
    return Command(hub, tmp_path / "home")


def test_into_the_cache(zimage: Command, hub: Hub):
    code, output = zimage("download", "acme/fox")
    assert code == 0, output
    verify(zimage.snapshot)
    assert output.splitlines()[0] == "acme/fox: 13 files, 14.5 MB; to fetch: 14.5 MB"
    percents = [int(line.split("%")[0]) for line in output.splitlines() if "%" in line]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100
    assert output.splitlines()[-1] == "serve it with `model: acme/fox`"
    assert not list(zimage.snapshot.glob("assets/*")) + list(zimage.snapshot.rglob("*.onnx"))
    assert all(
        path.read_bytes() == hub.files[str(path.relative_to(zimage.snapshot))] for path in files(zimage.snapshot)
    )


def test_second_time_fetches_nothing(zimage: Command, hub: Hub):
    zimage("download", "acme/fox")
    hub.log.clear()
    code, output = zimage("download", "acme/fox")
    assert code == 0
    assert "to fetch: 0.0 MB" in output
    assert hub.gets(".safetensors") == []


def test_one_folder_for_machines_without_a_network(zimage: Command, hub: Hub, tmp_path: Path):
    copy = tmp_path / "copy"
    code, output = zimage("download", "acme/fox", "--to", str(copy))
    assert code == 0, output
    verify(copy)
    assert f"serve it with `model: {copy}`" in output
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == {
        name for name in hub.files if not name.startswith(("adapters/", "controlnets/"))
    } - {"assets/show.png", "transformer/model.onnx"}
    assert not zimage.home.exists()


def test_goes_on_in_the_middle_of_a_file_after_a_cut(zimage: Command, hub: Hub):
    hub.cut_after[BIG] = [3_000_000, 2_000_000]
    code, output = zimage("download", "acme/fox")
    assert code == 0, output
    assert hub.gets(BIG) == [None, "bytes=3000000-", "bytes=5000000-"]
    verify(zimage.snapshot)


def test_goes_on_after_the_process_was_killed(zimage: Command, hub: Hub):
    hub.cut_after[BIG], hub.hold[BIG] = [4_000_000], threading.Event()
    process = zimage.start("download", "acme/fox")
    wait_until(lambda: part_size(zimage) > 3_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.hold.pop(BIG).set()
    have = part_size(zimage)
    hub.log.clear()

    code, output = zimage("download", "acme/fox")
    assert code == 0, output
    assert hub.gets(BIG) == [f"bytes={have}-"]
    verify(zimage.snapshot)


def test_gives_up_when_nothing_more_comes_and_says_how_to_go_on(zimage: Command, hub: Hub):
    hub.cut_after[BIG] = [1_000_000] + [0] * 100
    code, output = zimage("download", "acme/fox")
    assert code == 1
    assert f"error: cannot reach {hub.url} (RemoteProtocolError" in output
    assert "run the same command again: it goes on where it stopped" in output
    assert part_size(zimage) == 1_000_000


def test_server_that_ignores_ranges(zimage: Command, hub: Hub):
    hub.cut_after[BIG], hub.ranges = [3_000_000], False
    code, output = zimage("download", "acme/fox")
    assert code == 0, output
    verify(zimage.snapshot)


def test_damaged_part_is_thrown_away(zimage: Command, hub: Hub):
    zimage.blobs.mkdir(parents=True)
    zimage.blob(BIG).with_suffix(".part").write_bytes(bytes(5000))
    code, output = zimage("download", "acme/fox")
    assert code == 1
    assert f"error: {BIG} arrived damaged\nfix: run again: zimage download acme/fox" in output
    assert zimage("download", "acme/fox")[0] == 0


def test_truncated_download_is_repaired(zimage: Command, hub: Hub):
    zimage("download", "acme/fox")
    os.truncate(zimage.blob(BIG), 5000)
    with pytest.raises(WeightsError, match="truncated") as caught:
        verify(zimage.snapshot)
    assert caught.value.hint == "zimage download acme/fox"
    assert zimage("download", "acme/fox")[0] == 0
    verify(zimage.snapshot)


def test_another_kind_of_model_is_refused_before_its_weights(zimage: Command, hub: Hub):
    hub.files["model_index.json"] = b'{"_class_name": "FluxPipeline"}'
    code, output = zimage("download", "acme/fox")
    assert code == 1
    assert (
        "error: acme/fox/model_index.json: _class_name is 'FluxPipeline', but only ZImagePipeline is served" in output
    )
    assert hub.gets(BIG) == []


def test_no_diffusers_layout(zimage: Command, hub: Hub):
    del hub.files["model_index.json"]
    code, output = zimage("download", "acme/fox")
    assert (code, "error: acme/fox has no model_index.json" in output) == (1, True)


def test_disk_full(zimage: Command, hub: Hub, tmp_path: Path):
    code, output = zimage("download", "acme/fox", "--to", "/proc/fox")
    assert code == 1
    assert "error: /proc/fox has 0.0 MB free, the download needs 15.2 MB (5 % spare included)" in output
    assert "fix: free 15.2 MB, or use another disk: zimage download acme/fox --to FOLDER" in output


def test_two_at_once(zimage: Command, hub: Hub):
    hub.cut_after[BIG], hub.hold[BIG] = [4_000_000], threading.Event()
    first = zimage.start("download", "acme/fox")
    wait_until(lambda: part_size(zimage) > 3_000_000)
    code, output = zimage("download", "acme/fox")
    hub.hold[BIG].set()
    assert (code, "error: acme/fox is being downloaded by another process" in output) == (1, True)
    assert "complete and verified" in first.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("model", "status", "code", "error", "fix"),
    [
        ("acme/cat", 200, "", "there is no model acme/cat at", "check the name"),
        ("acme/fox@v9", 200, "", "acme/fox has no revision 'v9'", "zimage download acme/fox"),
        ("acme/fox", 403, "GatedRepo", "acme/fox is gated", "accept it at"),
        ("acme/fox", 401, "RepoNotFound", "there is no model acme/fox at", "hf auth login, or set HF_TOKEN"),
        ("acme/fox", 401, "", "answered 401 for acme/fox", "hf auth login"),
        ("acme/fox", 403, "", "answered 403 for acme/fox", "hf auth login"),
        ("acme/fox", 500, "", "answered 500 for acme/fox", "run the same command again"),
        ("fox", 200, "", "'fox' is not a hub id", "write ORG/NAME"),
        ("acme--cat/fox", 200, "", "acme--cat/fox is not a hub id", "write ORG/NAME"),
    ],
)
def test_refusals(zimage: Command, hub: Hub, model: str, status: int, code: str, error: str, fix: str):
    hub.status, hub.error = status, code
    exit_code, output = zimage("download", model)
    assert exit_code == 1
    assert re.search(rf"^error: .*{re.escape(error)}", output, re.MULTILINE), output
    assert re.search(rf"^fix: .*{re.escape(fix)}", output, re.MULTILINE), output
    assert "Traceback" not in output


def test_offline(zimage: Command):
    zimage.hub.url = "http://127.0.0.1:9"
    code, output = zimage("download", "acme/fox")
    assert code == 1
    assert "error: cannot reach http://127.0.0.1:9 (ConnectError" in output
    assert "zimage download acme/fox --to FOLDER" in output


def test_offline_by_choice(zimage: Command):
    code, output = zimage("download", "acme/fox", HF_HUB_OFFLINE="1")
    assert (code, "error: HF_HUB_OFFLINE is set" in output) == (1, True)


def test_shards_are_taken_and_other_formats_left():
    weights = "transformer/diffusion_pytorch_model"
    wanted = [
        f"{weights}.safetensors.index.json",
        f"{weights}-00001-of-00002.safetensors",
        "text_encoder/model.safetensors",
    ]
    wanted += ["vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "LICENSE.txt"]
    left = [f"{weights}.fp16.safetensors", f"{weights}.bin", "text_encoder/model.onnx", "image.png"]
    assert needed(wanted + left, "acme/fox") == wanted


def test_only_pickles():
    with pytest.raises(WeightsError, match="neither transformer"):
        needed(["transformer/diffusion_pytorch_model.bin"], "acme/fox")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def part_size(zimage: Command) -> int:
    part = zimage.blob(BIG).with_suffix(".part")
    return part.stat().st_size if part.exists() else 0


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
