import sys

import pytest
import torch

from dcgan import Discriminator, Generator
from dcgan.export import example_input, export_onnx

VARIANTS = {
    "conv stem": {},
    "linear stem": {"stem": "linear", "stem_norm": "unit", "kernel_size": 5},
    "resized": {"upsample": "resize", "image_size": (16, 48)},
    "two layers a stage": {"convs_per_stage": 2, "kernel_size": 3},
}


def built(kind, variant):
    arguments = {"image_size": 16, "base_channels": 4, **VARIANTS[variant]}
    if kind is Discriminator:
        arguments = {name: value for name, value in arguments.items() if name not in ("stem_norm", "upsample")}
    network = kind(**arguments)
    network(torch.randn(8, *example_input(network).shape[1:]))  # statistics other than the initial ones
    return network.train()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_onnx_computes_the_same_for_any_batch_size(kind, variant, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network = built(kind, variant)
    path = export_onnx(network, tmp_path / "deep" / "network.onnx")
    assert network.training
    session = onnxruntime.InferenceSession(path)
    names = [session.get_inputs()[0].name, session.get_outputs()[0].name]
    assert names == (["z", "image"] if kind is Generator else ["image", "logit"])
    network.eval()
    for n in (1, 2, 5, 33):
        x = torch.randn(n, *example_input(network).shape[1:])
        (result,) = session.run(None, {names[0]: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), network(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11's own, on loading
@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_an_exported_program_comes_back_the_same(kind, tmp_path):
    network = built(kind, "conv stem").eval()
    example = example_input(network)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for n in (1, 7):
        x = torch.randn(n, *example.shape[1:])
        assert torch.equal(loaded(x), network(x))


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'dcgan\[onnx\]'"):
        export_onnx(Generator(image_size=16, base_channels=2), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
