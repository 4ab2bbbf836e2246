"""The demo pages: on this machine only, even on Colab, where Gradio would ask for a public address by itself."""

import ast
import sys
import types
import urllib.error
import urllib.request

import gradio
import pytest
from conftest import ROOT

SCRIPTS = ["sft_medical.py", "vl_car_insurance.py"]


def block_of(script: str) -> ast.Module:
    """Return the last `if DEMO:` of a script, as a module of its lines."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "DEMO"]
    return ast.Module(blocks[-1].body, type_ignores=[])


def status_of(address: str, host: str) -> int:
    request = urllib.request.Request(address, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def colab(monkeypatch):
    """Make Gradio believe that it runs on Colab, and note whether it asks for a tunnel."""
    asked = []
    shell = types.SimpleNamespace(__str__=lambda self: "google.colab")
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: "google.colab"
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setattr("gradio.utils.colab_check", lambda: True)
    return types.SimpleNamespace(asked=asked, shell=shell)


@pytest.mark.parametrize("script", SCRIPTS)
def test_page_is_private_even_on_colab(monkeypatch, colab, script):
    launched, real = [], gradio.Blocks.launch

    def launch(self, **options):
        launched.append((self, options))
        return real(self, **options, prevent_thread_lock=True, quiet=True, inline=False)

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    names = {
        "os": __import__("os"),
        "DISCLAIMER": "120",
        "chat": lambda message, history: message,
        "FastLanguageModel": types.SimpleNamespace(for_inference=lambda model: None),
        "model": None,
        "train_rows": [{"prompt": "VIN?"}],
        "read_photo": lambda photo, prompt: (prompt, {}),
        "MODEL": "mine",
    }
    try:
        exec(compile(block_of(script), script, "exec"), names)
        page, options = launched[0]
        assert options["server_name"] == "127.0.0.1" and options["share"] is False
        assert page.share_url is None and not colab.asked and page.local_url.startswith("http://127.0.0.1:")
        assert names["os"].environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        port = page.local_url.rstrip("/").rpartition(":")[2]
        assert status_of(page.local_url, f"127.0.0.1:{port}") == 200
        assert status_of(page.local_url, "evil.example.com") == 400
    finally:
        gradio.close_all()


def test_photos_are_bounded_and_not_kept():
    source = ast.unparse(block_of("vl_car_insurance.py"))
    assert (
        "max_file_size='20mb'" in source and "delete_cache=" in source and "flagging_mode='never'" in source
    )
