"""The values that options may take by name, each list written once.

The networks, the trainer, the recipe and the command line read them from here. This module imports nothing heavy, so
that the command line can answer `--help` and report mistakes at once; tests compare the lists with the dictionaries
of the functions behind them.
"""

from typing import Literal

Activation = Literal["relu", "leaky-relu"]
ArchitectureName = Literal["tutorial", "biased", "linear5", "paper", "svhn", "imagenet32"]
AugmentationName = Literal["color", "translation", "shift", "cutout"]
Channels = Literal[1, 3, 4]
CompileMode = Literal["auto", "off", "graph", "full"]
ConvsPerStage = Literal[1, 2]
DatasetName = Literal[
    "digits",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "svhn",
    "stl10",
    "celeba",
    "lsun",
    "lfw",
    "imagenet",
    "folder",
    "wds",
    "hf",
    "fake",
]
Distribution = Literal["normal", "uniform"]
KernelSize = Literal[3, 4, 5]
LearningRate = float | Literal["auto"]
LoggerName = Literal["tensorboard", "wandb"]
LossName = Literal["non-saturating", "minimax", "hinge", "least-squares", "wasserstein"]
Norm = Literal["batch", "instance", "layer", "none"]
OnCollapse = Literal["warn", "stop"]
Output = Literal["tanh", "sigmoid"]
Precision = Literal["fp32", "bf16", "fp16"]
Resize = Literal["crop", "squash"]
Schedule = Literal["together", "alternate"]
Stem = Literal["conv", "linear"]
StemNorm = Literal["channel", "unit"]
Upsample = Literal["transpose", "resize"]
Workload = Literal["step", "epoch", "overhead", "serve", "sample", "generate", "archive", "load", "load_file", "start"]
