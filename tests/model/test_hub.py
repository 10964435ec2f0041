"""Where a name leads: a path, the packaged model, or the hub, asked once."""

import hashlib
import importlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

import bloomlab as bl
from bloomlab.errors import CheckpointError
from bloomlab.model.files import find_folder
from bloomlab.model.hub import hub_trouble
from tests.folders import SINGLE, assert_same_weights, contents, refused
from tests.tiny import make_hf


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", Path("a/b")]
)
def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(name, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    for load in (bl.load, bl.BloomForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match=r"does not exist; expected a folder .* 'demo'"):
            load(name)
    assert not asked


def test_a_file_instead_of_a_folder_is_refused(single):
    refused(single / SINGLE, r"is a file; expected a folder")


def test_demo_is_the_packaged_model_and_a_folder_of_that_name_needs_a_dot(
    single, monkeypatch, tmp_path
):
    single.rename(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert find_folder("demo").is_relative_to(Path(bl.__file__).parent)
    assert find_folder("./demo").resolve() == tmp_path / "demo"


def digest(content):
    return hashlib.sha1(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """The hub's endpoints for one repository of several revisions, on 127.0.0.1."""

    def __init__(self, name, revisions):
        super().__init__(("127.0.0.1", 0), Endpoints)
        self.name, self.asked = name, []
        self.files = {digest(revision.encode()): files for revision, files in revisions.items()}
        self.commits = dict(zip([*revisions, *self.files], [*self.files] * 2, strict=True))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()
        self.thread.join()


class Endpoints(BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0].strip("/")
        hub.asked.append(path)
        api = f"api/models/{hub.name}"
        if path.startswith(f"{api}/revision/"):
            commit = hub.commits.get(path.rsplit("/", 1)[1])
            self.reply(json.dumps({"id": hub.name, "sha": commit}).encode(), commit)
        elif path.startswith(f"{api}/tree/"):
            commit = path.rsplit("/", 1)[1]
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": digest(content)}
                for name, content in hub.files[commit].items()
            ]
            self.reply(json.dumps(listed).encode(), commit)
        elif path.startswith(f"{hub.name}/resolve/"):
            commit, _, name = path.removeprefix(f"{hub.name}/resolve/").partition("/")
            self.reply(hub.files[commit][name], commit)
        else:
            self.reply(b"", None)

    do_HEAD = do_GET

    def reply(self, content, commit):
        self.send_response(200 if commit else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{digest(content)}"')
        if commit:
            self.send_header("X-Repo-Commit", commit)
        else:
            known = self.server.name in self.path
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def repository(folder, **extra):
    """The files of a folder, and a tokenizer, and what else a hub repository holds."""
    demo = Path(bl.__file__).parent / "demo" / "checkpoint"
    files = {str(n): b for n, b in contents(folder).items()}
    tokenizer = {f: (demo / f).read_bytes() for f in ("tokenizer.json", "tokenizer_config.json")}
    return files | tokenizer | {n.replace("__", "/"): b for n, b in extra.items()}


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Point huggingface_hub at another endpoint, its real code and all."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def point(url):
        huggingface_hub.close_session()
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return {"cache_dir": tmp_path / "cache"}

    yield point
    huggingface_hub.close_session()


@pytest.fixture
def hub(single, tmp_path):
    later = make_hf(seed=5)
    later.save_pretrained(tmp_path / "later", max_shard_size="100KB")
    extra = {"README.md": b"hello", "onnx__config.json": b"{}", "pytorch_model.bin": b"big"}
    hub = Hub(
        "lab/tiny", {"v1": repository(single, **extra), "main": repository(tmp_path / "later")}
    )
    hub.later = later
    yield hub
    hub.stop()


def test_a_hub_id_is_downloaded_once_and_then_read_from_the_cache(hub, at, theirs):
    options = {**at(hub.url), "device": "cpu"}
    first = bl.load("lab/tiny", revision="v1", **options)
    assert_same_weights(first, theirs)
    assert first.config.name_or_path == "lab/tiny"
    fetched = {path.split("/", 4)[4] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "generation_config.json", SINGLE, "tokenizer.json",
                       "tokenizer_config.json"}  # fmt: skip
    assert_same_weights(bl.load("lab/tiny", **options), hub.later)  # main is another commit

    count = len(hub.asked)
    bl.load("lab/tiny", revision="v1", **options)
    assert not [path for path in hub.asked[count:] if "/resolve/" in path]
    count = len(hub.asked)
    for load in (bl.load, bl.BloomForCausalLM.from_pretrained):
        again = load("lab/tiny", revision="v1", local_files_only=True, **options)
        assert_same_weights(again, theirs)
    assert len(hub.asked) == count
    hub.stop()
    assert_same_weights(bl.load("lab/tiny", revision="v1", **options), theirs)
    assert_same_weights(bl.load("lab/tiny", **options), hub.later)


def test_pickles_are_fetched_only_when_asked_for_and_needed(pickled, theirs, at):
    hub = Hub("lab/old", {"main": repository(pickled)})
    options = {**at(hub.url), "device": "cpu"}
    with pytest.raises(CheckpointError, match=r"pickles only with allow_pickle=True"):
        bl.load("lab/old", **options)
    assert not [path for path in hub.asked if path.endswith(".bin")]
    assert_same_weights(bl.load("lab/old", allow_pickle=True, **options), theirs)
    hub.stop()


def test_what_the_hub_does_not_have_is_an_error_that_says_so(hub, at):
    options = at(hub.url)
    for name, revision in (("lab/tiny", "v9"), ("lab/nothing", None), ("not a name!", None)):
        with pytest.raises(CheckpointError, match=rf"cannot get '{name}'.*bl.load\('demo'\)"):
            bl.load(name, revision=revision, **options)


def test_no_network_is_an_error_that_says_so(at):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        options = at(f"http://127.0.0.1:{unused.getsockname()[1]}")  # nobody listens
        for extra in ({}, {"local_files_only": True}):
            with pytest.raises(CheckpointError, match=r"cannot get 'lab/tiny'.*network"):
                bl.load("lab/tiny", **options, **extra)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            errors.RepositoryNotFoundError,
            "the hub has no such model (or it is private). Did you mean",
        ),
        (errors.RevisionNotFoundError, "has no revision 'v9' of it"),
        (errors.GatedRepoError, "asked for access"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(error, expected):
    asked = errors.HTTPError.__module__.partition(".")[0]  # httpx, under whatever name
    httpx = importlib.import_module(asked)
    answer = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
    told = hub_trouble(error("404 Client Error", response=answer), "blom-560m", revision="v9")
    assert expected in told
    assert "404" not in told


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("demmo", "demo"),
        ("bigscence/blom-560m", "bigscience/bloom-560m"),
        ("lab/tiny", None),
        ("bigscience/bloom-560m", None),
    ],
)
def test_a_misspelt_name_is_guessed(name, meant):
    told = hub_trouble(errors.LocalEntryNotFoundError("Got: ConnectError: no route"), name)
    assert told.startswith("the hub cannot be reached (ConnectError: no route).")
    assert told.endswith(f" Did you mean {meant!r}?") == bool(meant)
    assert ("Did you mean" in told) == bool(meant)


def test_without_permission_to_ask_the_hub_the_message_names_who_forbids_it(monkeypatch):
    error = errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
    told = hub_trouble(error, "lab/tiny", local_files_only=True)
    assert told == "it was not downloaded before, and local_files_only forbids to ask the hub."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the variable HF_HUB_OFFLINE forbids" in hub_trouble(error, "lab/tiny")


def test_the_packaged_model_has_one_revision():
    assert bl.load("demo", revision="main", device="cpu").config.n_layer
    with pytest.raises(CheckpointError, match=r"no revision 'v9'.*'demo-phases'"):
        bl.load("demo", revision="v9")
