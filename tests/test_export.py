import sys

import pytest
import torch

from dcgan import Discriminator, Generator, export
from dcgan.export import example_input, export_onnx

VARIANTS = {
    "conv stem": {},
    "linear stem": {"stem": "linear", "stem_norm": "unit", "kernel_size": 5},
    "resized": {"upsample": "resize", "image_size": (16, 48)},
    "two layers per stage": {"convs_per_stage": 2, "kernel_size": 3},
}


def build(network_class, variant):
    arguments = {"image_size": 16, "base_channels": 4, **VARIANTS[variant]}
    if network_class is Discriminator:
        arguments = {name: value for name, value in arguments.items() if name not in ("stem_norm", "upsample")}
    network = network_class(**arguments)
    network(torch.randn(8, *example_input(network).shape[1:]))  # BatchNorm statistics other than the initial ones
    return network.train()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_onnx_matches_torch_for_any_batch_size(network_class, variant, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network = build(network_class, variant)
    path = export_onnx(network, tmp_path / "deep" / "network.onnx")
    assert network.training
    session = onnxruntime.InferenceSession(path)
    names = [session.get_inputs()[0].name, session.get_outputs()[0].name]
    assert names == (["z", "image"] if network_class is Generator else ["image", "logit"])
    network.eval()
    for n in (1, 2, 5, 33):
        x = torch.randn(n, *example_input(network).shape[1:])
        (result,) = session.run(None, {names[0]: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), network(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11's own, on loading
@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_saved_torch_export_program_matches(network_class, tmp_path):
    network = build(network_class, "conv stem").eval()
    example = example_input(network)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for n in (1, 7):
        x = torch.randn(n, *example.shape[1:])
        assert torch.equal(loaded(x), network(x))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'needs onnx and onnxscript: pip install "dcgan\[onnx\]"'):
        export_onnx(Generator(image_size=16, base_channels=2), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_an_onnxscript_that_exports_wrongly_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    for old in ("0.5.6", "0.7.0.dev20260101"):
        monkeypatch.setattr(export, "version", lambda _, old=old: old)
        with pytest.raises(ImportError, match=f"onnxscript {old} exports discriminators that give wrong results"):
            export_onnx(Discriminator(image_size=16, base_channels=2), tmp_path / "x.onnx")


@pytest.mark.parametrize("network_class", [Generator, Discriminator])
def test_example_input_follows_the_weights_and_no_default(network_class):
    network = network_class(image_size=16, base_channels=2).to(torch.bfloat16)
    with torch.device("meta"):
        example = example_input(network)
    assert (example.device.type, example.dtype, len(example)) == ("cpu", torch.bfloat16, 2)


def test_export_ignores_the_default_device(tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    network = build(Generator, "conv stem")
    expected = export_onnx(network, tmp_path / "expected.onnx").read_bytes()
    with torch.device("meta"):
        path = export_onnx(network, tmp_path / "network.onnx")
    assert path.read_bytes() == expected
