"""Write what docs/browser.md runs, before the documentation is built: a runtime and models, in docs/assets/browser/.

The runtime is onnxruntime-web, from its npm package; the models are some that come with dcgan, as ONNX. A browser that
has opened a page from disk lets it neither fetch files nor import modules, but load scripts. So each file here is a
script that sets a variable to the compressed bytes, in base64.

Without npm, or a connection to its registry, nothing is written, and the page says so.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from dcgan import Generator
from dcgan.export import export_onnx
from dcgan.zoo import load_record

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
MODELS = ["faces", "digits", "cifar10"]
FOLDER = Path(__file__).parents[1] / "docs/assets/browser"


def main() -> None:
    """Write the files, or say in a line why not."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            package = download(Path(scratch))
        except OSError as error:
            print(f"docs/browser.md will have no model to run: {error}")
            return
        FOLDER.mkdir()
        models = {name: write_model(name, Path(scratch) / "model.onnx") for name in MODELS}
        write_runtime(package, models)
    print(f"{FOLDER}: {sum(path.stat().st_size for path in FOLDER.iterdir()) / 1e6:.1f} MB")


def download(folder: Path) -> Path:
    """Download the npm package; return its path.

    Raises:
        OSError: If it cannot be downloaded.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--loglevel=error", "--pack-destination", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        reason = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
        raise OSError(f"npm could not download onnxruntime-web {VERSION}: {reason}")
    package = folder / f"onnxruntime-web-{VERSION}.tgz"
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if digest != SHA512:
        sys.exit(f"onnxruntime-web {VERSION} from npm has the SHA-512 {digest}, expected {SHA512}")
    return package


def write_model(name: str, scratch: Path) -> dict[str, object]:
    """Write a model as a script; return what the page has to know of it before it loads it."""
    generator = Generator.from_pretrained(load_record(name).folder, dtype=torch.float32)
    config = generator.config
    if (config["latent"], config["output"], config.get("num_classes")) != ("normal", "tanh", None):
        sys.exit(f"docs/assets/browser.js draws normal latents and shows tanh images without classes, unlike {name}")
    model = onnx.load(export_onnx(generator, scratch))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            # As precise as they were before batch normalisation was fused, and a quarter smaller when compressed.
            values = numpy_helper.to_array(tensor).astype("float16").astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    script = FOLDER / f"{name}.js"
    script.write_text(f'dcganFiles.weights.{name} = "{pack(model.SerializeToString())}";\n', encoding="utf-8")
    return {"size": config["image_size"], "latentDim": config["latent_dim"], "bytes": script.stat().st_size}


def write_runtime(package: Path, models: dict[str, dict[str, object]]) -> None:
    """Write the runtime as a script, with the list of models; its licence is named in its first lines."""
    with tarfile.open(package) as archive:
        names = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
        code, module, wasm = (archive.extractfile(f"package/dist/{name}").read() for name in names)
    packed = {"module": pack(module), "wasm": pack(wasm)}
    size = len(code) + sum(map(len, packed.values()))
    files = {"version": VERSION, "bytes": size, "models": models, "weights": {}, **packed}
    text = code.decode().replace("//# sourceMappingURL=ort.wasm.min.js.map", "")  # which is not here
    (FOLDER / "runtime.js").write_text(f"{text}\nvar dcganFiles = {json.dumps(files)};\n", encoding="utf-8")


def pack(data: bytes) -> str:
    """Return bytes as base64 of gzip, which a browser can undo without a library."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


if __name__ == "__main__":
    main()
