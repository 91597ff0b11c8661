"""``python -m dklfm``: the command line, under any Python environment."""

from dklfm.cli import app

if __name__ == "__main__":
    app(prog_name="dklfm")
