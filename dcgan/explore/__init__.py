"""A page in the browser on a trained model: its images, walks between them, sums of them, and how it was trained.

`dcgan explore` opens it; `serve` does so from a program. `View` is what a link to the page says, and `draw` the picture
that it stands for.
"""

from dcgan.explore._server import serve
from dcgan.explore._space import export_space
from dcgan.explore._view import Models, View, draw

__all__ = ["Models", "View", "draw", "export_space", "serve"]
