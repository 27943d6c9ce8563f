"""A real S3-compatible server (moto's) in a thread, which refuses requests when it is told to, and watches a law."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import s3fs
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
}  # fmt: skip


class Silent(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        pass


class S3Server:
    """`requests` are those since it began, as method and key; `refuses` says of one whether it is refused (403).

    After each change `broken` gets the stamps in its buckets whose files are not all there as the stamp has them.
    """

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str]] = []
        self.refuses: Callable[[str, str], bool] = lambda method, key: False
        self.broken: list[str] = []
        self.known: dict[str, str] = {}
        self.lock = threading.Lock()
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=Silent)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            if self.refuses(method, key):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Length", "0")])
                return [b""]
            self.requests.append((method, key))
            answered = list(self.app(environ, start_response))
            if method in ("PUT", "POST", "DELETE"):
                self.look(key)
            return answered

    def buckets(self) -> dict[str, Any]:
        return get_backend("s3")["123456789012"]["aws"].buckets

    def files(self, bucket: str, below: str = "") -> dict[str, bytes]:
        keys = self.buckets()[bucket].keys
        return {name.removeprefix(below): keys[name].value for name in list(keys) if name.startswith(below)}

    def put(self, bucket: str, name: str, content: bytes) -> None:
        s3fs.S3FileSystem().pipe_file(f"{bucket}/{name}", content)

    def make(self, bucket: str) -> str:
        s3fs.S3FileSystem().mkdir(bucket)
        return f"s3://{bucket}"

    def puts(self, ending: str = "") -> list[str]:
        return [key for method, key in self.requests if method == "PUT" and key.endswith(ending)]

    def look(self, changed: str) -> None:
        """Compares the stamps beside and above what was changed with what is there."""
        bucket, _, changed = changed.strip("/").partition("/")
        one = self.buckets().get(bucket)
        if one is not None:
            for name in [name for name in one.keys if name.endswith(".stamp.json")]:
                if not changed.startswith(name.removesuffix(".stamp.json")):
                    continue
                stamp = json.loads(one.keys[name].value)
                artifact = name.removesuffix(".stamp.json")
                for file, (size, digest) in stamp["content"].items() if not stamp.get("pruned") else ():
                    key = one.keys.get(f"{artifact}/{file}".rstrip("/"))
                    if key is None or key.size != size or self.digest(key) != digest:
                        self.broken.append(f"{bucket}/{artifact}: {file}")

    def digest(self, key: Any) -> str:
        if key.etag not in self.known:
            self.known[key.etag] = hashlib.sha256(key.value).hexdigest()
        return self.known[key.etag]


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server that everything in this process finds by its environment."""
    with pytest.MonkeyPatch.context() as patch:
        one = S3Server()
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": one.url}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield one
        one.server.shutdown()
        s3fs.S3FileSystem.clear_instance_cache()
