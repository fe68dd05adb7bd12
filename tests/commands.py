"""Commands in this process."""

from dcgan.cli import main


def said(capsys, *arguments, code=0):
    """Run a command that ends with an exit code; return what it printed, or its message if that is not 0."""
    assert main(list(map(str, arguments))) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return err if code else out
