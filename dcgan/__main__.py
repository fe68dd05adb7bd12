"""The `dcgan` script, and `python -m dcgan`, for `torchrun` and for machines without the script on their path."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from dcgan.cli import main as run
    except KeyboardInterrupt:  # importing takes a moment
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
