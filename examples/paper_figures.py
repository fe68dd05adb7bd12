"""Draw the pictures of docs/latents.md and docs/visualize.md, with the commands that the pages show.

python examples/paper_figures.py docs/assets [SVHN]

SVHN is the paper authors' model: by default the one of that name, which is fetched, or a folder that `dcgan convert`
wrote. It takes a few minutes on two cores.
"""

import shlex
import sys
import tempfile
from pathlib import Path

from dcgan import cli, data, images

COMMANDS = """
walk faces --through 5,13,94,18 --out OUT/latents-slerp.png
walk faces --through 5,13,94,18 --interpolation lerp --out OUT/latents-lerp.png
walk faces --points 4 --steps 12 --out OUT/latents-walk.gif
walk SVHN --points 9 --out OUT/latents-svhn.png
walk mnist --points 4 --out OUT/latents-mnist.png
walk cifar10 --points 9 --out OUT/latents-cifar10.png
arithmetic faces "94,114,156 - 56,59,112 + 41,45,136" --out OUT/latents-arithmetic.png
walk faces --from 13,41,76,136 --to 18,29,31,63 --through 2,55,58,70,97,133 --out OUT/latents-turn.png
project digits DIGITS --out PROJECTION
visualize filters faces --out OUT/visualize-filters.png
visualize features faces --stage 8x8 --out OUT/visualize-faces.png
visualize features digits --data digits --stage 8x8 --out OUT/visualize-digits.png
visualize features mnist --out OUT/visualize-mnist.png
visualize features cifar10 --out OUT/visualize-cifar10.png
visualize features SVHN --out OUT/visualize-svhn.png
visualize dropout faces --marks EYES --stage 8x8 -n 12 --out OUT/visualize-dropout.png
"""

out, svhn = Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "svhn"
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    digits = data.load("digits", image_size=32, channels=1, cache=False)
    files = [folder / f"{index}.png" for index in range(10)]
    for index, file in enumerate(files):
        images.save_png(file, digits[index])
    words = {
        "SVHN": [svhn],
        "DIGITS": [str(file) for file in files],
        "PROJECTION": [str(folder / "projection")],
        "EYES": [str(Path(__file__).with_name("eyes.csv"))],
    }
    for line in COMMANDS.strip().splitlines():
        arguments = [word for part in shlex.split(line) for word in words.get(part, [part.replace("OUT/", f"{out}/")])]
        if code := cli.main([*arguments, "--force"]):
            sys.exit(code)
    for picture in ("pairs", "errors"):
        (folder / "projection" / f"{picture}.png").replace(out / f"latents-{picture}.png")
