import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import torch
import transformers
from safetensors.torch import load_file

import bloomlab
from bloomlab import cli, describe
from bloomlab.errors import BloomlabError, InputError
from bloomlab.model.files import DEMO

PACKAGE = Path(bloomlab.__file__).parent


@pytest.fixture
def no_network(monkeypatch):
    """The hub cannot be reached, whatever the machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def notebooks(tmp_path):
    source = tmp_path / "packaged"
    (source / "pictures").mkdir(parents=True)
    (source / ".ipynb_checkpoints").mkdir()
    (source / ".ipynb_checkpoints" / "old.ipynb").write_text("old")
    (source / "00_tour.ipynb").write_text("tour")
    (source / "01_heads.ipynb").write_text("heads")
    (source / "pictures" / "a.svg").write_text("picture")
    return source


def tiny_checkpoint(folder, **options):
    config = transformers.BloomConfig(n_layer=2, n_head=3, hidden_size=12, vocab_size=50)
    torch.manual_seed(0)
    transformers.BloomForCausalLM(config).save_pretrained(folder, **options)
    return folder


def test_version(run):
    assert run("--version") == (0, f"bloomlab {bloomlab.__version__}\n", "")


def test_help_names_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("lab", "info", "generate", "bench"))


def test_unknown_command_is_a_usage_error(run):
    code, _, err = run("inof")
    assert code == 2
    assert "inof" in err


def test_info_of_this_machine(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert f"bloomlab {bloomlab.__version__}" in out
    assert f"torch {torch.__version__}" in out
    assert "RAM: " in out
    assert ("GPU: none found" in out) == (not torch.cuda.is_available())


def test_info_of_the_demo_shows_card_sizes_and_fit(run):
    code, out, err = run("info", "demo")
    assert (code, err) == (0, "")
    assert "# The demo BLOOM" in out
    shards = [load_file(path) for path in DEMO.glob("*.safetensors")]
    parameters = sum(weight.numel() for shard in shards for weight in shard.values())
    assert f"parameters      {parameters:,}" in out
    assert "6 layers, 8 heads of 32 (d_head), width 256, vocabulary 8,192" in out
    assert "13.7 MB bfloat16" in out
    assert "KV cache 6,144 bytes per token" in out
    assert "13.7 MB + 12.6 MB = 26.3 MB" in out


def test_info_can_leave_out_the_card_and_plan_for_other_lengths(run):
    code, out, _ = run("info", "demo", "--no-card", "--tokens", "100")
    assert code == 0
    assert out.startswith("demo: 6 layers")
    assert "13.7 MB + 614 kB = 14.3 MB" in out


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}])
def test_info_counts_the_parameters_of_a_folder(run, tmp_path, options):
    folder = tiny_checkpoint(tmp_path / "tiny", **options)
    assert (folder / "model.safetensors").exists() == (not options)
    code, out, _ = run("info", folder)
    assert code == 0
    assert "has no model card" in out
    assert "parameters      4,416" in out  # 50 x 12 + 2 x (12 x 144 + 13 x 12) + 4 x 12
    assert "17.7 kB float32" in out


def test_info_without_weights_counts_by_the_formula(run, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "bloom", "n_embed": 14336, "num_attention_heads": 112, "n_layer": 70}'
    )
    code, out, _ = run("info", tmp_path)
    assert code == 0
    assert "176,247,271,424" in out
    assert "KV cache 4,014,080 bytes per token" in out
    assert "352 GB" in out
    assert "no safetensors here" in out


def test_a_card_loses_its_metadata_and_terminal_commands(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: x\n---\n# T\x1b[31m\n\ttext ü\x07\n---\n")
    assert describe.model_card(tmp_path) == "# T[31m\n\ttext ü\n---\n"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody/nothing", "cannot describe 'nobody/nothing'"),
        ("./nowhere", "'./nowhere'"),
        ("{tmp}", "no config.json in"),
        ("{tmp}/gpt2", "'gpt2'"),
        ("{tmp}/torn", "truncated"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_what_cannot_be_described_is_one_clean_message(run, tmp_path, monkeypatch, model, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    torn = tiny_checkpoint(tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    code, out, err = run("info", model.format(tmp=tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("bloomlab: ")
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_notebooks_are_copied_writable(notebooks, tmp_path):
    for file in notebooks.glob("*.ipynb"):
        file.chmod(stat.S_IRUSR)
    copied, kept = cli.copy_notebooks(notebooks, tmp_path / "mine")
    assert (copied, kept) == (["00_tour.ipynb", "01_heads.ipynb", "pictures/a.svg"], [])
    assert (tmp_path / "mine" / "00_tour.ipynb").read_text() == "tour"
    assert (tmp_path / "mine" / "00_tour.ipynb").stat().st_mode & stat.S_IWUSR


def test_an_edited_notebook_is_kept_and_an_untouched_one_is_renewed(notebooks, tmp_path):
    mine = tmp_path / "mine"
    cli.copy_notebooks(notebooks, mine)
    assert cli.copy_notebooks(notebooks, mine) == ([], [])
    (mine / "00_tour.ipynb").write_text("my work")
    (notebooks / "00_tour.ipynb").write_text("a newer tour")
    (notebooks / "01_heads.ipynb").write_text("newer heads")
    assert cli.copy_notebooks(notebooks, mine) == (["01_heads.ipynb"], ["00_tour.ipynb"])
    assert (mine / "00_tour.ipynb").read_text() == "my work"
    assert (mine / "01_heads.ipynb").read_text() == "newer heads"


def test_a_file_that_was_there_before_is_kept(notebooks, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00_tour.ipynb").write_text("not from the package")
    (tmp_path / "mine" / cli.COPIED).write_text("{ damaged")
    assert cli.copy_notebooks(notebooks, tmp_path / "mine")[1] == ["00_tour.ipynb"]
    assert (tmp_path / "mine" / "00_tour.ipynb").read_text() == "not from the package"


def test_the_notebooks_themselves_can_be_the_folder(notebooks):
    assert cli.copy_notebooks(notebooks, notebooks) == ([], [])
    assert not (notebooks / cli.COPIED).exists()


def test_a_folder_that_is_a_file_is_refused(notebooks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is a file, .*Choose another place with --folder"):
        cli.copy_notebooks(notebooks, tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot keep notebooks .*Choose another place"):
        cli.copy_notebooks(notebooks, tmp_path / "file" / "inside")


def test_an_installation_without_notebooks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bloomlab, "__file__", str(tmp_path / "bloomlab" / "__init__.py"))
    (tmp_path / "notebooks").mkdir()  # somebody else's: there is no pyproject.toml beside it
    with pytest.raises(BloomlabError, match="installation is incomplete"):
        cli.packaged_notebooks()


@pytest.fixture
def launched(monkeypatch, notebooks):
    """The arguments that JupyterLab was started with."""
    from jupyterlab.labapp import LabApp

    seen = []
    monkeypatch.setattr(LabApp, "launch_instance", lambda argv: seen.extend(argv))
    monkeypatch.setattr(cli, "packaged_notebooks", lambda: notebooks)
    return seen


def test_lab_starts_with_the_tour_and_passes_arguments_on(run, launched, tmp_path):
    mine = tmp_path / "mine"
    code, out, err = run(
        "lab", "--folder", mine, "--port", "8901", "--no-browser", "--ServerApp.token=t", "-y"
    )
    assert (code, out) == (0, "")
    assert launched[:2] == [
        f"--ServerApp.root_dir={mine}",
        "--LabApp.default_url=/lab/tree/00_tour.ipynb",
    ]
    assert {"--ServerApp.port=8901", "--no-browser", "--ServerApp.token=t", "-y"} <= {*launched}
    assert ("--allow-root" in launched) == (hasattr(os, "geteuid") and os.geteuid() == 0)
    assert f"{mine} (3 copied)" in err


def test_lab_says_which_notebooks_it_kept_and_lets_the_page_be_chosen(run, launched, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "01_heads.ipynb").write_text("my work")
    code, _, err = run("lab", "--folder", tmp_path / "mine", "--LabApp.default_url=/lab")
    assert code == 0
    assert "Kept as you have them: 01_heads.ipynb" in err
    assert [argument for argument in launched if "default_url" in argument] == [
        "--LabApp.default_url=/lab"
    ]


@pytest.mark.slow
def test_lab_opens_the_tour_for_real(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | places | {"PYTHONPATH": str(PACKAGE.parent), "JUPYTER_TOKEN": "t0k"}
    command = [sys.executable, "-c", "from bloomlab.cli import main; main()", "lab", "--no-browser"]
    options = ["--port", str(port), "--folder", "mine", "--ServerApp.port_retries=0"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, *options], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        status, body, _ = _get(f"http://127.0.0.1:{port}/api/contents/00_tour.ipynb", server)
        tour = json.loads(body)
        assert (status, tour["type"], tour["writable"]) == (200, "notebook", True)
        assert tour["content"]["cells"]
        status, _, address = _get(f"http://127.0.0.1:{port}/", server)
        assert (status, address) == (200, f"http://127.0.0.1:{port}/lab/tree/00_tour.ipynb")
    except (AssertionError, OSError) as error:
        error.add_note((tmp_path / "log").read_text())
        raise
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert (tmp_path / "mine" / "00_tour.ipynb").exists()


def _get(url, server, patience=60):
    """Status, body and final address, once the server answers; no proxy is asked."""
    opener, end = build_opener(ProxyHandler({})), time.monotonic() + patience
    while True:
        try:
            request = Request(url, headers={"Authorization": "token t0k"})
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read(), answer.url
        except URLError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)
